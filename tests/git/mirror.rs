//! The mirror of every kind of source.

use std::{fs, os::unix::fs::symlink, time::Duration};

use anyhow::{Context, Result};
use kage::git::{
    error::GitError,
    mirror::{FetchLimits, Mirror},
    worktree::Mode,
};

use crate::support::{BOTH, World, fetch_limits, listing, settings, take};

#[test]
fn branches_tags_and_commits_are_found() -> Result<()> {
    let world = World::with_files(&[("a", "1")])?;
    world.git(&world.upstream, ["tag", "-a", "-m", "x", "v1"])?;
    world.git(&world.upstream, ["branch", "task-1-shell"])?;
    world.git(&world.upstream, ["branch", "topic/one"])?;
    let head = world.git(&world.upstream, ["rev-parse", "HEAD"])?;
    let mirror = world.mirror()?;
    assert_eq!(mirror.default_branch()?.as_deref(), Some("main"));
    for revision in ["main", "v1", "topic/one", "task-1-shell", &head, &head[..8]] {
        assert_eq!(mirror.resolve(revision)?.map(|id| id.to_string()).as_ref(), Some(&head), "{revision}");
    }
    assert_eq!(mirror.resolve("nothing")?, None);
    assert_eq!(mirror.resolve("0123456789")?, None);
    let hostile = [
        "", "-x", "main^", "main~1", "@{1}", "main:a", "..", "a..b", ":/a", "a b", "a\nb", "@{-1}", "*",
        "[a", "a\\b",
    ];
    for revision in hostile.into_iter().chain([&*"a".repeat(300)]) {
        assert!(matches!(mirror.resolve(revision), Err(GitError::InvalidRevision(_))), "{revision:?}");
    }
    let names: Vec<String> = mirror.refs()?.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["heads/main", "heads/task-1-shell", "heads/topic/one", "tags/v1"]);
    Ok(())
}

#[test]
fn what_upstream_drops_is_dropped() -> Result<()> {
    let world = World::with_files(&[("a", "1")])?;
    world.git(&world.upstream, ["branch", "old"])?;
    let mirror = world.mirror()?;
    world.git(&world.upstream, ["branch", "-D", "old"])?;
    world.git(&world.upstream, ["branch", "old/is/a/folder/now"])?;
    world.git(&world.upstream, ["checkout", "-q", "-b", "trunk"])?;
    let mirror = Mirror::open(mirror.path())?;
    mirror.fetch(world.upstream.to_str().context("plain")?, &fetch_limits())?;
    assert_eq!(mirror.resolve("old")?, None);
    assert!(mirror.resolve("old/is/a/folder/now")?.is_some());
    assert_eq!(mirror.default_branch()?.as_deref(), Some("trunk"));
    Ok(())
}

#[test]
fn an_empty_repository_gives_a_first_commit() -> Result<()> {
    for mode in BOTH {
        let world = World::new()?;
        let mirror = world.mirror()?;
        assert!(mirror.is_empty()?);
        assert_eq!(mirror.default_branch()?, None);
        let worktree = world.worktree(&mirror, "r1", mode)?;
        world.in_sandbox(
            &worktree,
            "git status --porcelain; echo hi > a; git add a; git commit -qm x; echo b > b",
        )?;
        let harvest = take(&mirror, &worktree)?;
        assert!(harvest.changed);
        assert_eq!(listing(&world, &mirror, harvest.tree)?, "a\nb");
    }
    Ok(())
}

#[test]
fn an_untouched_worktree_of_an_empty_repository_changes_nothing() -> Result<()> {
    let world = World::new()?;
    let mirror = world.mirror()?;
    let worktree = world.worktree(&mirror, "r1", Mode::Overlay)?;
    assert!(!take(&mirror, &worktree)?.changed);
    Ok(())
}

#[test]
fn bare_and_shallow_sources_work() -> Result<()> {
    let world = World::with_files(&[("a", "1")])?;
    for number in 2..5 {
        fs::write(world.upstream.join("a"), number.to_string())?;
        world.commit_all()?;
    }
    let upstream = format!("file://{}", world.upstream.display());
    world.git(&world.path(""), ["clone", "-q", "--bare", &upstream, "bare.git"])?;
    world.git(&world.path(""), ["clone", "-q", "--depth=2", &upstream, "shallow"])?;
    for (name, commits) in [("bare.git", 4), ("shallow", 2)] {
        let mirror = Mirror::create(&world.path(&format!("mirror-{name}")))?;
        mirror.fetch(world.path(name).to_str().context("plain")?, &fetch_limits())?;
        let worktree = world.worktree(&mirror, name, Mode::Overlay)?;
        let log = world.in_sandbox(&worktree, "git status --porcelain; git fsck >&2; git log --format=%s")?;
        assert_eq!(log.lines().count(), commits, "{name}: {log}");
    }
    Ok(())
}

#[test]
fn history_is_cut_where_the_settings_say() -> Result<()> {
    let world = World::with_files(&[("a", "1")])?;
    for number in 2..6 {
        fs::write(world.upstream.join("a"), number.to_string())?;
        world.commit_all()?;
    }
    world.git(&world.upstream, ["branch", "secret", "HEAD~4"])?;
    let mirror = world.mirror()?;
    let commit = mirror.resolve("main")?;
    let bases = world.bases()?;
    for (depth, commits) in [(0, 5), (1, 2), (3, 4), (9, 5)] {
        let settings = kage::git::base::Settings { history_depth: depth, ..settings() };
        let base = bases.acquire(&mirror, commit, &settings)?;
        let log = world.git(&base.path, ["log", "--format=%s"])?;
        assert_eq!(log.lines().count(), commits, "depth {depth}");
        world.git(&base.path, ["fsck", "--strict"])?;
        let objects = world.git(&base.path, ["cat-file", "--batch-all-objects", "--batch-check"])?;
        assert_eq!(objects.lines().count(), commits * 3, "a commit, a tree and a blob each: {objects}");
    }
    Ok(())
}

#[test]
fn a_repository_of_another_user_is_fetched() -> Result<()> {
    let world = World::with_files(&[("a", "1")])?;
    std::process::Command::new("chown").arg("-R").arg("12345:12345").arg(&world.upstream).status()?;
    let mirror = world.mirror()?;
    assert!(mirror.resolve("main")?.is_some());
    Ok(())
}

#[test]
fn submodules_and_linked_folders_stay_as_they_are() -> Result<()> {
    for mode in BOTH {
        let world = World::with_files(&[
            ("real/a", "1"),
            (".gitmodules", "[submodule \"s\"]\n\tpath = s\n\turl = https://localhost/s\n"),
        ])?;
        symlink("real", world.upstream.join("link"))?;
        let head = world.git(&world.upstream, ["rev-parse", "HEAD"])?;
        world.git(&world.upstream, ["update-index", "--add", "--cacheinfo", &format!("160000,{head},s")])?;
        world.git(&world.upstream, ["add", "link", "real", ".gitmodules"])?;
        world.git(&world.upstream, ["commit", "-qm", "x"])?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", mode)?;
        assert_eq!(world.in_sandbox(&worktree, "git status --porcelain")?, "");
        world
            .in_sandbox(&worktree, "test -d s; test -L link; cat link/a; echo 2 > link/a; echo 3 > link/b")?;
        let harvest = take(&mirror, &worktree)?;
        let tree = world.git(mirror.path(), ["ls-tree", "-r", &harvest.tree.to_string()])?;
        assert!(tree.contains(&format!("160000 commit {head}\ts")), "{tree}");
        assert!(tree.contains("120000 blob"), "{tree}");
        assert!(tree.contains("real/b"), "{tree}");
    }
    Ok(())
}

#[test]
fn refused_sources_start_nothing() -> Result<()> {
    let world = World::with_files(&[("a", "1")])?;
    let mirror = Mirror::create(&world.path("mirror.git"))?;
    let canary = world.path("canary");
    let evil = format!("ext::touch {}", canary.display());
    for source in [
        &*evil,
        "-x",
        "--upload-pack=touch /tmp/x",
        "relative",
        "git://localhost/x",
        "http://localhost/x",
        "ssh://-oProxyCommand=x/y",
        "https://user:password@localhost/x",
        "https:///x",
        "/a\nb",
        "user@host:path",
    ] {
        assert!(mirror.fetch(source, &fetch_limits()).is_err(), "{source:?}");
    }
    assert!(!canary.exists());
    Ok(())
}

#[test]
fn bounds_of_a_fetch_hold_and_leave_nothing() -> Result<()> {
    let world = World::new()?;
    let noise: Vec<u8> =
        (0..8_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    fs::write(world.upstream.join("noise"), noise)?;
    world.commit_all()?;
    let mirror = Mirror::create(&world.path("mirror.git"))?;
    let source = world.upstream.to_str().context("plain")?;
    let tight = FetchLimits { bytes: 1 << 20, ..fetch_limits() };
    assert!(matches!(mirror.fetch(source, &tight), Err(GitError::TooLarge { .. })));
    let short = FetchLimits { time: Duration::from_millis(1), ..fetch_limits() };
    assert!(matches!(mirror.fetch(source, &short), Err(GitError::TimedOut { .. })));
    let left: Vec<_> =
        fs::read_dir(mirror.path().join("objects/pack"))?.flatten().map(|it| it.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("tmp_")), "{left:?}");
    mirror.fetch(source, &fetch_limits())?;
    assert!(mirror.resolve("main")?.is_some());
    Ok(())
}
