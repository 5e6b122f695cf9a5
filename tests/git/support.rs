//! A world for one test: a folder on a real file system, an upstream repository made with the real git,
//! our mirror of it. What the test mounted is unmounted when it ends, also by a panic.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use git2::Oid;
use kage::git::{
    base::{Base, Bases, CheckoutLimits, Settings},
    error::HarvestError,
    harvest::{Harvest, HarvestLimits, harvest},
    mirror::{FetchLimits, Mirror},
    worktree::{Mode, Worktree},
};

/// The sandbox's user in these tests.
pub const UID: u32 = 10001;
pub const BOTH: [Mode; 2] = [Mode::Overlay, Mode::Copy];

pub struct World {
    folder: PathBuf,
    pub upstream: PathBuf,
}

impl World {
    pub fn new() -> Result<World> {
        // The figures can be taken on another file system.
        let parent = std::env::var_os("KAGE_TEST_FOLDER").unwrap_or(env!("CARGO_TARGET_TMPDIR").into());
        let folder = tempfile::Builder::new().prefix("git-").tempdir_in(parent)?.keep();
        let upstream = folder.join("upstream");
        fs::create_dir(&upstream)?;
        let world = World { folder, upstream };
        world.git(&world.upstream, ["init", "-q", "-b", "main"])?;
        Ok(world)
    }

    /// A world whose upstream has one commit with these files.
    pub fn with_files(files: &[(&str, &str)]) -> Result<World> {
        let world = World::new()?;
        for (name, content) in files {
            let path = world.upstream.join(name);
            fs::create_dir_all(path.parent().context("a file has a folder")?)?;
            fs::write(path, content)?;
        }
        world.commit_all()?;
        Ok(world)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn commit_all(&self) -> Result<()> {
        self.git(&self.upstream, ["add", "-A"])?;
        self.git(&self.upstream, ["commit", "-q", "--allow-empty", "-m", "a commit"])?;
        Ok(())
    }

    /// The real git in an ordinary folder, without the machine's settings.
    pub fn git<A: AsRef<OsStr>>(&self, folder: &Path, args: impl IntoIterator<Item = A>) -> Result<String> {
        let bytes = self.git_bytes(folder, args)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    pub fn git_bytes<A: AsRef<OsStr>>(
        &self,
        folder: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Vec<u8>> {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let output = plain_git(folder).args(&args).output()?;
        ensure!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    pub fn mirror(&self) -> Result<Mirror> {
        let mirror = Mirror::create(&self.path("mirror.git"))?;
        mirror.fetch(self.upstream.to_str().context("plain path")?, &fetch_limits())?;
        Ok(mirror)
    }

    pub fn bases(&self) -> Result<Bases> {
        Ok(Bases::open(&self.path("bases"))?)
    }

    /// Collects until so many unused bases are gone. A program that another test is about to start holds our locks until
    /// it has begun.
    pub fn collect_bases(&self, wanted: u64) -> Result<()> {
        let start = Instant::now();
        let mut gone = 0;
        while gone < wanted {
            ensure!(
                start.elapsed() < Duration::from_secs(30),
                "{gone} of {wanted} unused bases were collected"
            );
            gone += self.bases()?.collect(&self.path("runs"), Duration::ZERO)?.bases;
        }
        ensure!(gone == wanted, "{gone} instead of {wanted} bases were collected");
        Ok(())
    }

    pub fn base(&self, mirror: &Mirror) -> Result<Base> {
        let commit = match mirror.default_branch()? {
            Some(branch) => mirror.resolve(&branch)?,
            None => None,
        };
        Ok(self.bases()?.acquire(mirror, commit, &settings())?)
    }

    /// A run's worktree, ready for the sandbox.
    pub fn worktree(&self, mirror: &Mirror, name: &str, mode: Mode) -> Result<Worktree> {
        let base = self.base(mirror)?;
        Ok(Worktree::create(&self.path("runs").join(name), &base, mode)?)
    }

    /// A shell script in a worktree, as the sandbox's user, with the worktree at an ordinary place.
    pub fn in_sandbox(&self, worktree: &Worktree, script: &str) -> Result<String> {
        let output = Command::new("unshare")
            .args(["--mount", "bash", "-euc"])
            .arg(format!(
                "mount --bind \"$0\" /mnt; cd /mnt; umask 022; exec setpriv --reuid={UID} --regid={UID} --clear-groups \
                 --no-new-privs --bounding-set=-all env -i PATH=/usr/bin:/bin HOME=/nonexistent bash -euc \"$1\""
            ))
            .arg(worktree.path())
            .arg(script)
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        Ok(text(&output.stdout))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let inside = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for mount in inside.filter(|mount| Path::new(mount).starts_with(&self.folder)) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
        // `rm` copes with the depths that the attack tests make.
        let _ = Command::new("rm").arg("-rf").arg(&self.folder).status();
    }
}

pub fn plain_git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder)
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/local/bin")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_COUNT", "4")
        .envs([("GIT_CONFIG_KEY_0", "user.name"), ("GIT_CONFIG_VALUE_0", "somebody")])
        .envs([("GIT_CONFIG_KEY_1", "user.email"), ("GIT_CONFIG_VALUE_1", "somebody@localhost")])
        .envs([("GIT_CONFIG_KEY_2", "safe.directory"), ("GIT_CONFIG_VALUE_2", "*")])
        .envs([("GIT_CONFIG_KEY_3", "core.quotePath"), ("GIT_CONFIG_VALUE_3", "true")]);
    git
}

pub fn fetch_limits() -> FetchLimits {
    FetchLimits { time: Duration::from_secs(120), bytes: 4 << 30 }
}

pub fn settings() -> Settings {
    Settings {
        history_depth: 0,
        owner: Some((UID, UID)),
        branch: None,
        hidden: Vec::new(),
        limits: CheckoutLimits::default(),
    }
}

/// Harvests; the objects are in the mirror then, for git to look at.
pub fn take(mirror: &Mirror, worktree: &Worktree) -> Result<Harvest, HarvestError> {
    worktree.unmount()?;
    let mut harvest = harvest(mirror, worktree, &HarvestLimits::default())?;
    harvest.objects.write(mirror)?.flush()?;
    Ok(harvest)
}

/// `git ls-tree -r` of a tree of the mirror: what a result holds, in one readable text.
pub fn listing(world: &World, mirror: &Mirror, tree: Oid) -> Result<String> {
    world.git(mirror.path(), ["ls-tree", "-r", "--name-only", &tree.to_string()])
}
