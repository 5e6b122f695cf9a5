//! Figures for `docs/performance.md`, against the real git in the same run. Nothing is asserted about time:
//! `cargo test --release --test git figures -- --ignored --nocapture`; the sizes come from
//! `KAGE_FIGURES_FILES` and `KAGE_FIGURES_BYTES`.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use kage::git::{
    commit::{CommitText, commit},
    diff::{self, DiffLimits},
    harvest::{HarvestLimits, harvest},
    worktree::{Mode, Worktree},
};

use crate::support::World;

const ROUNDS: usize = 9;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Text that neither repeats itself nor is noise.
fn text(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(format!("let value_{:x} = {};\n", state & 0xffff, state >> 40).as_bytes());
    }
    bytes
}

fn fill(root: &Path, files: u64, bytes: u64) -> Result<()> {
    for number in 0..files {
        let folder = root.join(format!("d{}/e{}", number % 50, number / 50 % 20));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("file{number}.rs")), text(number, bytes))?;
    }
    Ok(())
}

/// Twenty edits, five new files, twenty deletions, spread out.
fn change(root: &Path, files: u64, round: u64) -> Result<()> {
    let path = |number: u64| root.join(format!("d{}/e{}/file{number}.rs", number % 50, number / 50 % 20));
    let step = files / 41;
    for number in 0..20 {
        let mut content = fs::read(path(number * step))?;
        content.extend_from_slice(format!("// {round}\n").as_bytes());
        fs::write(path(number * step), content)?;
        fs::remove_file(path((20 + number) * step))?;
    }
    for number in 0..5 {
        fs::write(root.join(format!("d{number}/new{round}")), text(round, 20_000))?;
    }
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let result = work()?;
    Ok((start.elapsed(), result))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
#[ignore = "figures, not a test"]
fn figures() -> Result<()> {
    let files = number("KAGE_FIGURES_FILES", 50_000);
    let bytes = number("KAGE_FIGURES_BYTES", 20_000);
    let world = World::new()?;
    fill(&world.upstream, files, bytes)?;
    world.commit_all()?;
    world.git(&world.upstream, ["repack", "-adq"])?;
    println!("{files} files of {bytes} bytes");
    let (fetch, mirror) = timed(|| world.mirror())?;
    println!("fetch into the mirror              {fetch:?}");
    let (base, first) = timed(|| world.base(&mirror))?;
    println!("base, first time                   {base:?}");
    drop(first);
    let (add, _) = timed(|| world.git(&world.upstream, ["worktree", "add", "-q", "--detach", "../linked"]))?;
    println!("git worktree add                   {add:?}");
    let (mut acquire, mut create, mut status, mut their_status) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut take, mut record, mut patch, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS as u64 {
        let (time, base) = timed(|| world.base(&mirror))?;
        acquire.push(time);
        let run = world.path(&format!("runs/{round}"));
        let (time, worktree) = timed(|| Ok(Worktree::create(&run, &base, Mode::Overlay)?))?;
        create.push(time);
        status.push(timed(|| world.git(&worktree.path(), ["status", "--porcelain"]))?.0);
        change(&worktree.path(), files, round)?;
        worktree.unmount()?;
        let (time, mut harvest) = timed(|| Ok(harvest(&mirror, &worktree, &HarvestLimits::default())?))?;
        take.push(time);
        let text =
            CommitText { message: "x", author: "kage-bunshin", email: "kage-bunshin@localhost", time: 1 };
        let branch = format!("task-{round}-x");
        let (time, id) = timed(|| Ok(commit(&mirror, worktree.commit(), &mut harvest, &branch, &text)?))?;
        record.push(time);
        patch.push(timed(|| Ok(diff::changes(&mirror, worktree.commit(), id, &DiffLimits::default())?))?.0);
        let linked = world.path("linked");
        world.git(&linked, ["reset", "-q", "--hard"])?;
        their_status.push(timed(|| world.git(&linked, ["status", "--porcelain"]))?.0);
        change(&linked, files, round)?;
        let (time, _) = timed(|| {
            world.git(&linked, ["add", "-A"])?;
            world.git_bytes(&linked, ["diff", "--cached", "--binary"])
        })?;
        theirs.push(time);
        assert_eq!(world.git(&linked, ["write-tree"])?, harvest.tree.to_string());
    }
    for (name, times) in [
        ("base, second time", acquire),
        ("worktree (overlay)", create),
        ("git status in it", status),
        ("git status in a git worktree", their_status),
        ("harvest of 45 changes", take),
        ("commit", record),
        ("patch", patch),
        ("git add -A; git diff --cached --binary", theirs),
    ] {
        println!("{name:<40} {:?}", median(times));
    }
    if number("KAGE_FIGURES_COPY", 1) == 0 {
        return Ok(());
    }
    let base = world.base(&mirror)?;
    let (copy, worktree) = timed(|| Ok(Worktree::create(&world.path("runs/copy"), &base, Mode::Copy)?))?;
    println!("worktree (copy)                    {copy:?}");
    let (time, _) = timed(|| Ok(harvest(&mirror, &worktree, &HarvestLimits::default())?))?;
    println!("harvest of an unchanged copy       {time:?}");
    Ok(())
}
