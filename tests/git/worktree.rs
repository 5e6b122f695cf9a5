//! A worktree is an ordinary folder, and git in it is ordinary git.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use anyhow::{Context, Result};
use kage::git::{
    base::{Bases, Settings},
    commit::{CommitText, commit},
    error::GitError,
    room::BasesLimits,
    worktree::{Layer, Mode, Worktree},
};

use crate::support::{BOTH, UID, World, listing, settings, take};

const FILES: &[(&str, &str)] =
    &[("a.txt", "one\n"), ("dir/b.txt", "two\n"), ("dir/deep/c.txt", "three\n"), ("other/d.txt", "four\n")];

fn text() -> CommitText<'static> {
    CommitText {
        message: "a run\n",
        author: "kage-bunshin",
        email: "kage-bunshin@localhost",
        time: 1_700_000_000,
    }
}

#[test]
fn git_works_in_it_as_the_sandbox_user() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", mode)?;
        assert_eq!(world.in_sandbox(&worktree, "git status --porcelain --ignored")?, "");
        assert_eq!(
            world.in_sandbox(&worktree, "git diff-files; git diff-index HEAD; git branch --show-current")?,
            "main\n"
        );
        let said = world.in_sandbox(
            &worktree,
            "echo more >> a.txt; git diff --stat; git add -A; git commit -qm mine; git log --format=%s; \
             git checkout -qb topic; git mv dir moved; git commit -qm moved; git stash list; git status --porcelain; \
             echo uncommitted > dir",
        )?;
        assert!(said.contains("1 file changed") && said.contains("mine\na commit"), "{said}");
        let mut harvest = take(&mirror, &worktree)?;
        assert_eq!(
            listing(&world, &mirror, harvest.tree)?,
            "a.txt\ndir\nmoved/b.txt\nmoved/deep/c.txt\nother/d.txt"
        );
        let base = worktree.commit();
        let id = commit(&mirror, base, &mut harvest, "task-1-shell", &text())?;
        assert_eq!(world.git(mirror.path(), ["rev-parse", "task-1-shell"])?, id.to_string());
        assert_eq!(world.git(mirror.path(), ["rev-list", "--count", "task-1-shell"])?, "2");
        world.git(mirror.path(), ["fsck", "--strict"])?;
    }
    Ok(())
}

/// The index is fresh if git rewrites nothing in it and opens none of the files.
#[test]
fn the_index_is_taken_as_fresh() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", mode)?;
        let debug = world.in_sandbox(
            &worktree,
            "before=$(md5sum < .git/index); git update-index --refresh; git diff-files --quiet; git status >/dev/null; \
             test \"$before\" = \"$(md5sum < .git/index)\"; chmod 000 a.txt; chmod 644 a.txt; GIT_TRACE2_EVENT=/dev/stdout git ls-files -m",
        )?;
        // The chmod back and forth changed the ctime alone: git must look at the file and find it the same.
        assert!(!debug.lines().any(|line| line == "a.txt"), "{debug}");
    }
    Ok(())
}

#[test]
fn it_behaves_as_an_ordinary_folder() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", mode)?;
        let base = fs::symlink_metadata(world.base(&mirror)?.path.join("a.txt"))?;
        let seen = fs::symlink_metadata(worktree.path().join("a.txt"))?;
        assert_eq!((seen.mtime(), seen.uid(), seen.mode()), (base.mtime(), UID, base.mode()));
        world.in_sandbox(
            &worktree,
            "perl -e 'rename(\"dir\", \"renamed\") or die \"rename: $!\"'; test ! -e dir; cat renamed/deep/c.txt; \
             perl -e 'rename(\"renamed\", \"other/inside\") or die \"rename: $!\"'; cat other/inside/b.txt; \
             perl -e 'rename(\"other/inside/deep\", \"deep\") or die \"rename: $!\"'; \
             perl -e 'rename(\"other/inside\", \"dir\") or die \"rename: $!\"'; mkdir renamed; \
             ln a.txt hard; echo more >> hard; cmp a.txt hard; test $(stat -c %h a.txt) = 2; \
             test $(stat -c %i a.txt) = $(stat -c %i hard); echo x > A.TXT; ! cmp -s A.TXT a.txt; \
             touch -d 2001-01-01 other/d.txt; test $(stat -c %Y other/d.txt) = $(date -d 2001-01-01 +%s); \
             test $(stat -c %U:%G . | tr -d UNKOW:) = '' || true; test -w .",
        )?;
        let harvest = take(&mirror, &worktree)?;
        assert_eq!(
            listing(&world, &mirror, harvest.tree)?,
            "A.TXT\na.txt\ndeep/c.txt\ndir/b.txt\nhard\nother/d.txt"
        );
    }
    Ok(())
}

#[test]
fn runs_of_one_base_do_not_see_each_other() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let one = world.worktree(&mirror, "r1", mode)?;
        let other = world.worktree(&mirror, "r2", mode)?;
        world.in_sandbox(
            &one,
            "echo mine > a.txt; rm -r dir; git commit -qam mine; git config core.fsmonitor evil",
        )?;
        assert_eq!(
            world.in_sandbox(&other, "git status --porcelain; git log --format=%s; cat a.txt")?,
            "a commit\none\n"
        );
        assert!(!take(&mirror, &other)?.changed);
        assert!(take(&mirror, &one)?.changed);
    }
    Ok(())
}

#[test]
fn reset_goes_back_to_the_base() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let mut worktree = world.worktree(&mirror, "r1", mode)?;
        world.in_sandbox(&worktree, "rm -r dir .git; echo x > y; mkdir -m 000 closed")?;
        worktree.reset()?;
        assert_eq!(
            world.in_sandbox(&worktree, "git status --porcelain --ignored; git log --format=%s")?,
            "a commit\n"
        );
        world.in_sandbox(&worktree, "rm a.txt")?;
        let harvest = take(&mirror, &worktree)?;
        assert_eq!(listing(&world, &mirror, harvest.tree)?, "dir/b.txt\ndir/deep/c.txt\nother/d.txt");
    }
    Ok(())
}

#[test]
fn a_worktree_is_found_again_and_removed_whole() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(FILES)?;
        let mirror = world.mirror()?;
        let run = world.path("runs/r1");
        let made = world.worktree(&mirror, "r1", mode)?;
        world.in_sandbox(&made, "echo x > new")?;
        drop(made);
        let again = Worktree::open(&run)?.expect("it is there");
        assert_eq!(again.layer() == Layer::Overlay, mode == Mode::Overlay);
        assert!(!again.is_stale());
        let harvest = take(&mirror, &again)?;
        assert!(listing(&world, &mirror, harvest.tree)?.contains("new"));
        // What a writer that was killed leaves.
        for name in ["mode.new", "base.new"] {
            fs::write(run.join(name), "half")?;
        }
        again.remove()?;
        again.remove()?;
        assert!(Worktree::open(&run)?.is_none());
        assert_eq!(fs::read_dir(&run)?.count(), 0);
    }
    Ok(())
}

#[test]
fn a_layer_from_before_a_restart_is_not_harvested() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let worktree = world.worktree(&mirror, "r1", Mode::Overlay)?;
    worktree.unmount()?;
    fs::write(world.path("runs/r1/mode"), "overlay\n00000000-0000-0000-0000-000000000000\n")?;
    let mut stale = Worktree::open(&world.path("runs/r1"))?.expect("it is there");
    assert!(stale.is_stale());
    assert!(matches!(take(&mirror, &stale), Err(kage::git::error::HarvestError::Stale)));
    stale.reset()?;
    assert!(!take(&mirror, &stale)?.changed);
    Ok(())
}

#[test]
fn a_mounted_worktree_is_not_harvested() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let worktree = world.worktree(&mirror, "r1", Mode::Overlay)?;
    let limits = kage::git::harvest::HarvestLimits::default();
    let refused = kage::git::harvest::harvest(&mirror, &worktree, &limits);
    assert!(matches!(refused, Err(kage::git::error::HarvestError::Mounted)));
    Ok(())
}

#[test]
fn auto_takes_a_copy_where_no_overlay_can_be_mounted() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let base = world.base(&mirror)?;
    // A comma cannot stand in an overlay's options.
    let worktree = Worktree::create(&world.path("runs/a,b"), &base, Mode::Auto)?;
    assert_eq!(worktree.layer(), Layer::Copy);
    assert!(worktree.fallback().is_some());
    assert!(Worktree::create(&world.path("runs/c,d"), &base, Mode::Overlay).is_err());
    assert_eq!(Worktree::create(&world.path("runs/e"), &base, Mode::Auto)?.layer(), Layer::Overlay);
    Ok(())
}

#[test]
fn a_base_goes_when_no_run_names_it() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let bases = world.bases()?;
    let runs = world.path("runs");
    let base = world.base(&mirror)?;
    assert_eq!(bases.collect(&runs, Duration::ZERO)?.bases, 0, "it is held");
    let worktree = Worktree::create(&runs.join("r1"), &base, Mode::Overlay)?;
    let path = base.path.clone();
    drop(base);
    assert_eq!(bases.collect(&runs, Duration::ZERO)?.bases, 0, "a run names it");
    worktree.remove()?;
    assert_eq!(bases.collect(&runs, Duration::from_secs(3600))?.bases, 0, "it was just used");
    world.collect_bases(1)?;
    assert!(!path.exists());
    assert_eq!(fs::read_dir(world.path("bases"))?.count(), 0);
    assert!(world.base(&mirror)?.path.exists());
    Ok(())
}

/// Each other branch, and each other set of hidden paths, is another checkout of the same files.
/// Another process may fetch meanwhile, and sweeps what looks half written.
#[test]
fn making_a_base_writes_nothing_to_the_mirror() -> Result<()> {
    let world = World::with_files(&[("a", "b"), ("c/d", "e")])?;
    let mirror = world.mirror()?;
    let touched = |folder: &str| fs::metadata(mirror.path().join(folder)).and_then(|it| it.modified());
    let folders = ["", "objects", "objects/pack", "refs"];
    let before: Vec<_> = folders.into_iter().map(touched).collect::<Result<_, _>>()?;
    let base = world.base(&mirror)?;
    assert_eq!(folders.into_iter().map(touched).collect::<Result<Vec<_>, _>>()?, before);
    world.git(&base.path, ["-c", "safe.directory=*", "fsck", "--strict"])?;
    Ok(())
}

#[test]
fn all_bases_together_are_bounded() -> Result<()> {
    let world = World::with_files(&[("a", &"x".repeat(100_000))])?;
    let mirror = world.mirror()?;
    let runs = world.path("runs");
    let base = |bases: &Bases, branch: &str| {
        let settings = Settings { branch: Some(branch.to_owned()), ..settings() };
        bases.acquire(&mirror, mirror.resolve("main")?, &settings)
    };
    let unbounded = world.bases()?;
    let count = || -> Result<usize> {
        let names =
            fs::read_dir(world.path("bases"))?.filter_map(|it| it.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| !name.ends_with(".lock")).count())
    };
    for branch in ["1", "2", "3", "4", "5"] {
        base(&unbounded, branch)?;
    }
    assert_eq!(count()?, 5);

    let limits = BasesLimits { bytes: 700_000, entries: 1_000_000, reserve_bytes: 0 };
    let bounded = |limits| -> Result<Bases> { Ok(world.bases()?.bounded(limits, &runs)) };
    let bases = bounded(limits)?;
    let used = base(&bases, "6")?;
    assert!(count()? < 5, "{}", count()?);
    let worktree = Worktree::create(&runs.join("r1"), &used, Mode::Copy)?;
    let (path, named) = (used.path.clone(), "6");
    drop(used);
    let held = base(&bases, "7")?;
    for branch in ["8", "9", "10"] {
        base(&bases, branch)?;
    }
    assert!(path.exists() && held.path.exists(), "what is in use stays");
    assert!(count()? <= 4, "{}", count()?);

    // What is in use leaves no room for another one.
    let tight = bounded(BasesLimits { bytes: 300_000, ..limits })?;
    let refused = base(&tight, "11").err().context("there is no room")?;
    assert!(matches!(refused, GitError::NoRoom { .. }) && refused.is_transient(), "{refused}");
    assert!(base(&tight, named).is_ok(), "one that is there is given");
    drop(held);
    worktree.remove()?;
    base(&tight, "11")?;
    assert_eq!(count()?, 1);

    let few = bounded(BasesLimits { entries: 3, ..limits })?;
    assert!(matches!(base(&few, "12"), Err(GitError::NoRoom { .. })));
    let full = bounded(BasesLimits { reserve_bytes: u64::MAX, ..limits })?;
    assert!(matches!(base(&full, "13"), Err(GitError::DiskFull { .. })));
    Ok(())
}

/// Its runner lost it between the harvest and the run's end: the next attempt's result takes its place.
#[test]
fn a_branch_that_an_earlier_attempt_left_is_moved() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let made = |name: &str| {
        let worktree = world.worktree(&mirror, name, Mode::Overlay)?;
        world.in_sandbox(&worktree, &format!("echo {name} > x"))?;
        Ok::<_, anyhow::Error>((take(&mirror, &worktree)?, worktree.commit()))
    };
    let of = |run: &str, attempt: u32| format!("Apply\n\nTask: t\nRun: {run}\nAttempt: {attempt}\n");
    let ((mut first, base), (mut second, _)) = (made("r1")?, made("r2")?);
    let name = |harvest: &mut _, message: &str| {
        commit(&mirror, base, harvest, "task-1-shell", &CommitText { message, ..text() })
    };
    let lost = name(&mut first, &of("a", 1))?;
    for message in [of("a", 1), of("b", 2), "a run\n".to_owned(), "Run: a\nAttempt: 2\n\nmore\n".to_owned()] {
        assert!(matches!(name(&mut second, &message), Err(GitError::BranchTaken(_))), "{message}");
    }
    let kept = name(&mut second, &of("a", 2))?;
    assert_ne!(kept, lost);
    assert_eq!(world.git(mirror.path(), ["rev-parse", "task-1-shell"])?, kept.to_string());
    // The one that was lost comes late.
    assert!(matches!(name(&mut first, &of("a", 1)), Err(GitError::BranchTaken(_))));
    Ok(())
}

#[test]
fn a_result_branch_is_never_moved() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let worktree = world.worktree(&mirror, "r1", Mode::Overlay)?;
    world.in_sandbox(&worktree, "echo x > x")?;
    let mut harvest = take(&mirror, &worktree)?;
    let base = worktree.commit();
    let first = commit(&mirror, base, &mut harvest, "task-1-shell", &text())?;
    let again = CommitText { time: 1_800_000_000, ..text() };
    assert_eq!(commit(&mirror, base, &mut harvest, "task-1-shell", &again)?, first);
    assert!(matches!(
        commit(&mirror, None, &mut harvest, "task-1-shell", &text()),
        Err(GitError::BranchTaken(_))
    ));
    for branch in ["main", "task-..", "task-a/b", "task- x", "-task-1"] {
        assert!(
            matches!(commit(&mirror, base, &mut harvest, branch, &text()), Err(GitError::BranchRefused(_))),
            "{branch}"
        );
    }
    // A fetch with pruning must not take it away.
    mirror.fetch(&world.upstream.to_string_lossy(), &crate::support::fetch_limits())?;
    assert_eq!(world.git(mirror.path(), ["rev-parse", "task-1-shell"])?, first.to_string());
    Ok(())
}

#[test]
fn the_branch_of_the_base_is_the_one_in_the_worktree() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let settings = kage::git::base::Settings { branch: Some("feature/x".to_owned()), ..settings() };
    let base = world.bases()?.acquire(&mirror, mirror.resolve("main")?, &settings)?;
    let worktree = Worktree::create(&world.path("runs/r1"), &base, Mode::Overlay)?;
    assert_eq!(
        world.in_sandbox(
            &worktree,
            "git branch --show-current; git remote; ls -A .git/hooks 2>/dev/null || true"
        )?,
        "feature/x\n"
    );
    Ok(())
}
