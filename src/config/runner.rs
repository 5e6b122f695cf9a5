//! What `kage runner` needs.

use std::path::PathBuf;

use crate::config::error::ConfigError;
use crate::config::settings::Settings;
use crate::domain::limits::Limits;
use crate::domain::name::Name;
use crate::domain::repository::AllowedSources;
use crate::secret::watched::Secret;

pub const NAMES: [&str; 46] = [
    "KAGE_REPOSITORIES_ALLOW",
    "KAGE_REPOSITORIES_ALLOW_PRIVATE",
    "KAGE_DATA_DIR",
    "KAGE_INSTANCE",
    "KAGE_RUNNER_CONCURRENCY",
    "KAGE_RUNNER_REPOSITORY_CONCURRENCY",
    "KAGE_RUNNER_DOCKER",
    "KAGE_RUNNER_SHIM",
    "KAGE_RUNNER_RUNTIME",
    "KAGE_RUNNER_RUNTIMES_ALLOWED",
    "KAGE_RUNNER_RECORD_ADDRESSES",
    "KAGE_RUNNER_KEEPER",
    "KAGE_RUNNER_ACCEPT_HOST",
    "KAGE_RUNNER_UID",
    "KAGE_RUNNER_GATEWAY_UID",
    "KAGE_RUNNER_FETCH_UID",
    "KAGE_RUNNER_WORKTREE",
    "KAGE_RUNNER_DISK",
    "KAGE_RUNNER_HISTORY",
    "KAGE_RUNNER_BASE_BYTES",
    "KAGE_RUNNER_BASE_FILE_BYTES",
    "KAGE_RUNNER_BASE_FILES",
    "KAGE_RUNNER_BASES_BYTES",
    "KAGE_RUNNER_BASES_FILES",
    "KAGE_RUNNER_BASES_IDLE_SECS",
    "KAGE_RUNNER_RESERVE_BYTES",
    "KAGE_RUNNER_DISK_SOFT_PERCENT",
    "KAGE_RUNNER_DISK_HARD_PERCENT",
    "KAGE_RUNNER_LOG_COPY_BYTES",
    "KAGE_RUNNER_GRACE_SECS",
    "KAGE_RUNNER_ORPHAN_SECS",
    "KAGE_RUNNER_LEASE_SECS",
    "KAGE_RUNNER_DRAIN_SECS",
    "KAGE_LIMIT_MEMORY_BYTES",
    "KAGE_LIMIT_CPU_MILLIS",
    "KAGE_LIMIT_PIDS",
    "KAGE_LIMIT_OPEN_FILES",
    "KAGE_LIMIT_FILE_BYTES",
    "KAGE_LIMIT_WORKTREE_BYTES",
    "KAGE_LIMIT_WORKTREE_INODES",
    "KAGE_LIMIT_TMP_BYTES",
    "KAGE_LIMIT_IDLE_SECS",
    "KAGE_LIMIT_OUTPUT_BYTES",
    "KAGE_LIMIT_RESULT_FILES",
    "KAGE_LIMIT_RESULT_BYTES",
    "KAGE_LIMIT_RESULT_FILE_BYTES",
];

/// How a run gets its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorktreeMode {
    /// Overlay where it can be mounted, else a copy.
    Auto,
    Overlay,
    Copy,
}

impl std::str::FromStr for WorktreeMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "overlay" => Ok(Self::Overlay),
            "copy" => Ok(Self::Copy),
            _ => Err("it is auto, overlay or copy"),
        }
    }
}

/// What holds a worktree within its limits of bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskMode {
    /// An image where one can be mounted, else a watcher.
    Auto,
    /// A file system of its own for each run, in a sparse file: the kernel enforces both limits.
    Image,
    /// The runner looks every few seconds, and ends a run that is over.
    Watch,
}

impl std::str::FromStr for DiskMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "image" => Ok(Self::Image),
            "watch" => Ok(Self::Watch),
            _ => Err("it is auto, image or watch"),
        }
    }
}

/// Who starts the keeper of refused calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperMode {
    /// The runner, where none answers.
    Auto,
    /// A service of its own.
    External,
}

impl std::str::FromStr for KeeperMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "external" => Ok(Self::External),
            _ => Err("it is auto or external"),
        }
    }
}

/// What checkouts of base revisions may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BasesConfig {
    /// Bytes of one of them.
    pub each_bytes: u64,
    /// Bytes of one file in it; so much of files is held in memory while it is made.
    pub file_bytes: u64,
    /// Files and folders of one of them.
    pub each_files: u64,
    /// Bytes of all of them.
    pub all_bytes: u64,
    /// Files and folders of all of them.
    pub all_files: u64,
    /// Seconds after which one that nobody asked for is removed.
    pub idle_secs: u64,
    /// Bytes of the data folder's file system that stay free when one is made.
    pub reserve_bytes: u64,
}

/// What should be free of the data folder's file system, of bytes and of inodes, in percent; 0: no such mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskMarks {
    /// Below it no new run is begun.
    pub soft: u8,
    /// Below it checkouts that no run uses go at once.
    pub hard: u8,
}

#[derive(Debug, Clone)]
pub struct RunnerConfig {
    pub data_dir: PathBuf,
    /// In every label: tells our containers from another installation's.
    pub instance: Name,
    /// Runs at once.
    pub concurrency: usize,
    /// Runs at once of one repository, over all runners; `None`: as many as there are.
    pub repository_concurrency: Option<u32>,
    /// Engine's socket, as a `unix://` URL.
    pub docker: String,
    /// The static `kage-shim`; default: beside this program.
    pub shim: Option<PathBuf>,
    /// Another OCI runtime, such as `runsc`.
    pub runtime: Option<String>,
    /// Those that a task or an image may ask for, beside that one.
    pub runtimes_allowed: Vec<String>,
    /// Whether addresses that programs want to reach are recorded.
    pub record_addresses: bool,
    pub keeper: KeeperMode,
    /// Dangers of this host that the operator accepts, by the ids of their findings.
    pub accept_host: Vec<String>,
    /// UID and GID of the sandboxes when we are root; never 0.
    pub uid: u32,
    /// UID of `kage gateway`; default: our own.
    pub gateway_uid: Option<u32>,
    /// UID and GID of fetches when we are root; never 0.
    pub fetch_uid: u32,
    pub worktree: WorktreeMode,
    pub disk: DiskMode,
    /// Commits of history in a worktree's `.git`; 0: all.
    pub history: u32,
    pub bases: BasesConfig,
    pub marks: DiskMarks,
    /// Bytes of a copy of the output in the engine's own log; 0: none.
    pub log_copy_bytes: u64,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_secs: u64,
    /// Seconds that a CLI works on without a runner.
    pub orphan_secs: u64,
    /// Seconds after which a runner that does not renew a lease has lost it.
    pub lease_secs: i32,
    /// Seconds that runs may go on after the first signal.
    pub drain_secs: u64,
    pub limits: Limits,
    pub sources: AllowedSources,
    /// What must not be stored of a run's output: those that were read before this.
    pub secrets: Vec<Secret>,
}

impl RunnerConfig {
    /// See the table in the README for each variable and its default.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let docker = settings.or("KAGE_RUNNER_DOCKER", "unix:///var/run/docker.sock".to_owned())?;
        if !docker.starts_with("unix:///") {
            let problem = "it is a unix:// URL with an absolute path".to_owned();
            return Err(ConfigError::Invalid { name: "KAGE_RUNNER_DOCKER".to_owned(), problem });
        }
        let data_dir: PathBuf = settings.or("KAGE_DATA_DIR", "/var/lib/kage".to_owned())?.into();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '.');
        if !data_dir.is_absolute() || !data_dir.to_string_lossy().chars().all(plain) {
            let problem = "it is an absolute path of letters, digits, '/', '_', '-' and '.'".to_owned();
            return Err(ConfigError::Invalid { name: "KAGE_DATA_DIR".to_owned(), problem });
        }
        let uid = settings.within("KAGE_RUNNER_UID", 10_001, 1, u64::from(u32::MAX - 1))? as u32;
        let fetch_uid = settings.within("KAGE_RUNNER_FETCH_UID", 10_014, 1, u64::from(u32::MAX - 1))? as u32;
        if uid == fetch_uid {
            let problem =
                "sandboxes have this user (KAGE_RUNNER_UID); fetches need one of their own".to_owned();
            return Err(ConfigError::Invalid { name: "KAGE_RUNNER_FETCH_UID".to_owned(), problem });
        }
        Ok(Self {
            data_dir,
            instance: settings.optional("KAGE_INSTANCE")?.unwrap_or_else(|| {
                settings.mask_last("default".to_owned());
                "default".parse().expect("a plain name")
            }),
            concurrency: settings.within("KAGE_RUNNER_CONCURRENCY", 4, 1, 1000)? as usize,
            repository_concurrency: match settings.within(
                "KAGE_RUNNER_REPOSITORY_CONCURRENCY",
                0,
                0,
                100_000,
            )? {
                0 => None,
                most => Some(most as u32),
            },
            docker,
            shim: settings.optional("KAGE_RUNNER_SHIM")?,
            runtime: settings.optional("KAGE_RUNNER_RUNTIME")?,
            runtimes_allowed: settings.list("KAGE_RUNNER_RUNTIMES_ALLOWED"),
            record_addresses: settings.or("KAGE_RUNNER_RECORD_ADDRESSES", true)?,
            keeper: settings.optional("KAGE_RUNNER_KEEPER")?.unwrap_or_else(|| {
                settings.mask_last("auto".to_owned());
                KeeperMode::Auto
            }),
            accept_host: settings.list("KAGE_RUNNER_ACCEPT_HOST"),
            uid,
            gateway_uid: settings.optional("KAGE_RUNNER_GATEWAY_UID")?,
            fetch_uid,
            worktree: settings.optional("KAGE_RUNNER_WORKTREE")?.unwrap_or_else(|| {
                settings.mask_last("auto".to_owned());
                WorktreeMode::Auto
            }),
            disk: settings.optional("KAGE_RUNNER_DISK")?.unwrap_or_else(|| {
                settings.mask_last("auto".to_owned());
                DiskMode::Auto
            }),
            history: settings.within("KAGE_RUNNER_HISTORY", 50, 0, 1_000_000)? as u32,
            bases: bases(settings)?,
            marks: marks(settings)?,
            log_copy_bytes: settings.within("KAGE_RUNNER_LOG_COPY_BYTES", 0, 0, 1 << 30)?,
            grace_secs: settings.within("KAGE_RUNNER_GRACE_SECS", 5, 0, 300)?,
            orphan_secs: settings.within("KAGE_RUNNER_ORPHAN_SECS", 900, 10, 86_400)?,
            lease_secs: settings.within("KAGE_RUNNER_LEASE_SECS", 30, 5, 3600)? as i32,
            drain_secs: settings.within("KAGE_RUNNER_DRAIN_SECS", 600, 0, 86_400)?,
            limits: limits(settings)?,
            sources: AllowedSources::new(settings.list("KAGE_REPOSITORIES_ALLOW"))
                .with_private_hosts(settings.list("KAGE_REPOSITORIES_ALLOW_PRIVATE")),
            secrets: settings.secrets().to_vec(),
        })
    }
}

fn bases(settings: &mut Settings) -> Result<BasesConfig, ConfigError> {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const TIB: u64 = 1 << 40;
    Ok(BasesConfig {
        each_bytes: settings.within("KAGE_RUNNER_BASE_BYTES", 4 * GIB, MIB, TIB)?,
        file_bytes: settings.within("KAGE_RUNNER_BASE_FILE_BYTES", 256 * MIB, MIB, 4 * GIB)?,
        each_files: settings.within("KAGE_RUNNER_BASE_FILES", 1_000_000, 100, 100_000_000)?,
        all_bytes: settings.within("KAGE_RUNNER_BASES_BYTES", 20 * GIB, MIB, 1024 * TIB)?,
        all_files: settings.within("KAGE_RUNNER_BASES_FILES", 5_000_000, 100, 1_000_000_000)?,
        idle_secs: settings.within("KAGE_RUNNER_BASES_IDLE_SECS", 86_400, 60, 315_360_000)?,
        reserve_bytes: settings.within("KAGE_RUNNER_RESERVE_BYTES", GIB, 0, TIB)?,
    })
}

fn marks(settings: &mut Settings) -> Result<DiskMarks, ConfigError> {
    let soft = settings.within("KAGE_RUNNER_DISK_SOFT_PERCENT", 10, 0, 99)? as u8;
    let hard = settings.within("KAGE_RUNNER_DISK_HARD_PERCENT", u64::from(soft.min(5)), 0, 99)? as u8;
    if hard > soft {
        let problem =
            format!("{hard} is above KAGE_RUNNER_DISK_SOFT_PERCENT ({soft}), which is to be reached first");
        return Err(ConfigError::Invalid { name: "KAGE_RUNNER_DISK_HARD_PERCENT".to_owned(), problem });
    }
    Ok(DiskMarks { soft, hard })
}

fn limits(settings: &mut Settings) -> Result<Limits, ConfigError> {
    let default = Limits::default();
    const TIB: u64 = 1 << 40;
    const MIB: u64 = 1 << 20;
    Ok(Limits {
        memory_bytes: settings.within("KAGE_LIMIT_MEMORY_BYTES", default.memory_bytes, 16 * MIB, TIB)?,
        cpu_millis: settings.within("KAGE_LIMIT_CPU_MILLIS", default.cpu_millis, 10, 1_024_000)?,
        pids: settings.within("KAGE_LIMIT_PIDS", u64::from(default.pids), 8, 1 << 20)? as u32,
        open_files: settings.within("KAGE_LIMIT_OPEN_FILES", u64::from(default.open_files), 64, 1 << 20)?
            as u32,
        file_bytes: settings.within("KAGE_LIMIT_FILE_BYTES", default.file_bytes, MIB, TIB)?,
        worktree_bytes: settings.within(
            "KAGE_LIMIT_WORKTREE_BYTES",
            default.worktree_bytes,
            16 * MIB,
            TIB,
        )?,
        worktree_inodes: settings.within(
            "KAGE_LIMIT_WORKTREE_INODES",
            default.worktree_inodes,
            1000,
            100_000_000,
        )?,
        tmp_bytes: settings.within("KAGE_LIMIT_TMP_BYTES", default.tmp_bytes, MIB, TIB)?,
        idle_secs: settings.within("KAGE_LIMIT_IDLE_SECS", default.idle_secs, 1, 86_400)?,
        output_bytes: settings.within("KAGE_LIMIT_OUTPUT_BYTES", default.output_bytes, 1 << 10, TIB)?,
        result_files: settings.within("KAGE_LIMIT_RESULT_FILES", default.result_files, 1, 10_000_000)?,
        result_bytes: settings.within("KAGE_LIMIT_RESULT_BYTES", default.result_bytes, MIB, TIB)?,
        result_file_bytes: settings.within(
            "KAGE_LIMIT_RESULT_FILE_BYTES",
            default.result_file_bytes,
            1 << 10,
            TIB,
        )?,
    })
}
