//! The socket on which runtimes hand over the kernel's descriptors, in a folder of its own that no sandbox sees. Which
//! sandbox a descriptor belongs to is said by a word that only that sandbox's own profile has.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch as channel};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::sandbox::refusals::handover::{self, Handover, HandoverError};
use crate::sandbox::refusals::lane::Pace;
use crate::sandbox::refusals::tally::Tally;
use crate::sandbox::refusals::watch;
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::seccomp::table::Told;

/// What it is called in its folder.
pub const SOCKET: &str = "refusals.sock";
/// Most bytes of a socket's path that the kernel takes.
const MAX_PATH: usize = 107;
/// A connection that has not handed anything over by then is dropped.
const HANDOVER_WITHIN: Duration = Duration::from_secs(5);
/// Connections that may be handing over at a time; the others wait in the kernel's queue.
const MAX_PENDING: usize = 32;
/// Listeners of one sandbox that are answered at a time: its own, and those of an operator's `exec`s.
const MAX_LISTENERS: u32 = 16;

/// Listens for sandboxes. What it has taken over is answered until it is dropped.
#[derive(Debug)]
pub struct Refusals {
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    pace: Pace,
    expected: Mutex<HashMap<String, Arc<Expected>>>,
    /// Of all sandboxes, also of those that nobody watches any more.
    listening: AtomicUsize,
}

#[derive(Debug)]
struct Expected {
    tally: Tally,
    stage: channel::Sender<Stage>,
}

/// How far a sandbox is with handing over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No runtime has handed anything over yet.
    Expected,
    /// So many of its listeners are answered. A second one is of a program that an operator's `exec` began.
    Listening(u32),
    /// There were some, and no process has such a filter any more.
    Ended,
}

/// One sandbox whose refused calls are counted. Dropped: a descriptor that comes later is not taken.
#[derive(Debug)]
pub struct Watched {
    shared: Arc<Shared>,
    word: String,
    expected: Arc<Expected>,
}

/// A word that nobody can guess.
pub fn new_word() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

impl Refusals {
    /// Listens in this folder, which is made and closed to others. Must be called within a runtime.
    ///
    /// # Errors
    /// The folder's or the socket's; a path that is too long for a socket says so.
    pub fn listen(folder: &Path) -> io::Result<Self> {
        Self::listen_at(folder, Pace::default())
    }

    /// The same, with another pace.
    ///
    /// # Errors
    /// As [`Refusals::listen`].
    pub fn listen_at(folder: &Path, pace: Pace) -> io::Result<Self> {
        let (path, listener) = bind(folder, SOCKET)?;
        let (expected, listening) = (Mutex::default(), AtomicUsize::new(0));
        let shared = Arc::new(Shared { path, pace, expected, listening });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { shared, accepting })
    }

    /// Expects one sandbox, which is to be made with [`Watched::profile`].
    pub fn expect(&self) -> Watched {
        self.expect_as(new_word())
    }

    /// As [`Refusals::expect`], with a word that somebody else has made.
    pub fn expect_as(&self, word: String) -> Watched {
        let expected =
            Arc::new(Expected { tally: Tally::default(), stage: channel::Sender::new(Stage::Expected) });
        self.shared.expected().insert(word.clone(), Arc::clone(&expected));
        Watched { shared: Arc::clone(&self.shared), word, expected }
    }

    /// Listeners that are answered.
    pub fn listening(&self) -> usize {
        self.shared.listening.load(Ordering::SeqCst)
    }
}

/// Binds a socket in a folder that is made and closed to others; one that is left over is replaced.
///
/// # Errors
/// As [`Refusals::listen`].
pub fn bind(folder: &Path, name: &str) -> io::Result<(PathBuf, UnixListener)> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    let path = folder.join(name);
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        let why =
            format!("{length} bytes are too long for a socket's path ({MAX_PATH}): choose a shorter folder");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok((path, listener))
}

impl Drop for Refusals {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn expected(&self) -> MutexGuard<'_, HashMap<String, Arc<Expected>>> {
        // A map is whole also when somebody panicked while he held it.
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expected {
    /// One more listener; false: there are too many.
    fn began(&self) -> bool {
        self.stage.send_if_modified(|stage| {
            let count = if let Stage::Listening(count) = stage { *count } else { 0 };
            let room = count < MAX_LISTENERS;
            if room {
                *stage = Stage::Listening(count + 1);
            }
            room
        })
    }

    fn ended(&self) {
        self.stage.send_modify(|stage| {
            *stage = match stage {
                Stage::Listening(count) if *count > 1 => Stage::Listening(*count - 1),
                _ => Stage::Ended,
            };
        });
    }
}

impl Watched {
    /// The profile to make the sandbox with.
    pub fn profile(&self, told: Told) -> SeccompProfile {
        SeccompProfile::reporting(told, &self.shared.path, &self.word)
    }

    pub fn tally(&self) -> &Tally {
        &self.expected.tally
    }

    pub fn stage(&self) -> Stage {
        *self.expected.stage.borrow()
    }

    /// Whether the runtime hands the descriptor over within this time. One that does not is none that reports.
    pub async fn connected(&self, within: Duration) -> bool {
        let mut stage = self.expected.stage.subscribe();
        timeout(within, stage.wait_for(|stage| *stage != Stage::Expected)).await.is_ok_and(|it| it.is_ok())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut expected = self.shared.expected();
        if expected.get(&self.word).is_some_and(|there| Arc::ptr_eq(there, &self.expected)) {
            expected.remove(&self.word);
        }
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

/// Answers until the sandbox has ended.
async fn take(handover: Handover, shared: &Shared) {
    let expected = shared.expected().get(&handover.metadata).map(Arc::clone);
    // Closed: the kernel refuses.
    let Some(expected) = expected else {
        tracing::warn!("refusals.unknown_sandbox: a descriptor with a word that we did not give was dropped");
        return;
    };
    if !expected.began() {
        tracing::warn!("refusals.too_many_listeners: one more descriptor of a sandbox was dropped");
        return;
    }
    shared.listening.fetch_add(1, Ordering::SeqCst);
    if let Err(error) = watch::answer_all(handover.listener, &expected.tally, shared.pace).await {
        expected.tally.fail();
        tracing::error!(%error, "refusals.listener_failed: the kernel refuses, unrecorded");
    }
    expected.ended();
    shared.listening.fetch_sub(1, Ordering::SeqCst);
}
