//! What the runner's loops share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

use crate::config::runner::RunnerConfig;
use crate::git::base::Bases;
use crate::git::quarantine::Scanner;
use crate::git::room::BasesLimits;
use crate::lifecycle::Lifecycle;
use crate::redact::known::Known;
use crate::runner::disk::Disk;
use crate::runner::failure::StartError;
use crate::runner::folders::Folders;
use crate::runner::keeper::KeeperAccess;
use crate::runner::lease::Leases;
use crate::runner::notifier::Notifier;
use crate::runner::runtimes::Runtimes;
use crate::runner::unfinished;
use crate::runner::watermark::Watermark;
use crate::sandbox::engine::Engine;
use crate::sandbox::error::SandboxError;
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::spec::SandboxUser;

/// Between two tries to reach an engine that is started anew.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Environment {
    pub pool: PgPool,
    pub config: RunnerConfig,
    pub lifecycle: Lifecycle,
    pub id: Uuid,
    pub folders: Folders,
    pub bases: Bases,
    /// Finds what runs must not see.
    pub scanner: Scanner,
    pub engine: Engine,
    pub disk: Disk,
    pub watermark: Watermark,
    pub runtimes: Runtimes,
    /// For a runtime that does not tell of refused calls.
    pub seccomp: SeccompProfile,
    /// Has refused calls counted; `None`: no runtime tells of them.
    pub keeper: Option<KeeperAccess>,
    /// Secrets that must not be stored.
    pub known: Arc<Known>,
    /// On the host, where the engine finds it.
    pub shim: PathBuf,
    pub user: SandboxUser,
    /// To whom a run's model folder is given; `None`: it stays ours.
    pub gateway_uid: Option<u32>,
    pub leases: Leases,
    pub notifier: Notifier,
    /// One permit a run.
    pub slots: Arc<Semaphore>,
    /// A container was left that could not be removed.
    pub sweep: Notify,
    /// There may be something to claim.
    pub wake: Notify,
}

impl Environment {
    pub async fn open(
        pool: PgPool,
        mut config: RunnerConfig,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<Self>, StartError> {
        let folders = Folders::open(&config.data_dir)?;
        unfinished::remove(&folders);
        let shim = match &config.shim {
            Some(path) => path.clone(),
            None => beside_this_program("kage-shim"),
        };
        let (own_uid, own_gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (uid, gid) = if own_uid == 0 { (config.uid, config.uid) } else { (own_uid, own_gid) };
        let gateway_uid = config.gateway_uid.filter(|uid| *uid != own_uid);
        if let Some(uid) = gateway_uid.filter(|_| own_uid != 0) {
            return Err(StartError::GatewayUser(uid));
        }
        let engine = answering(&config.docker).await?;
        let info = engine.info().await?;
        let user = SandboxUser::new(uid, gid).ok_or(StartError::User(uid))?;
        // Where it is not known who that is on the host, the check of the host says so.
        let user = user.of_engine(info.users).unwrap_or(user);
        let runtimes = Runtimes::open(&engine, info, &config).await?;
        let keeper = keeper(&runtimes, &config, &folders).await?;
        let disk = Disk::open(&config, &folders.disk())?;
        config.limits.worktree_inodes = disk.inodes(config.limits.worktree_inodes);
        Ok(Arc::new(Self {
            id: folders.runner_id()?,
            shim: folders.install_shim(&shim)?,
            bases: Bases::open(&folders.bases())?.bounded(bases_limits(&config), &folders.runs()),
            scanner: Scanner::default(),
            user,
            gateway_uid,
            slots: Arc::new(Semaphore::new(config.concurrency)),
            seccomp: SeccompProfile::built_in(),
            keeper,
            disk,
            watermark: Watermark::default(),
            runtimes,
            leases: Leases::default(),
            notifier: Notifier::default(),
            sweep: Notify::new(),
            wake: Notify::new(),
            lifecycle: lifecycle.clone(),
            known: Arc::new(Known::new(&config.secrets)),
            folders,
            engine,
            pool,
            config,
        }))
    }

    /// Whether the loops that serve runs may end: no run is left after the soft token, or the hard one has come.
    pub fn has_ended_work(&self) -> bool {
        let drained = self.lifecycle.soft().is_cancelled() && self.leases.is_empty();
        drained || self.lifecycle.hard().is_cancelled()
    }

    /// Whose files a worktree's are on the host: the sandbox's user's when we may give files away, else our own.
    pub fn file_owner(&self) -> Option<(u32, u32)> {
        rustix::process::geteuid().is_root().then(|| self.user.on_host())
    }
}

/// One that stands still is waited for, also while somebody starts it anew: this host's runs go on meanwhile. One that
/// is not there at all may never have been.
async fn answering(uri: &str) -> Result<Engine, SandboxError> {
    let mut silent = false;
    loop {
        let answer = async {
            let engine = Engine::connect(uri).await?;
            engine.ping().await.map(|()| engine)
        };
        match answer.await {
            Err(error @ SandboxError::Deadline { .. }) => {
                silent = true;
                tracing::warn!(%error, engine = uri, "runner.engine_silent: it is asked again");
            }
            Err(error @ SandboxError::EngineUnavailable { .. }) if silent => {
                tracing::warn!(%error, "runner.engine_away: it is asked again");
                tokio::time::sleep(ENGINE_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Only where a runtime is one that hands over its listener.
async fn keeper(
    runtimes: &Runtimes,
    config: &RunnerConfig,
    folders: &Folders,
) -> Result<Option<KeeperAccess>, StartError> {
    if !runtimes.any_reports() {
        tracing::warn!("runner.refusals_not_recorded: no runtime tells of refused system calls");
        return Ok(None);
    }
    KeeperAccess::open(config, folders.refusals()).await.map(Some)
}

fn beside_this_program(name: &str) -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.join(name)))
        .unwrap_or_else(|| PathBuf::from(name))
}

const fn bases_limits(config: &RunnerConfig) -> BasesLimits {
    let of = config.bases;
    BasesLimits { bytes: of.all_bytes, entries: of.all_files, reserve_bytes: of.reserve_bytes }
}
