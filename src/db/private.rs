//! A PostgreSQL cluster of our own, for `kage serve` on a machine where nobody set one up: made in the data
//! folder by the PostgreSQL programs that are there, reached through a socket in a closed folder, without a port.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use secrecy::SecretString;
use tokio::process::Command;

use crate::db::private_leftovers;
use crate::db::private_log;
use crate::db::private_postmaster::{self, Postmaster};

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(
        "no database is configured (KAGE_DATABASE_URL) and no PostgreSQL programs are here to run a private one: \
         install the package `postgresql` or set KAGE_DATABASE_URL"
    )]
    NoPrograms,
    #[error(
        "PostgreSQL does not run as root, and this machine has no user `postgres`: set KAGE_DATABASE_URL"
    )]
    NoUser,
    #[error("another `kage serve` works in {path}: one for each KAGE_DATA_DIR", path = .0.display())]
    Taken(PathBuf),
    #[error("{path}: {source}", path = path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(
        "a PostgreSQL server (process {pid}) still runs with the data folder {path}, and is not the one of what is there now: the \
         folder was moved or replaced under it, and it writes there when it ends. End it first: kill -INT {pid}",
        path = path.display()
    )]
    Stranger { pid: u32, path: PathBuf },
    #[error("the PostgreSQL server does not start: {why}; its log is {log}", log = log.display())]
    NoStart { why: String, log: PathBuf },
    #[error(
        "the PostgreSQL server (process {pid}) has ended and nobody here ended it; its log is {log}. Start `kage serve` again",
        log = log.display()
    )]
    Gone { pid: u32, log: PathBuf },
    #[error("{program} failed: {said}")]
    Program { program: &'static str, said: String },
    #[error("{path} is too long for a socket's path (107 bytes): choose a shorter KAGE_DATA_DIR", path = .0.display())]
    PathTooLong(PathBuf),
}

/// A running cluster; [`Cluster::stop`] ends it, a process that dies leaves it running for the next one.
#[derive(Debug)]
pub struct Cluster {
    root: PathBuf,
    bin: PathBuf,
    /// Whose the server is: PostgreSQL refuses to run as root.
    user: Option<(u32, u32)>,
    /// From its start on.
    postmaster: Option<Postmaster>,
    /// Never read: only who holds it may stop the server.
    _lock: File,
}

const DATABASE: &str = "kage";
/// For the end of a server that has let go of its lock.
const STRANGER_WITHIN: Duration = Duration::from_secs(10);
/// Also the recovery after a crash.
const START_WITHIN: Duration = Duration::from_secs(60);

impl Cluster {
    /// The URL of the cluster below `data_dir`, if one was made there.
    pub fn url_of(data_dir: &Path) -> Option<SecretString> {
        let root = data_dir.join("postgres");
        root.join("data/PG_VERSION").exists().then(|| url(&root))
    }

    /// Makes the cluster if need be, and starts it; one that runs already is used.
    ///
    /// # Errors
    /// [`ClusterError`] says what is missing, and what to do.
    pub async fn start(data_dir: &Path) -> Result<Self, ClusterError> {
        let bin = programs().ok_or(ClusterError::NoPrograms)?;
        let user = if rustix::process::geteuid().is_root() { Some(postgres_user()?) } else { None };
        let root = data_dir.join("postgres");
        if root.as_os_str().len() > 80 {
            return Err(ClusterError::PathTooLong(root));
        }
        make_folders(data_dir, &root, user)?;
        let mut this = Self { _lock: lock(&root)?, root, bin, user, postmaster: None };
        this.wait_for_strangers().await?;
        if !this.data().join("PG_VERSION").exists() {
            tracing::info!(path = %this.data().display(), "cluster.making");
            let data = this.data();
            let args = ["--username=kage", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--pgdata"];
            let args = args.iter().map(OsStr::new).chain([data.as_os_str()]);
            this.run("initdb", args).await?;
        }
        this.begin().await?;
        let running = Postmaster::of(&this.data());
        let running = running.map_err(|source| ClusterError::Folder { path: this.data(), source })?;
        this.postmaster = Some(running);
        let socket = this.socket().display().to_string();
        let made =
            this.run("createdb", ["--host", &socket, "--username=kage", DATABASE].map(OsStr::new)).await;
        match made {
            Err(ClusterError::Program { said, .. }) if said.contains("already exists") => {}
            other => other?,
        }
        Ok(this)
    }

    /// One that is on its way out has let go of its lock already, and is waited for.
    async fn wait_for_strangers(&self) -> Result<(), ClusterError> {
        let deadline = Instant::now() + STRANGER_WITHIN;
        loop {
            match refuse_stranger_in(&self.data()) {
                Err(ClusterError::Stranger { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                result => return result,
            }
        }
    }

    /// Until it answers. One that was killed may leave processes, for whose end a new one has to wait, and
    /// looks alive while its first process is not reaped, or its number is another's.
    async fn begin(&self) -> Result<(), ClusterError> {
        let socket = self.socket().display().to_string();
        let options = format!("-c listen_addresses='' -c unix_socket_permissions=0700 -k {socket}");
        let path = self.log();
        let written = fs::metadata(&path).map_or(0, |log| log.len());
        let log = path.display().to_string();
        let start = ["start", "--wait", "--timeout=60", "--log", &log, "--options", &options];
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let ready = self.run("pg_isready", ["--quiet", "--host", &socket].map(OsStr::new)).await;
            let Err(mut error) = ready else { return Ok(()) };
            let (data, socket) = (self.data(), self.socket());
            let removed = private_leftovers::remove(&data, &socket);
            removed.map_err(|source| ClusterError::Folder { path: data, source })?;
            if self.pg_ctl(&["status"]).await.is_err() {
                match self.pg_ctl(&start).await {
                    Ok(()) => continue,
                    Err(refusal) => error = refusal,
                }
            }
            if Instant::now() >= deadline {
                let why = private_log::last_words(&path, written).unwrap_or_else(|| error.to_string());
                return Err(ClusterError::NoStart { why, log: path });
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The server's first process, once it has been started.
    pub fn postmaster(&self) -> Option<Postmaster> {
        self.postmaster.clone()
    }

    pub fn url(&self) -> SecretString {
        url(&self.root)
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// [`ClusterError::Gone`] if it has ended already, [`ClusterError::Program`].
    pub async fn stop(self) -> Result<(), ClusterError> {
        if let Some(postmaster) = self.postmaster.as_ref().filter(|postmaster| postmaster.has_ended()) {
            return Err(ClusterError::Gone { pid: postmaster.pid(), log: self.log() });
        }
        self.pg_ctl(&["stop", "--mode=fast", "--wait", "--timeout=60"]).await
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    fn socket(&self) -> PathBuf {
        self.root.join("socket")
    }

    async fn pg_ctl(&self, args: &[&str]) -> Result<(), ClusterError> {
        let data = self.data();
        let args = [OsStr::new("--pgdata"), data.as_os_str()].into_iter().chain(args.iter().map(OsStr::new));
        self.run("pg_ctl", args).await
    }

    async fn run<'a>(
        &self,
        program: &'static str,
        args: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<(), ClusterError> {
        let failed = |said: String| ClusterError::Program { program, said };
        // To a file: the server inherits these descriptors and keeps a pipe open for ever.
        let output = tempfile::tempfile().map_err(|error| failed(error.to_string()))?;
        let handle = || output.try_clone().map_err(|error| failed(error.to_string()));
        let mut command = Command::new(self.bin.join(program));
        command.args(args).env_clear().env("PATH", &self.bin).env("LC_ALL", "C.UTF-8").current_dir("/");
        command.stdin(std::process::Stdio::null()).stdout(handle()?).stderr(handle()?);
        // Ctrl-C in our terminal is ours to handle: the server is ended last.
        command.process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        let status = command.status().await.map_err(|error| failed(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        let mut reader = output;
        let read = std::io::Seek::rewind(&mut reader)
            .and_then(|()| std::io::Read::read_to_string(&mut reader, &mut said));
        if read.is_err() {
            said = status.to_string();
        }
        Err(failed(said.trim().replace('\n', "; ")))
    }
}

/// Refuses where a server still runs that was started in this KAGE_DATA_DIR's cluster and is not the one of what is there now.
/// Whoever puts a data folder back into its place asks first.
///
/// # Errors
/// [`ClusterError::Stranger`] names its process; [`ClusterError::Folder`] if processes cannot be listed.
pub fn refuse_stranger(data_dir: &Path) -> Result<(), ClusterError> {
    refuse_stranger_in(&data_dir.join("postgres/data"))
}

fn refuse_stranger_in(data: &Path) -> Result<(), ClusterError> {
    let path = data.to_owned();
    match private_postmaster::stranger(data) {
        Ok(None) => Ok(()),
        Ok(Some(pid)) => Err(ClusterError::Stranger { pid, path }),
        Err(source) => Err(ClusterError::Folder { path, source }),
    }
}

/// Before anything is started or looked at: a second `kage serve` that ends must not end the first one's server.
fn lock(root: &Path) -> Result<File, ClusterError> {
    let path = root.join("serve.lock");
    let failed = |source| ClusterError::Folder { path: path.clone(), source };
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let lock = lock.map_err(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ClusterError::Taken(root.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

fn make_folders(data_dir: &Path, root: &Path, user: Option<(u32, u32)>) -> Result<(), ClusterError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ClusterError::Folder { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o711).create(data_dir).map_err(failed(data_dir))?;
    for path in [root.to_owned(), root.join("data"), root.join("socket")] {
        if !path.exists() {
            DirBuilder::new().mode(0o700).create(&path).map_err(failed(&path))?;
            if let Some((uid, gid)) = user {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(failed(&path))?;
            }
            fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(failed(&path))?;
        }
    }
    Ok(())
}

fn url(root: &Path) -> SecretString {
    let socket = root.join("socket").display().to_string().replace('/', "%2F");
    SecretString::from(format!("postgres://kage@{socket}/{DATABASE}"))
}

/// The newest server programs: Debian keeps them out of `PATH`.
fn programs() -> Option<PathBuf> {
    let complete = |folder: &PathBuf| {
        ["initdb", "pg_ctl", "pg_isready", "postgres", "createdb"]
            .iter()
            .all(|name| folder.join(name).exists())
    };
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    debian.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian.into_iter().rev().map(|(_, folder)| folder).chain(std::env::split_paths(&path)).find(complete)
}

fn postgres_user() -> Result<(u32, u32), ClusterError> {
    let passwd = fs::read_to_string("/etc/passwd").map_err(|_| ClusterError::NoUser)?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).ok_or(ClusterError::NoUser)?;
    let mut fields = line.split(':').skip(2);
    let mut number = || fields.next()?.parse().ok();
    Some((number().ok_or(ClusterError::NoUser)?, number().ok_or(ClusterError::NoUser)?))
        .ok_or(ClusterError::NoUser)
}
