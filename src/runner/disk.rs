//! What holds each run's worktree within its limits: a file system of its own, or somebody who looks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::config::runner::{DiskMode, RunnerConfig};
use crate::disk::image::{self, Images};
use crate::disk::loop_nodes;
use crate::disk::usage::{self, Allowance, Over};
use crate::domain::limits::Enforcement;
use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;
use crate::git::worktree::{self, DISK};
use crate::runner::drive::Drive;
use crate::runner::failure::{RunFailure, StartError};
use crate::runner::room;

/// Between two looks at least; a look that takes long is repeated less often, so that it stays a tenth of one CPU.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const SHARE: u32 = 10;

#[derive(Debug)]
pub(super) enum Disk {
    Image(Images),
    Watch,
}

impl Disk {
    /// Finds out what this machine can do. Blocks.
    pub fn open(config: &RunnerConfig, folder: &Path) -> Result<Self, StartError> {
        if config.disk == DiskMode::Watch {
            return Ok(Self::Watch);
        }
        loop_nodes::provide();
        let limits = &config.limits;
        match Images::open(folder, limits.worktree_bytes, limits.worktree_inodes) {
            Ok(images) => Ok(Self::Image(images)),
            Err(error) if config.disk == DiskMode::Auto => {
                tracing::warn!(%error, "runner.disk_limits_are_soft");
                Ok(Self::Watch)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub const fn enforcement(&self) -> Enforcement {
        match self {
            Self::Image(_) => Enforcement::Hard,
            Self::Watch => Enforcement::Soft,
        }
    }

    /// What a run really gets.
    pub const fn inodes(&self, asked: u64) -> u64 {
        match self {
            Self::Image(images) => images.inodes(),
            Self::Watch => asked,
        }
    }

    /// Gives a run its file system, empty, if it is to have one. Blocks.
    pub fn provide(&self, run: &Path) -> Result<(), RunFailure> {
        worktree::detach(run)?;
        if let Self::Image(images) = self {
            images.mount(run, DISK)?;
        }
        Ok(())
    }
}

/// Sees that what a run has written is on the disk, or says that it is not. Blocks.
pub(super) fn settle(run: &Path) -> Result<(), RunFailure> {
    if room::is_full(run) {
        // What is still in memory stays there, unless the kernel wants to write it.
        return Err(RunFailure::Refused("the data folder's disk: no space left on device".to_owned()));
    }
    Ok(image::settle(run, DISK)?)
}

/// Looks at one run's worktree, if nothing else holds it.
#[derive(Clone)]
pub(super) struct DiskWatch {
    /// What grows; none: the kernel holds it.
    root: Option<PathBuf>,
    allowance: Allowance,
    threads: TaskTracker,
}

impl DiskWatch {
    /// A worktree that is not there, or broken, is the harvest's matter.
    pub fn of(drive: Drive<'_>, run: Uuid) -> Self {
        let worktree = Drive::worktree(drive.environment, run).ok().flatten();
        let limits = &drive.environment.config.limits;
        Self {
            root: worktree.filter(|worktree| !worktree.is_apart()).map(|worktree| worktree.grows()),
            allowance: Allowance { bytes: limits.worktree_bytes, inodes: limits.worktree_inodes },
            threads: drive.here.threads.clone(),
        }
    }

    /// Until the worktree is over a limit.
    pub async fn over(self) -> Verdict {
        if self.root.is_none() {
            return std::future::pending().await;
        }
        loop {
            let began = Instant::now();
            if let Some(verdict) = self.look().await {
                return verdict;
            }
            sleep(LOOK_EVERY.max(began.elapsed() * SHARE)).await;
        }
    }

    /// Whether it is over a limit now.
    pub async fn look(&self) -> Option<Verdict> {
        let root = self.root.clone()?;
        let allowance = self.allowance;
        let looked = self.threads.spawn_blocking(move || usage::over(&root, allowance)).await;
        match looked {
            Ok(Ok(over)) => over.map(|over| self.verdict(over)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "runner.worktree_not_measured");
                None
            }
            Err(error) => {
                tracing::error!(%error, "runner.worktree_not_measured");
                None
            }
        }
    }

    fn verdict(&self, over: Over) -> Verdict {
        let Allowance { bytes, inodes } = self.allowance;
        let error = match over {
            Over::Bytes => format!("its worktree grew by more than {bytes} bytes"),
            Over::Inodes => format!("its worktree grew by more than {inodes} files and folders"),
            Over::Depth => "its worktree has too many folders one in another to be measured".to_owned(),
        };
        Verdict::new(RunState::DiskLimit, error)
    }
}
