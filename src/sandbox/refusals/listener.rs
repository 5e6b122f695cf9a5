//! The socket on which runtimes hand over the kernel's descriptors: one a runner, in a folder of its own that no
//! sandbox sees. Which run a descriptor belongs to is said by a word that only the run's own profile has.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch as channel};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::sandbox::engine::Engine;
use crate::sandbox::error::SandboxError;
use crate::sandbox::refusals::handover::{self, Handover, HandoverError};
use crate::sandbox::refusals::tally::Tally;
use crate::sandbox::refusals::watch;
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::seccomp::table::Told;

/// Runtimes that hand over the kernel's listener, by the names that engines give them. gVisor's and Kata's have a kernel
/// of their own behind the host's, and ignore the profile.
const REPORTING_RUNTIMES: [&str; 3] = ["runc", "io.containerd.runc.v2", "crun"];

const SOCKET: &str = "refusals.sock";
/// Most bytes of a socket's path that the kernel takes.
const MAX_PATH: usize = 107;
/// A connection that has not handed anything over by then is dropped.
const HANDOVER_WITHIN: Duration = Duration::from_secs(5);
/// Connections that may be handing over at a time; the others wait in the kernel's queue.
const MAX_PENDING: usize = 32;

/// Whether a runtime (`None`: the engine's default) hands over the kernel's listener.
///
/// # Errors
/// The engine is away.
pub async fn reports(engine: &Engine, runtime: Option<&str>) -> Result<bool, SandboxError> {
    let runtime = match runtime {
        Some(runtime) => runtime.to_owned(),
        None => engine.info().await?.default_runtime,
    };
    Ok(REPORTING_RUNTIMES.contains(&runtime.as_str()))
}

/// Listens for the sandboxes of one runner. What it has taken over is answered until it is dropped.
#[derive(Debug)]
pub struct Refusals {
    path: PathBuf,
    told: Told,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    expected: Mutex<HashMap<String, Expected>>,
}

#[derive(Debug)]
struct Expected {
    tally: Arc<Tally>,
    connected: channel::Sender<bool>,
}

/// One sandbox whose refused calls are counted. Dropped: a descriptor that comes later is not taken.
#[derive(Debug)]
pub struct Watched {
    shared: Arc<Shared>,
    token: String,
    profile: SeccompProfile,
    tally: Arc<Tally>,
    connected: channel::Receiver<bool>,
}

impl Refusals {
    /// Listens in this folder, which is made and closed to others. `addresses`: those that programs want to reach are
    /// recorded too. Must be called within a runtime.
    ///
    /// # Errors
    /// The folder's or the socket's; a path that is too long for a socket says so.
    pub fn listen(folder: &Path, addresses: bool) -> io::Result<Self> {
        let told = if addresses { Told::RefusedAndAddresses } else { Told::Refused };
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        let path = folder.join(SOCKET);
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            let why = format!(
                "{length} bytes are too long for a socket's path ({MAX_PATH}): choose a shorter folder"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared::default());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { path, told, shared, accepting })
    }

    /// Expects one sandbox, which is to be made with [`Watched::profile`].
    pub fn expect(&self) -> Watched {
        let mut bytes = [0; 16];
        rand::rng().fill_bytes(&mut bytes);
        let token = hex::encode(bytes);
        let (sender, connected) = channel::channel(false);
        let tally = Arc::new(Tally::default());
        let expected = Expected { tally: Arc::clone(&tally), connected: sender };
        self.shared.expected().insert(token.clone(), expected);
        let profile = SeccompProfile::reporting(self.told, &self.path, &token);
        Watched { shared: Arc::clone(&self.shared), token, profile, tally, connected }
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn expected(&self) -> MutexGuard<'_, HashMap<String, Expected>> {
        // A map is whole also when somebody panicked while he held it.
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// The profile to make the sandbox with.
    pub fn profile(&self) -> &SeccompProfile {
        &self.profile
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether the runtime hands the descriptor over within this time. One that does not is none that reports.
    pub async fn connected(&self, within: Duration) -> bool {
        let mut connected = self.connected.clone();
        timeout(within, connected.wait_for(|connected| *connected)).await.is_ok_and(|waited| waited.is_ok())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shared.expected().remove(&self.token);
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let pending = Arc::new(Semaphore::new(MAX_PENDING));
    loop {
        let Ok(permit) = Arc::clone(&pending).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let taken = timeout(HANDOVER_WITHIN, handover::receive(&stream)).await;
                    drop(permit);
                    let taken = taken.unwrap_or(Err(HandoverError::Broken("it took too long")));
                    match taken {
                        Ok(handover) => take(handover, &shared).await,
                        Err(error) => tracing::warn!(%error, "refusals.connection_dropped"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "refusals.accept_failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers until the sandbox has ended. A second descriptor of the same sandbox is one that an operator's `exec` made.
async fn take(handover: Handover, shared: &Shared) {
    let tally = {
        let expected = shared.expected();
        let Some(expected) = expected.get(&handover.metadata) else {
            // Closed: the kernel refuses, and the sandbox cannot have been made by us.
            tracing::warn!(
                "refusals.unknown_sandbox: a descriptor with a word that we did not give was dropped"
            );
            return;
        };
        expected.connected.send_replace(true);
        Arc::clone(&expected.tally)
    };
    if let Err(error) = watch::answer_all(handover.listener, Arc::clone(&tally)).await {
        tally.fail();
        tracing::error!(%error, "refusals.listener_failed: the kernel refuses, unrecorded");
    }
}
