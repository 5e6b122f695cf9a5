//! Configuration that a CLI obeys: found in every spelling, hidden from a run, and in its result as if it had been
//! there all along.

use std::{fs, os::unix::fs::symlink};

use anyhow::{Context, Result};
use bstr::ByteSlice;
use git2::Oid;
use kage::git::{
    base::Settings,
    commit::{CommitText, commit},
    diff::{self, DiffLimits},
    harvest::{Harvest, WarningKind},
    mirror::Mirror,
    quarantine::{Finding, FindingKind, Scanner},
    quarantine_rules::Rules,
    worktree::{Mode, Worktree},
};

use crate::support::{BOTH, World, listing, settings, take};

const HOSTILE: &[(&str, &str)] = &[
    ("README.md", "honest\n"),
    (".claude/settings.json", "{\"hooks\":{\"SessionStart\":[{\"hooks\":[{\"command\":\"id\"}]}]}}\n"),
    (".claude/hooks/start.sh", "id\n"),
    (".mcp.json", "{\"mcpServers\":{\"x\":{\"command\":\"id\"}}}\n"),
    ("opencode.json", "{}\n"),
    (".aider.conf.yml", "test-cmd: id\n"),
    ("packages/x/.mcp.json", "{}\n"),
    ("packages/x/index.js", "1\n"),
    ("packages/only/.Codex/config.toml", "notify = [\"id\"]\n"),
    ("packages/y/.GEMINI/settings.json", "{}\n"),
    ("packages/y/main.js", "2\n"),
];
const QUARANTINED: &[&str] = &[
    ".aider.conf.yml",
    ".claude",
    ".mcp.json",
    "opencode.json",
    "packages/only/.Codex",
    "packages/x/.mcp.json",
    "packages/y/.GEMINI",
];

fn head(mirror: &Mirror) -> Result<Oid> {
    mirror.resolve("main")?.context("main is there")
}

fn findings(mirror: &Mirror) -> Result<Vec<Finding>> {
    let none: [&str; 0] = [];
    Ok(Scanner::default().findings(mirror, head(mirror)?, &Rules::new(none))?.to_vec())
}

/// A run that sees all but what is quarantined, save the paths in `approved`.
fn quarantined(
    world: &World,
    mirror: &Mirror,
    name: &str,
    mode: Mode,
    approved: &[&str],
) -> Result<Worktree> {
    let hidden = findings(mirror)?.into_iter().map(|it| it.path);
    let hidden = hidden.filter(|path| !approved.iter().any(|it| path == it.as_bytes())).collect();
    let base = world.bases()?.acquire(mirror, Some(head(mirror)?), &Settings { hidden, ..settings() })?;
    Ok(Worktree::create(&world.path("runs").join(name), &base, mode)?)
}

fn held(harvest: &Harvest) -> Vec<String> {
    let held = harvest.warnings.iter().filter(|warning| warning.kind == WarningKind::Held);
    held.map(|warning| warning.path.to_string()).collect()
}

fn tree_of(world: &World, mirror: &Mirror, revision: &str) -> Result<String> {
    world.git(mirror.path(), ["rev-parse", &format!("{revision}^{{tree}}")])
}

#[test]
fn without_the_quarantine_a_run_finds_what_the_repository_brings() -> Result<()> {
    let world = World::with_files(HOSTILE)?;
    let mirror = world.mirror()?;
    for mode in BOTH {
        let worktree = world.worktree(&mirror, &format!("open-{mode:?}"), mode)?;
        let seen =
            world.in_sandbox(&worktree, "cat .claude/settings.json packages/only/.Codex/config.toml")?;
        assert!(seen.contains("SessionStart") && seen.contains("notify"), "{seen}");
    }
    Ok(())
}

#[test]
fn every_quarantined_path_is_found_with_a_digest_of_its_content() -> Result<()> {
    let world = World::with_files(HOSTILE)?;
    let mirror = world.mirror()?;
    let before = findings(&mirror)?;
    assert_eq!(before.iter().map(|it| it.path.to_string()).collect::<Vec<_>>(), QUARANTINED);
    let claude = &before[1];
    assert_eq!((claude.kind, claude.files, claude.obstacle), (FindingKind::Folder, 2, None));
    assert_eq!(claude.bytes, HOSTILE[1].1.len() as u64 + HOSTILE[2].1.len() as u64);
    assert!(claude.digest.starts_with("sha256:") && claude.digest.len() == 71, "{}", claude.digest);
    // Content, mode and name each count; what is elsewhere does not.
    let mut digests = vec![claude.digest.clone()];
    let changes: [&dyn Fn() -> Result<()>; 4] = [
        &|| Ok(fs::write(world.upstream.join("README.md"), "other\n")?),
        &|| Ok(fs::write(world.upstream.join(".claude/hooks/start.sh"), "ID\n")?),
        &|| world.git(&world.upstream, ["update-index", "--chmod=+x", ".claude/hooks/start.sh"]).map(drop),
        &|| world.git(&world.upstream, ["mv", ".claude/hooks/start.sh", ".claude/hooks/stop.sh"]).map(drop),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        change()?;
        if number < 2 {
            world.git(&world.upstream, ["add", "-A"])?;
        }
        world.git(&world.upstream, ["commit", "-q", "-m", "a change"])?;
        let mirror = world.mirror()?;
        digests.push(findings(&mirror)?[1].digest.clone());
    }
    assert_eq!(digests[0], digests[1], "a file elsewhere");
    digests.remove(0);
    let all = digests.len();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), all, "{digests:?}");
    Ok(())
}

#[test]
fn what_leads_elsewhere_cannot_be_approved() -> Result<()> {
    let world = World::with_files(&[("docs/settings.json", "{}\n"), (".qwen/settings.json", "{}\n")])?;
    symlink("docs", world.upstream.join(".claude"))?;
    symlink("../docs/settings.json", world.upstream.join(".qwen/more.json"))?;
    symlink("docs", world.upstream.join(".cursor"))?;
    fs::write(world.upstream.join("odd\u{202e}name"), "")?;
    fs::create_dir_all(world.upstream.join("a\u{202e}b"))?;
    fs::write(world.upstream.join("a\u{202e}b/.mcp.json"), "{}\n")?;
    world.commit_all()?;
    let mirror = world.mirror()?;
    let found = Scanner::default().findings(&mirror, head(&mirror)?, &Rules::new([".cursor/mcp.json"]))?;
    let paths: Vec<_> =
        found.iter().map(|it| (it.path.to_string(), it.kind, it.obstacle.is_some())).collect();
    let expected = [
        (".claude", FindingKind::Link, true),
        // It may lead to a folder that has an mcp.json.
        (".cursor", FindingKind::Link, true),
        (".qwen", FindingKind::Folder, true),
        ("a\u{202e}b/.mcp.json", FindingKind::File, true),
    ];
    assert_eq!(paths, expected.map(|(path, kind, obstacle)| (path.to_owned(), kind, obstacle)));
    Ok(())
}

#[test]
fn a_run_sees_none_of_it_and_its_git_knows_of_no_change() -> Result<()> {
    let world = World::with_files(HOSTILE)?;
    // History behind it, and a signature that would not be true any more.
    fs::write(world.upstream.join("README.md"), "second\n")?;
    world.commit_all()?;
    let mirror = world.mirror()?;
    for mode in BOTH {
        let worktree = quarantined(&world, &mirror, &format!("seen-{mode:?}"), mode, &["opencode.json"])?;
        let seen = world.in_sandbox(
            &worktree,
            "find . -path ./.git -prune -o -type f -print | sort; git status --porcelain; git log --oneline | wc -l; \
             git fsck --full; git ls-files | wc -l; git reset -q --hard; git stash -q; git checkout -q -f HEAD; ls -A",
        )?;
        let expected = "./README.md\n./opencode.json\n./packages/x/index.js\n./packages/y/main.js\n2\n4\n.git\nREADME.md\nopencode.json\npackages\n";
        assert_eq!(seen, expected, "{mode:?}");
        let harvest = take(&mirror, &worktree)?;
        assert!(!harvest.changed && harvest.warnings.is_empty(), "{mode:?}: {:?}", harvest.warnings);
        assert_eq!(harvest.tree.to_string(), tree_of(&world, &mirror, &head(&mirror)?.to_string())?);
    }
    Ok(())
}

#[test]
fn the_result_is_the_change_and_nothing_else() -> Result<()> {
    let world = World::with_files(HOSTILE)?;
    let mirror = world.mirror()?;
    let base = head(&mirror)?;
    for mode in BOTH {
        let name = format!("task-1-{}", format!("{mode:?}").to_lowercase());
        let worktree = quarantined(&world, &mirror, &name, mode, &[])?;
        // Folders that hold hidden paths are removed and moved; commits of its own change nothing.
        let script = "rm -r packages/x; mv packages/y packages/z; mkdir -p packages/new/.claude; \
                      echo {} > packages/new/.claude/x; echo more >> README.md; git add -A; git commit -qm mine";
        world.in_sandbox(&worktree, script)?;
        let mut harvest = take(&mirror, &worktree)?;
        assert_eq!(held(&harvest), [""; 0], "{mode:?}");
        let text = CommitText { message: "m", author: "a", email: "e@x", time: 0 };
        let id = commit(&mirror, Some(base), &mut harvest, &name, &text)?;
        let changes = world.git(
            mirror.path(),
            ["diff-tree", "-r", "--name-status", "--no-renames", &base.to_string(), &id.to_string()],
        )?;
        let expected = "M\tREADME.md\nA\tpackages/new/.claude/x\nD\tpackages/x/index.js\nD\tpackages/y/main.js\nA\tpackages/z/main.js";
        assert_eq!(changes, expected, "{mode:?}");
        world.git(mirror.path(), ["fsck", "--strict", "--no-dangling"])?;
        let patch = diff::changes(&mirror, Some(base), id, &DiffLimits::default())?.patch;
        assert!(!patch.bytes.contains_str("SessionStart"), "{mode:?}");
    }
    Ok(())
}

#[test]
fn what_a_run_puts_in_a_hidden_place_is_held_back_and_named() -> Result<()> {
    let world = World::with_files(HOSTILE)?;
    let mirror = world.mirror()?;
    let base = tree_of(&world, &mirror, &head(&mirror)?.to_string())?;
    for mode in BOTH {
        let worktree = quarantined(&world, &mirror, &format!("held-{mode:?}"), mode, &[])?;
        let script = "mkdir .claude; echo evil > .claude/settings.json; echo evil > .mcp.json; echo evil > .MCP.json; \
                      ln -s /etc/passwd opencode.json; rm -r packages/x; echo evil > packages/x; \
                      mkdir -p packages/only/.codex; echo evil > packages/only/.codex/config.toml; \
                      mkdir packages/y/.GEMINI; : > .aider.conf.yml";
        world.in_sandbox(&worktree, script)?;
        let harvest = take(&mirror, &worktree)?;
        let expected = [
            ".aider.conf.yml",
            ".claude",
            ".MCP.json",
            ".mcp.json",
            "opencode.json",
            "packages/only/.codex",
            "packages/x",
        ];
        let mut names = held(&harvest);
        names.sort_by_key(|name| (name.to_lowercase(), name.clone()));
        assert_eq!(names, expected, "{mode:?}");
        // The one visible file that it replaced is gone; all else is the base's.
        let changes = world
            .git(mirror.path(), ["diff-tree", "-r", "--name-status", &base, &harvest.tree.to_string()])?;
        assert_eq!(changes, "D\tpackages/x/index.js", "{mode:?}");
    }
    Ok(())
}

#[test]
fn bringing_back_what_the_base_has_is_no_change() -> Result<()> {
    let world = World::with_files(HOSTILE)?;
    fs::write(world.upstream.join("README.md"), "second\n")?;
    world.commit_all()?;
    let mirror = world.mirror()?;
    for mode in BOTH {
        let worktree = quarantined(&world, &mirror, &format!("back-{mode:?}"), mode, &[])?;
        world.in_sandbox(&worktree, "git checkout -q HEAD~1 -- .claude .mcp.json packages; ls -A")?;
        let harvest = take(&mirror, &worktree)?;
        assert!(!harvest.changed && held(&harvest).is_empty(), "{mode:?}: {:?}", harvest.warnings);
    }
    Ok(())
}

#[test]
fn an_approved_path_is_like_any_other() -> Result<()> {
    let world = World::with_files(HOSTILE)?;
    let mirror = world.mirror()?;
    for mode in BOTH {
        let worktree = quarantined(&world, &mirror, &format!("approved-{mode:?}"), mode, &[".claude"])?;
        let seen =
            world.in_sandbox(&worktree, "ls .claude; echo new > .claude/new; rm .claude/settings.json")?;
        assert_eq!(seen, "hooks\nsettings.json\n");
        let harvest = take(&mirror, &worktree)?;
        let listing = listing(&world, &mirror, harvest.tree)?;
        assert!(held(&harvest).is_empty() && listing.contains(".claude/new"), "{mode:?}: {listing}");
        assert!(!listing.contains(".claude/settings.json") && listing.contains(".mcp.json"), "{listing}");
    }
    Ok(())
}

#[test]
fn a_revision_of_nothing_else_is_empty_and_a_restart_forgets_nothing() -> Result<()> {
    let world = World::with_files(&[(".claude/settings.json", "{}\n"), ("a/.mcp.json", "{}\n")])?;
    let mirror = world.mirror()?;
    for mode in BOTH {
        let name = format!("empty-{mode:?}");
        let worktree = quarantined(&world, &mirror, &name, mode, &[])?;
        let seen = world
            .in_sandbox(&worktree, "ls -A; git status --porcelain; git log --oneline | wc -l; echo x > x")?;
        assert_eq!(seen, ".git\n1\n", "{mode:?}");
        drop(worktree);
        let worktree = Worktree::open(&world.path("runs").join(&name))?.context("it is there")?;
        assert_eq!(worktree.hidden(), [".claude", "a/.mcp.json"]);
        let harvest = take(&mirror, &worktree)?;
        assert_eq!(
            listing(&world, &mirror, harvest.tree)?,
            ".claude/settings.json\na/.mcp.json\nx",
            "{mode:?}"
        );
    }
    Ok(())
}
