//! Worktree and harvest in a repository of 50,000 files and 1 GB, against git's own commands.
//!
//! `cargo bench --bench worktree`. Needs root, git, and 6 GB below `BENCH_DIR` (default /var/tmp). Both sides must
//! come to the same trees.

#[path = "support/figures.rs"]
mod figures;
#[path = "support/large.rs"]
mod large;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use git2::Oid;
use kage::git::base::{Bases, CheckoutLimits, Settings};
use kage::git::commit::{CommitText, commit_while};
use kage::git::diff::{self, DiffLimits};
use kage::git::harvest::{HarvestLimits, harvest};
use kage::git::mirror::{FetchLimits, Mirror};
use kage::git::worktree::{self, Mode, Worktree};

use crate::figures::{Pairs, rounds};
use crate::large::{change, git, make_repository};

struct World {
    folder: tempfile::TempDir,
    upstream: PathBuf,
    mirror: Mirror,
    bases: Bases,
}

impl World {
    fn make() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "run it as root: it mounts overlays");
        let parent = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let folder = tempfile::Builder::new().prefix("kage-bench-").tempdir_in(parent)?;
        let upstream = folder.path().join("upstream.git");
        timed("repository made", || make_repository(&upstream))?;
        let mirror = Mirror::create(&folder.path().join("mirror.git"))?;
        let limits = FetchLimits { time: Duration::from_secs(600), bytes: 8 << 30 };
        timed("mirror fetched", || Ok(mirror.fetch(upstream.to_str().context("a plain path")?, &limits)?))?;
        let bases = Bases::open(&folder.path().join("bases"))?;
        Ok(Self { folder, upstream, mirror, bases })
    }

    fn run_folder(&self) -> PathBuf {
        self.folder.path().join("runs/1")
    }

    /// What the runner does for a run of a revision: look it up, take its shared checkout, lay the layer.
    fn worktree(&self) -> Result<Worktree> {
        let settings = Settings {
            history_depth: 50,
            owner: None,
            branch: None,
            hidden: Vec::new(),
            limits: CheckoutLimits::default(),
        };
        let commit = self.mirror.resolve("main")?.context("no branch main")?;
        let base = self.bases.acquire(&self.mirror, Some(commit), &settings)?;
        Ok(Worktree::create(&self.run_folder(), &base, Mode::Overlay)?)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = worktree::discard(&self.run_folder()) {
            eprintln!("left {}: {error}", self.run_folder().display());
        }
    }
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let done = work()?;
    eprintln!("  {what}: {:.1} s", began.elapsed().as_secs_f64());
    Ok(done)
}

fn milliseconds<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let began = Instant::now();
    let done = work()?;
    Ok((began.elapsed().as_secs_f64() * 1e3, done))
}

/// Clean, and holding exactly the revision's tree.
fn check_status(folder: &Path) -> Result<String> {
    let status = git(folder, &["status", "--porcelain=v2", "--untracked-files=all"])?;
    ensure!(status.is_empty(), "{} is not clean: {status:.400}", folder.display());
    let (index, head) = (git(folder, &["write-tree"])?, git(folder, &["rev-parse", "HEAD^{tree}"])?);
    ensure!(index == head, "{} has another tree", folder.display());
    Ok(head)
}

fn worktrees(world: &World) -> Result<Pairs> {
    timed("base made, once", || world.worktree())?;
    let theirs = world.folder.path().join("theirs");
    let path = theirs.to_str().context("a plain path")?;
    let mut pairs = Pairs::new("worktree, 50,000 files and 1 GB", "ms", 500.0);
    for round in 0..rounds(3) {
        if round > 0 {
            git(&world.upstream, &["worktree", "remove", "--force", path])?;
        }
        worktree::discard(&world.run_folder())?;
        // Nobody pays for what the other one left to write.
        rustix::fs::sync();
        let (ours, worktree) = milliseconds(|| world.worktree())?;
        let (peer, _) =
            milliseconds(|| git(&world.upstream, &["worktree", "add", "--quiet", "--detach", path, "main"]))?;
        ensure!(check_status(&worktree.path())? == check_status(&theirs)?, "the trees differ");
        pairs.push(ours, peer);
    }
    Ok(pairs)
}

/// From the end of a run to its patch: ours also writes the commit.
fn take(world: &World, worktree: &Worktree, branch: &str) -> Result<(Oid, Vec<u8>)> {
    worktree.unmount()?;
    let mut harvest = harvest(&world.mirror, worktree, &HarvestLimits::default())?;
    let text = CommitText { message: "a result", author: "bench", email: "bench@localhost", time: 0 };
    let read = |id| diff::changes(&world.mirror, worktree.commit(), id, &DiffLimits::default());
    let (_, patch) = commit_while(&world.mirror, worktree.commit(), &mut harvest, branch, &text, read)?;
    let patch = patch?.patch;
    ensure!(!patch.truncated && harvest.files == 25, "{} files were harvested", harvest.files);
    Ok((harvest.tree, patch.bytes))
}

fn harvests(world: &World) -> Result<Pairs> {
    let theirs = world.folder.path().join("theirs");
    let mut pairs = Pairs::new("harvest of 20 edits and 5 new files", "ms", 5.0);
    for round in 0..rounds(3) * 5 {
        let worktree = world.worktree()?;
        change(&worktree.path(), round)?;
        change(&theirs, round)?;
        let (ours, (tree, patch)) = milliseconds(|| take(world, &worktree, &format!("task-bench-{round}")))?;
        let (peer, their_patch) = milliseconds(|| {
            git(&theirs, &["add", "-A"])?;
            git(&theirs, &["diff", "--cached", "--binary"])
        })?;
        ensure!(git(&theirs, &["write-tree"])? == tree.to_string(), "the trees differ");
        let files = |patch: &str| patch.matches("diff --git ").count();
        let ours_text = String::from_utf8(patch)?;
        ensure!(files(&ours_text) == 25 && files(&their_patch) == 25, "a patch is not whole");
        git(&theirs, &["reset", "--quiet", "--hard"])?;
        pairs.push(ours, peer);
    }
    Ok(pairs)
}

fn main() -> Result<()> {
    let world = World::make()?;
    let worktrees = worktrees(&world)?;
    let harvests = harvests(&world)?;
    Pairs::header();
    worktrees.print();
    harvests.print();
    println!("peers: git worktree add; git add -A and git diff --cached --binary (ours: with the commit)");
    let _ = fs::remove_dir_all(world.folder.path().join("theirs"));
    Ok(())
}
