//! The runner's way to the keeper of refused calls: a process of its own that outlives the runner. Where no service runs
//! one, the runner starts it, and starts another when it is gone.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use crate::config::runner::{KeeperMode, RunnerConfig};
use crate::runner::failure::StartError;
use crate::sandbox::refusals::client::{Connection, Counted, Keeper, KeeperError};
use crate::sandbox::refusals::protocol::Hello;
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::seccomp::table::Told;

/// How long one that we have started may take to answer.
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// How long a service that starts beside us may take.
const SERVICE_WITHIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct KeeperAccess {
    keeper: Keeper,
    folder: PathBuf,
    mode: KeeperMode,
    told: Told,
    /// Held for as long as we live: one that we have started ends when nobody is connected.
    present: Mutex<Option<Connection>>,
    /// The one that we found when we started.
    pub reads_addresses: bool,
    /// Tells of keepers that came and went.
    news: UnboundedSender<Seen>,
    heard: std::sync::Mutex<Option<UnboundedReceiver<Seen>>>,
}

/// A keeper that came or went.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    /// `ours`: we have started it.
    Here {
        keeper: Hello,
        ours: bool,
    },
    Gone {
        keeper: Hello,
    },
}

impl KeeperAccess {
    /// # Errors
    /// [`StartError::Keeper`]: none answers, and none can be started.
    pub async fn open(config: &RunnerConfig, folder: PathBuf) -> Result<Self, StartError> {
        let told = if config.record_addresses { Told::RefusedAndAddresses } else { Told::Refused };
        let keeper = Keeper::new(&folder);
        let (mode, present) = (config.keeper, Mutex::default());
        let (news, heard) = unbounded_channel();
        let heard = std::sync::Mutex::new(Some(heard));
        let mut this = Self { keeper, folder, mode, told, present, reads_addresses: false, news, heard };
        let mut connection = this.first().await.map_err(StartError::Keeper)?;
        if this.mode == KeeperMode::Auto && connection.hello.version != env!("CARGO_PKG_VERSION") {
            // One that holds sandboxes does as well: it speaks our protocol.
            if connection.leave().await.is_ok() {
                tracing::info!("runner.keeper_replaced: it was of another version");
            }
            connection = this.reach().await.map_err(StartError::Keeper)?;
        }
        this.reads_addresses = connection.hello.reads_addresses;
        tracing::info!(attempts = connection.hello.attempts, "runner.keeper_answers");
        Ok(this)
    }

    async fn first(&self) -> Result<Connection, KeeperError> {
        let deadline = Instant::now() + SERVICE_WITHIN;
        loop {
            match self.reach().await {
                Err(KeeperError::Away(_))
                    if self.mode == KeeperMode::External && Instant::now() < deadline =>
                {
                    sleep(PAUSE * 10).await;
                }
                reached => return reached,
            }
        }
    }

    /// A keeper that answers; starts one if that is ours to do.
    async fn reach(&self) -> Result<Connection, KeeperError> {
        // One at a time: two would each start one.
        let mut present = self.present.lock().await;
        let (connection, ours) = match self.keeper.connect().await {
            Err(KeeperError::Away(_)) if self.mode == KeeperMode::Auto => {
                if let Some(gone) = present.take() {
                    self.tell(Seen::Gone { keeper: gone.hello });
                }
                (self.start().await?, true)
            }
            connected => (connected?, false),
        };
        let process = &connection.hello.process;
        if present.as_ref().is_none_or(|present| present.hello.process != *process) {
            if let Some(gone) = present.take() {
                self.tell(Seen::Gone { keeper: gone.hello });
            }
            *present = Some(self.keeper.connect().await?);
            self.tell(Seen::Here { keeper: connection.hello.clone(), ours });
        }
        Ok(connection)
    }

    fn tell(&self, seen: Seen) {
        // Nobody listens any more: we are ending.
        let _ = self.news.send(seen);
    }

    /// What comes and goes, from the beginning on; once.
    pub fn news(&self) -> Option<UnboundedReceiver<Seen>> {
        self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    pub async fn answers(&self) -> bool {
        self.keeper.connect().await.is_ok()
    }

    async fn start(&self) -> Result<Connection, KeeperError> {
        let mut child = spawn(&self.folder).map_err(KeeperError::Away)?;
        tracing::info!(process = child.id(), "runner.keeper_started");
        // Reaped when it ends, if we are still there.
        tokio::spawn(async move { child.wait().await });
        let deadline = Instant::now() + STARTED_WITHIN;
        loop {
            match self.keeper.connect().await {
                Err(KeeperError::Away(_)) if Instant::now() < deadline => sleep(PAUSE).await,
                connected => return connected,
            }
        }
    }

    /// Expects the sandbox of an attempt, which is to be made with the profile.
    ///
    /// # Errors
    /// [`KeeperError`]: nothing may be started.
    pub async fn expect(&self, attempt: String) -> Result<(Counted, SeccompProfile), KeeperError> {
        Counted::expect(&self.keeper, self.reach().await?, attempt, self.told).await
    }

    /// Takes up an attempt that was begun before us.
    ///
    /// # Errors
    /// [`KeeperError`]: nobody counts it any more.
    pub async fn take_up(&self, attempt: String) -> Result<Counted, KeeperError> {
        Counted::take_up(&self.keeper, attempt).await
    }

    /// The last word of a runner: one that we have started, and that holds nothing, may end.
    pub async fn leave(&self) {
        let present = self.present.lock().await.take();
        if let (KeeperMode::Auto, Some(connection)) = (self.mode, present) {
            let keeper = connection.hello.clone();
            match connection.leave().await {
                Ok(()) => self.tell(Seen::Gone { keeper }),
                Err(error) => tracing::info!(%error, "runner.keeper_stays"),
            }
        }
    }
}

/// In a session of its own, without our environment, in which there are secrets; what it says goes into its folder.
fn spawn(folder: &Path) -> io::Result<tokio::process::Child> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let log = folder.join("keeper.log");
    let log = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(log)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("kage").arg("keeper").arg("--until-idle").arg("--folder").arg(folder);
    let logging = ["KAGE_LOG", "KAGE_LOG_FORMAT"];
    let logging = logging.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.env_clear().envs(logging).current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn()
}
