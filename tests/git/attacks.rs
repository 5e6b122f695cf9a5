//! What a hostile run or a hostile repository tries. Nothing outside is read, written or run, and nothing
//! is lost without a word.

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use kage::git::{
    error::HarvestError,
    harvest::{Harvest, HarvestLimits, WarningKind, harvest},
    mirror::Mirror,
    worktree::{Mode, Worktree},
};

use crate::support::{BOTH, World, listing, take};

const FILES: &[(&str, &str)] = &[("a.txt", "one\n"), ("dir/b.txt", "two\n")];

fn both(script: &str, check: impl Fn(&World, &Mirror, &Worktree) -> Result<()>) -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", mode)?;
        world.in_sandbox(&worktree, script)?;
        check(&world, &mirror, &worktree).with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

fn kinds(harvest: &Harvest) -> Vec<(WarningKind, String)> {
    let mut kinds: Vec<_> = harvest.warnings.iter().map(|it| (it.kind, it.path.to_string())).collect();
    kinds.sort_by(|one, other| one.1.cmp(&other.1));
    kinds
}

/// Limits that a test may set one of.
fn limited(mirror: &Mirror, worktree: &Worktree, limits: &HarvestLimits) -> Result<(&'static str, u64)> {
    worktree.unmount()?;
    match harvest(mirror, worktree, limits) {
        Err(HarvestError::Limit { what, seen, .. }) => Ok((what, seen)),
        other => anyhow::bail!("no limit was reached: {other:?}"),
    }
}

#[test]
fn nothing_in_the_git_folder_runs_or_counts() -> Result<()> {
    let canary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("canary-{}", std::process::id()));
    let script = format!(
        "cat > .git/evil <<'E'\n#!/bin/sh\ntouch {0}\ncat\nE\nchmod +x .git/evil; \
         for key in core.fsmonitor core.sshCommand core.pager core.editor diff.external diff.x.textconv filter.x.clean filter.x.process \
         gpg.program credential.helper merge.x.driver alias.status; do git config $key \"$PWD/.git/evil\"; done; \
         git config core.hooksPath .git; git config core.worktree /etc; git config filter.x.required true; \
         echo '* filter=x diff=x merge=x' > .gitattributes; mkdir -p .git/hooks; cp .git/evil .git/hooks/post-index-change; \
         echo '*' > .git/info/exclude; echo /etc > .git/objects/info/alternates; echo hi > new",
        canary.display()
    );
    both(&script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert_eq!(listing(world, mirror, harvest.tree)?, ".gitattributes\na.txt\ndir/b.txt\nnew");
        assert!(!canary.exists());
        Ok(())
    })
}

#[test]
fn a_git_entry_of_any_type_is_skipped() -> Result<()> {
    for entry in ["echo 'gitdir: /tmp/evil' > .git", "ln -s / .git", "mkfifo .git", "true"] {
        both(&format!("rm -rf .git; {entry}; echo hi > new"), |world, mirror, worktree| {
            let harvest = take(mirror, worktree)?;
            assert_eq!(listing(world, mirror, harvest.tree)?, "a.txt\ndir/b.txt\nnew");
            assert!(harvest.warnings.is_empty());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn index_flags_and_other_ways_to_hide_a_change_do_not() -> Result<()> {
    let script = "git update-index --skip-worktree a.txt; git update-index --assume-unchanged dir/b.txt; echo X > a.txt; echo Y > dir/b.txt; \
                  git sparse-checkout set nothing 2>/dev/null || true; echo X > a.txt; mkdir -p dir; echo Y > dir/b.txt; \
                  git replace HEAD $(git commit-tree -m x $(git write-tree)) || true; echo '*.secret' >> .git/info/exclude; echo s > a.secret; \
                  echo n > new; git add -N new";
    both(script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        let tree = harvest.tree.to_string();
        assert_eq!(listing(world, mirror, harvest.tree)?, "a.secret\na.txt\ndir/b.txt\nnew");
        assert_eq!(world.git(mirror.path(), ["show", &format!("{tree}:a.txt")])?, "X");
        assert_eq!(world.git(mirror.path(), ["show", &format!("{tree}:dir/b.txt")])?, "Y");
        Ok(())
    })
}

#[test]
fn links_are_kept_and_never_followed() -> Result<()> {
    let script = "rm -r dir; ln -s /etc dir; ln -s / root; ln -s loop loop; ln -s /dev/zero zero; ln -s nowhere dangling; \
                  ln -s ../../../../../../etc/passwd up; rm a.txt; ln -s /etc/passwd a.txt; ln -s /etc/passwd .gitignore; ln -s . self";
    both(script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        let tree = world.git(mirror.path(), ["ls-tree", "-r", &harvest.tree.to_string()])?;
        assert_eq!(tree.lines().count(), 9, "{tree}");
        assert!(tree.lines().all(|line| line.starts_with("120000 ")), "{tree}");
        assert_eq!(world.git(mirror.path(), ["show", &format!("{}:dir", harvest.tree)])?, "/etc");
        Ok(())
    })
}

#[test]
fn special_files_are_left_out_with_a_warning() -> Result<()> {
    let script = "mkfifo .gitignore .gitattributes fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'; \
                  rm dir/b.txt; mkfifo dir/b.txt; echo hi > new";
    both(script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert_eq!(listing(world, mirror, harvest.tree)?, "a.txt\nnew");
        let special = |path: &str| (WarningKind::SpecialFile, path.to_owned());
        let expected = [".gitattributes", ".gitignore", "dir/b.txt", "fifo", "socket"].map(special);
        assert_eq!(kinds(&harvest), expected);
        Ok(())
    })
}

/// A sandbox cannot make devices; if it could, they would be no more than a warning. A whiteout cannot be
/// made through the overlay even by root.
#[test]
fn devices_are_left_out_with_a_warning() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", mode)?;
        let folder = match mode {
            Mode::Overlay => world.path("runs/r1/upper"),
            _ => worktree.path(),
        };
        for (name, major) in [("zero", "1"), ("a.txt", "8")] {
            let _ = fs::remove_file(folder.join(name));
            std::process::Command::new("mknod").arg(folder.join(name)).args(["b", major, "5"]).status()?;
            assert!(fs::symlink_metadata(folder.join(name))?.file_type().is_block_device());
        }
        let harvest = take(&mirror, &worktree)?;
        assert_eq!(listing(&world, &mirror, harvest.tree)?, "dir/b.txt");
        assert_eq!(harvest.warnings.len(), 2);
    }
    Ok(())
}

#[test]
fn nested_repositories_come_in_as_files() -> Result<()> {
    let script = "mkdir sub; cd sub; git init -q .; echo x > x; git add x; git -c user.name=a -c user.email=b commit -qm x; cd ..; \
                  git init -q --bare bare; mkdir -p deep/er; echo 'gitdir: /' > deep/er/.git; echo y > deep/er/y";
    both(script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        let files = listing(world, mirror, harvest.tree)?;
        assert!(
            files.contains("sub/x") && files.contains("deep/er/y") && files.contains("bare/HEAD"),
            "{files}"
        );
        assert!(!files.contains(".git/"), "{files}");
        let nested = |path: &str| (WarningKind::NestedGit, path.to_owned());
        assert_eq!(kinds(&harvest), [nested("deep/er/.git"), nested("sub/.git")]);
        Ok(())
    })
}

#[test]
fn forms_of_dotgit_are_left_out_with_a_warning() -> Result<()> {
    let script = "mkdir .GIT .git. 'git~1' .gIt; for d in .GIT .git. 'git~1' .gIt; do echo x > \"$d/config\"; done; \
                  printf x > $'.g\\xe2\\x80\\x8cit'; printf x > '.git::$INDEX_ALLOCATION'; printf x > '.git\\hooks'; ln -s /etc/passwd .gitmodules; \
                  mkdir -p ok; echo x > ok/.GiT; echo x > $'a\\nb'; echo x > $'\\x1b]0;x'; echo x > con; echo x > 'a\\b'";
    both(script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        let files = world
            .git_bytes(mirror.path(), ["ls-tree", "-r", "-z", "--name-only", &harvest.tree.to_string()])?;
        assert_eq!(files, b"\x1b]0;x\0a\nb\0a.txt\0a\\b\0con\0dir/b.txt\0");
        assert_eq!(harvest.warnings.len(), 9, "{:?}", harvest.warnings);
        assert!(harvest.warnings.iter().all(|it| it.kind == WarningKind::ForbiddenName));
        world.git(mirror.path(), ["fsck", "--strict"])?;
        Ok(())
    })
}

#[test]
fn deep_folders_end_at_the_limit_and_can_be_removed() -> Result<()> {
    let script = "echo > kept; python3 -c 'import os\nfor i in range(5000): os.mkdir(\"d\"); os.chdir(\"d\")\nopen(\"x\", \"w\")'";
    both(script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert_eq!(listing(world, mirror, harvest.tree)?, "a.txt\ndir/b.txt\nkept");
        assert_eq!(harvest.warnings.len(), 1, "{:?}", harvest.warnings);
        assert_eq!(kinds(&harvest), [(WarningKind::TooDeep, ["d"; 65].join("/"))]);
        worktree.remove()?;
        assert!(!world.path("runs/r1/merged").exists() && !world.path("runs/r1/upper").exists());
        Ok(())
    })
}

#[test]
fn a_giant_sparse_file_is_left_out_unread_and_named() -> Result<()> {
    both("truncate -s 1T giant; echo > kept", |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert_eq!(listing(world, mirror, harvest.tree)?, "a.txt\ndir/b.txt\nkept");
        assert_eq!(kinds(&harvest), [(WarningKind::TooLarge, "giant".to_owned())]);
        assert_eq!(harvest.warnings[0].detail, "it has 1099511627776 bytes; 67108864 are taken");
        Ok(())
    })?;
    // One that took the place of a tracked file, too: the base's is not lost.
    both("truncate -s 1T a.txt", |_, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert!(!harvest.changed);
        assert_eq!(kinds(&harvest), [(WarningKind::TooLarge, "a.txt".to_owned())]);
        Ok(())
    })?;
    both("rm -r dir; truncate -s 1T dir", |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert_eq!(listing(world, mirror, harvest.tree)?, "a.txt\ndir/b.txt");
        assert_eq!(kinds(&harvest), [(WarningKind::TooLarge, "dir".to_owned())]);
        Ok(())
    })?;
    both("truncate -s 1T giant; echo giant > .gitignore", |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert_eq!(listing(world, mirror, harvest.tree)?, ".gitignore\na.txt\ndir/b.txt");
        Ok(())
    })
}

#[test]
fn too_many_files_bytes_or_entries_end_at_the_limit() -> Result<()> {
    let limits = HarvestLimits::default();
    both("mkdir many; cd many; seq 60000 | xargs touch", |_, mirror, worktree| {
        assert_eq!(limited(mirror, worktree, &limits)?, ("changed files", 50_001));
        assert_eq!(limited(mirror, worktree, &HarvestLimits { entries: 1000, ..limits })?.0, "entries");
        assert_eq!(
            limited(mirror, worktree, &HarvestLimits { time: Duration::ZERO, ..limits })?.0,
            "seconds of work"
        );
        Ok(())
    })?;
    both("for i in 1 2 3; do head -c 1000 /dev/urandom > $i; done", |_, mirror, worktree| {
        assert_eq!(
            limited(mirror, worktree, &HarvestLimits { bytes: 2500, ..limits })?,
            ("bytes in changed files", 3000)
        );
        worktree.unmount()?;
        let harvest = harvest(mirror, worktree, &HarvestLimits { file_bytes: 999, ..limits })?;
        assert!(!harvest.changed);
        assert_eq!(kinds(&harvest), ["1", "2", "3"].map(|it| (WarningKind::TooLarge, it.to_owned())));
        Ok(())
    })?;
    both(
        "p=$(printf 'x%.0s' $(seq 200)); mkdir -p $p/$p/$p; echo > $p/$p/$p/f; echo > $p/g",
        |world, mirror, worktree| {
            worktree.unmount()?;
            let mut harvest = harvest(mirror, worktree, &HarvestLimits { path_bytes: 500, ..limits })?;
            harvest.objects.write(mirror)?.flush()?;
            let name = "x".repeat(200);
            assert_eq!(listing(world, mirror, harvest.tree)?, format!("a.txt\ndir/b.txt\n{name}/g"));
            assert_eq!(kinds(&harvest), [(WarningKind::PathTooLong, format!("{name}/{name}/{name}/f"))]);
            Ok(())
        },
    )?;
    both("head -c 2000000 /dev/zero > .gitignore", |_, mirror, worktree| {
        assert_eq!(limited(mirror, worktree, &limits)?.0, "bytes in a .gitignore");
        Ok(())
    })
}

/// What is taken away is named in the result's list as well.
#[test]
fn deletions_without_end_end_at_the_limit() -> Result<()> {
    let world = World::with_files(&[("keep", "x"), ("one", "x")])?;
    for number in 0..300 {
        let folder = world.upstream.join(format!("deep/{}/{}", "d".repeat(200), number % 3));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{number:03}{}", "f".repeat(200))), "x")?;
    }
    world.commit_all()?;
    let mirror = world.mirror()?;
    let unbounded = HarvestLimits { deleted: u64::MAX, list_bytes: u64::MAX, ..HarvestLimits::default() };
    let ways = [
        ("rm -r deep", 300),
        ("rm -r deep; mkdir deep", 300),
        ("rm -r deep; echo x > deep", 300),
        ("rm -r deep; ln -s keep deep", 300),
        ("mv deep elsewhere; rm -r elsewhere/*/0", 300),
        ("rm -r deep/*/[01]; rm one; mkdir one", 201),
        ("find deep -type f -delete", 300),
    ];
    for mode in BOTH {
        for (number, (script, gone)) in ways.into_iter().enumerate() {
            let worktree = world.worktree(&mirror, &format!("{mode:?}{number}"), mode)?;
            world.in_sandbox(&worktree, script)?;
            worktree.unmount()?;
            let why = format!("{mode:?} {script}");
            assert!(harvest(&mirror, &worktree, &unbounded)?.changed, "{why}");
            let limits = HarvestLimits { deleted: gone, ..unbounded };
            assert!(harvest(&mirror, &worktree, &limits)?.changed, "{why}");
            let limits = HarvestLimits { deleted: gone - 1, ..unbounded };
            assert_eq!(limited(&mirror, &worktree, &limits)?, ("deleted files", gone), "{why}");
            let limits = HarvestLimits { list_bytes: 20_000, ..unbounded };
            assert_eq!(limited(&mirror, &worktree, &limits)?.0, "bytes in the paths of its changes", "{why}");
        }
    }
    Ok(())
}

/// A base larger than the limits, touched but not changed, is no change.
#[test]
fn what_is_only_touched_does_not_count() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        fs::write(world.upstream.join("large"), vec![7; 3_000_000])?;
        world.commit_all()?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", mode)?;
        world.in_sandbox(
            &worktree,
            "touch large a.txt; mv dir x; mv x dir; chmod 700 a.txt; chmod 600 a.txt",
        )?;
        worktree.unmount()?;
        let limits = HarvestLimits { file_bytes: 10, bytes: 10, files: 1, ..HarvestLimits::default() };
        assert!(!harvest(&mirror, &worktree, &limits)?.changed);
    }
    Ok(())
}

#[test]
fn ignored_files_are_counted_and_named() -> Result<()> {
    let script = "mkdir -p node_modules/x dir/out; touch node_modules/x/y{1..500} dir/out/z keep.o; printf 'node_modules\\n*.o\\n' > .gitignore; \
                  echo /out > dir/.gitignore";
    both(script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert_eq!(listing(world, mirror, harvest.tree)?, ".gitignore\na.txt\ndir/.gitignore\ndir/b.txt");
        assert_eq!(harvest.ignored, 3);
        assert_eq!(harvest.warnings.len(), 1);
        assert!(harvest.warnings[0].detail.contains("node_modules"), "{:?}", harvest.warnings);
        Ok(())
    })
}

/// Patterns that take exponential time in a naive matcher.
#[test]
fn hostile_ignore_rules_end() -> Result<()> {
    let script = "p=$(printf 'a%.0s' $(seq 100)); mkdir -p $p/$p; touch $p/$p/$p; \
                  { for i in $(seq 200); do echo '**/*a*a*a*a*a*a*a*a*a*a*a*a/**/a*a*a*a*b'; echo 'a**/a**/a**/a*a*a*a*a*b'; done; } > .gitignore";
    both(script, |_, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert!(harvest.changed);
        let [warning] = &harvest.warnings[..] else { anyhow::bail!("{:?}", harvest.warnings) };
        assert_eq!((warning.kind, warning.path.as_slice()), (WarningKind::IgnoreRules, &b".gitignore"[..]));
        assert!(warning.detail.starts_with("400 rules"), "{warning:?}");
        Ok(())
    })
}

/// The rules that are followed are bounded; what the others name is taken in, and said.
#[test]
fn ignore_rules_beyond_the_limit_hide_nothing() -> Result<()> {
    let script = "{ echo first; yes unused | head -n 3000; echo last; } > .gitignore; touch first last";
    both(script, |world, mirror, worktree| {
        let harvest = take(mirror, worktree)?;
        assert_eq!(listing(world, mirror, harvest.tree)?, ".gitignore\na.txt\ndir/b.txt\nlast");
        let told: Vec<_> = harvest.warnings.iter().map(|warning| warning.kind).collect();
        assert_eq!(told, [WarningKind::IgnoreRules, WarningKind::Ignored], "{:?}", harvest.warnings);
        Ok(())
    })
}

#[test]
fn the_git_folder_moved_into_sight_comes_in_as_files() -> Result<()> {
    both(
        "git pack-refs --all; mv .git/info seen; mv .git elsewhere; echo x > new",
        |world, mirror, worktree| {
            let harvest = take(mirror, worktree)?;
            let files = listing(world, mirror, harvest.tree)?;
            for file in [
                "elsewhere/HEAD",
                "elsewhere/config",
                "elsewhere/packed-refs",
                "seen/exclude",
                "new",
                "a.txt",
            ] {
                assert!(files.lines().any(|line| line == file), "{file}: {files}");
            }
            assert!(files.lines().any(|line| line.starts_with("elsewhere/objects/pack/")), "{files}");
            Ok(())
        },
    )
}

/// The kernel keeps its own marks from the sandbox; even so, marks that lead out are refused.
#[test]
fn forged_marks_of_the_overlay_are_refused() -> Result<()> {
    for value in ["/../../../etc", "..", "/", "", "/a//b", "dir/../..", "x/y", "/dir/."] {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", Mode::Overlay)?;
        world.in_sandbox(
            &worktree,
            "mkdir forged; touch dir/x; ! setfattr -n trusted.overlay.redirect -v /etc dir 2>/dev/null",
        )?;
        worktree.unmount()?;
        let folder = world.path("runs/r1/upper/dir");
        rustix::fs::setxattr(
            &folder,
            "trusted.overlay.redirect",
            value.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        )?;
        let refused = harvest(&mirror, &worktree, &HarvestLimits::default());
        assert!(matches!(refused, Err(HarvestError::Inconsistent { .. })), "{value:?}: {refused:?}");
    }
    Ok(())
}

#[test]
fn without_the_proof_of_the_layer_nothing_is_harvested() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let worktree = world.worktree(&mirror, "r1", Mode::Overlay)?;
    worktree.unmount()?;
    rustix::fs::removexattr(world.path("runs/r1/upper"), "trusted.kage.layer")?;
    let refused = harvest(&mirror, &worktree, &HarvestLimits::default());
    assert!(matches!(refused, Err(HarvestError::Inconsistent { .. })), "{refused:?}");
    Ok(())
}

/// Folders that nobody may open, read-only files: the sandbox's user owns them, we are root.
#[test]
fn closed_files_are_taken_in_and_removed() -> Result<()> {
    both(
        "mkdir closed; echo x > closed/x; chmod 000 closed/x a.txt; chmod 000 closed",
        |world, mirror, worktree| {
            let harvest = take(mirror, worktree)?;
            assert_eq!(listing(world, mirror, harvest.tree)?, "a.txt\nclosed/x\ndir/b.txt");
            worktree.remove()?;
            assert!(!worktree.path().exists());
            Ok(())
        },
    )
}

#[test]
fn removing_a_worktree_follows_no_link() -> Result<()> {
    let world = World::with_files(FILES)?;
    let outside = world.path("outside");
    fs::create_dir_all(outside.join("deep"))?;
    File::create(outside.join("deep/file"))?;
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o777))?;
    let mirror = world.mirror()?;
    for mode in BOTH {
        let worktree = world.worktree(&mirror, "r1", mode)?;
        symlink(&outside, worktree.path().join("link"))?;
        symlink(&outside, worktree.path().join("dir/link"))?;
        worktree.remove()?;
        assert!(outside.join("deep/file").exists());
    }
    Ok(())
}
