//! kill -9 in the middle: nothing half made is ever taken for whole. The victim is this test program,
//! started again with the one test named that does the work.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use kage::git::{
    base::Bases,
    commit::{CommitText, commit},
    harvest::{HarvestLimits, harvest},
    mirror::Mirror,
    worktree::{Mode, Worktree},
};

use crate::support::{World, fetch_limits, settings, take};

const VICTIM: &str = "KAGE_TEST_VICTIM";
const ROUNDS: u32 = 6;

/// Runs `test` as a victim in `world` and kills it `after` it has said that it begins.
fn kill(world: &World, test: &str, after: Duration) -> Result<()> {
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture", "--ignored", "--test-threads=1"])
        .env(VICTIM, world.path(""))
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = BufReader::new(victim.stdout.take().context("piped")?).lines();
    for line in lines {
        if line?.contains("victim begins") {
            break;
        }
    }
    std::thread::sleep(after);
    victim.kill()?;
    victim.wait()?;
    Ok(())
}

fn victim_world() -> Option<PathBuf> {
    let world = std::env::var_os(VICTIM).map(PathBuf::from);
    println!("victim begins");
    world
}

fn big_world() -> Result<World> {
    let world = World::new()?;
    for number in 0..600 {
        let folder = world.upstream.join(format!("d{}", number % 30));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("f{number}")), format!("{number}\n").repeat(500))?;
    }
    world.commit_all()?;
    Ok(world)
}

#[test]
#[ignore = "the victim of a_base_is_whole_or_absent"]
fn make_a_base() -> Result<()> {
    let Some(world) = victim_world() else { return Ok(()) };
    let mirror = Mirror::open(&world.join("mirror.git"))?;
    Bases::open(&world.join("bases"))?.acquire(&mirror, mirror.resolve("main")?, &settings())?;
    Ok(())
}

#[test]
fn a_base_is_whole_or_absent() -> Result<()> {
    let world = big_world()?;
    let mirror = world.mirror()?;
    let tree = world.git(&world.upstream, ["rev-parse", "HEAD^{tree}"])?;
    for round in 0..ROUNDS {
        kill(&world, "crash::make_a_base", Duration::from_millis(u64::from(round * 30)))?;
        let base = world.base(&mirror)?;
        assert_eq!(world.git(&base.path, ["status", "--porcelain", "--ignored"])?, "");
        assert_eq!(world.git(&base.path, ["write-tree"])?, tree);
        drop(base);
        world.collect_bases(1)?;
        assert_eq!(fs::read_dir(world.path("bases"))?.count(), 0, "round {round}");
    }
    Ok(())
}

#[test]
fn two_at_once_make_one_base() -> Result<()> {
    let world = big_world()?;
    let mirror = world.mirror()?;
    let bases = world.bases()?;
    let commit = mirror.resolve("main")?;
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| bases.acquire(&mirror, commit, &settings()).map(|base| base.path.clone()))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect::<Result<_, _>>()
    })?;
    assert!(paths.iter().all(|path| *path == paths[0]));
    assert_eq!(fs::read_dir(world.path("bases"))?.count(), 2, "the base and its lock");
    Ok(())
}

#[test]
#[ignore = "the victim of a_fetch_can_be_repeated"]
fn fetch() -> Result<()> {
    let Some(world) = victim_world() else { return Ok(()) };
    let mirror = Mirror::create(&world.join("mirror.git"))?;
    mirror.fetch(&world.join("upstream").to_string_lossy(), &fetch_limits())?;
    Ok(())
}

#[test]
fn a_fetch_can_be_repeated() -> Result<()> {
    let world = big_world()?;
    let head = world.git(&world.upstream, ["rev-parse", "HEAD"])?;
    for round in 0..ROUNDS {
        kill(&world, "crash::fetch", Duration::from_millis(u64::from(round * 15)))?;
        let mirror = world.mirror()?;
        assert_eq!(mirror.resolve("main")?.map(|id| id.to_string()), Some(head.clone()));
        world.git(mirror.path(), ["fsck", "--strict"])?;
        let pack = fs::read_dir(mirror.path().join("objects/pack"))?.flatten().map(|entry| entry.file_name());
        assert!(pack.into_iter().all(|name| !name.to_string_lossy().starts_with("tmp_")), "round {round}");
        fs::remove_dir_all(mirror.path())?;
    }
    Ok(())
}

fn import(world: &Path) -> Result<String> {
    let mirror = Mirror::open(&world.join("mirror.git"))?;
    let worktree = Worktree::open(&world.join("runs/r1"))?.context("it was made")?;
    worktree.unmount()?;
    let mut harvest = harvest(&mirror, &worktree, &HarvestLimits::default())?;
    let time = std::process::id().into();
    let text = CommitText { message: "x", author: "kage-bunshin", email: "kage-bunshin@localhost", time };
    Ok(commit(&mirror, worktree.commit(), &mut harvest, "task-1-shell", &text)?.to_string())
}

#[test]
#[ignore = "the victim of an_import_can_be_repeated"]
fn take_in() -> Result<()> {
    let Some(world) = victim_world() else { return Ok(()) };
    import(&world)?;
    Ok(())
}

#[test]
fn an_import_can_be_repeated() -> Result<()> {
    for mode in [Mode::Overlay, Mode::Copy] {
        let world = big_world()?;
        let mirror = world.mirror()?;
        let worktree = world.worktree(&mirror, "r1", mode)?;
        world.in_sandbox(
            &worktree,
            "for f in d*/f*; do echo more >> $f; done; rm -r d1; mv d2 d1; echo new > new",
        )?;
        let mut trees = Vec::new();
        for round in 0..ROUNDS {
            kill(&world, "crash::take_in", Duration::from_millis(u64::from(round * 15)))?;
            let first = import(&world.path(""))?;
            assert_eq!(import(&world.path(""))?, first);
            trees.push(world.git(mirror.path(), ["rev-parse", "task-1-shell^{tree}"])?);
            world.git(mirror.path(), ["fsck", "--strict"])?;
            world.git(mirror.path(), ["update-ref", "-d", "refs/heads/task-1-shell"])?;
        }
        assert!(trees.iter().all(|tree| *tree == trees[0]), "{trees:?}");
    }
    Ok(())
}

#[test]
#[ignore = "the victim of a_worktree_is_whole_or_absent"]
fn make_worktrees() -> Result<()> {
    let Some(world) = victim_world() else { return Ok(()) };
    let mirror = Mirror::open(&world.join("mirror.git"))?;
    let base = Bases::open(&world.join("bases"))?.acquire(&mirror, mirror.resolve("main")?, &settings())?;
    let mode = if world.join("copy").exists() { Mode::Copy } else { Mode::Overlay };
    loop {
        Worktree::create(&world.join("runs/r1"), &base, mode)?;
    }
}

#[test]
fn a_worktree_is_whole_or_absent() -> Result<()> {
    for mode in [Mode::Overlay, Mode::Copy] {
        let world = World::with_files(&[("a", "1"), ("dir/b", "2")])?;
        if mode == Mode::Copy {
            fs::write(world.path("copy"), "")?;
        }
        let mirror = world.mirror()?;
        let base = world.base(&mirror)?;
        for round in 0..ROUNDS {
            kill(&world, "crash::make_worktrees", Duration::from_micros(u64::from(20_000 + round * 777)))?;
            let worktree = match Worktree::open(&world.path("runs/r1"))? {
                Some(worktree) => worktree,
                None => Worktree::create(&world.path("runs/r1"), &base, mode)?,
            };
            assert_eq!(world.in_sandbox(&worktree, "git status --porcelain --ignored; cat a dir/b")?, "12");
            assert!(!take(&mirror, &worktree)?.changed);
            worktree.remove()?;
            assert_eq!(fs::read_dir(world.path("runs/r1"))?.count(), 0, "round {round}");
        }
    }
    Ok(())
}
