//! `kage keeper`: holds the kernel's listeners of all sandboxes of a data folder, answers and counts their refused calls,
//! and goes on when the runner dies. It knows nothing of tasks, and has no database, no engine and no network.
//!
//! ```text
//! server     what runners ask, one answer to each request      attempts  what is counted, until a runner has written it down
//! rights     what it needs of root's rights, and no more
//! ```
//!
//! The runtimes' side is [`crate::sandbox::refusals::listener`].

mod attempts;
pub mod rights;
mod server;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::keeper::attempts::Attempts;
use crate::lifecycle::Lifecycle;
use crate::sandbox::refusals::listener::{self, Refusals};
use crate::sandbox::refusals::protocol;

/// Where its sockets are in the data folder.
pub const FOLDER: &str = "refusals";

/// A keeper that a runner has started ends when for so long nothing was held and nobody connected.
const IDLE: Duration = Duration::from_secs(5);
/// Between two looks at what may be forgotten, and whether it is time to end.
const BEAT: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{path}: {source}", path = path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("another keeper works in {path}: one for each KAGE_DATA_DIR", path = .0.display())]
    Taken(PathBuf),
}

/// Listens in this folder; it is made, and closed to others. `until_idle`: ends when nobody needs it.
///
/// # Errors
/// [`StartError`].
pub fn start(folder: &Path, until_idle: bool, lifecycle: &Lifecycle) -> Result<(), StartError> {
    let failed = |source| StartError::Folder { path: folder.to_owned(), source };
    let lock = lock(folder)?;
    let refusals = Refusals::listen(folder).map_err(failed)?;
    let (_, socket) = listener::bind(folder, protocol::SOCKET).map_err(failed)?;
    let attempts = Arc::new(Attempts::new(refusals, lifecycle.soft().clone()));
    lifecycle.spawn_essential("keeper", server::accept(socket, Arc::clone(&attempts), lifecycle.clone()));
    lifecycle.spawn(watch(attempts, until_idle, lifecycle.clone(), lock));
    Ok(())
}

/// For as long as the process lives. The file says which process it is, for people.
fn lock(folder: &Path) -> Result<File, StartError> {
    let path = folder.join("keeper.lock");
    let failed = |source| StartError::Folder { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let mut file = file.map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(StartError::Taken(folder.to_owned())),
        Err(error) => return Err(failed(error.into())),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// Forgets what is out of date, and ends the process: after the first signal when no sandbox is listened to any more,
/// and by itself when nobody needs it.
async fn watch(attempts: Arc<Attempts>, until_idle: bool, lifecycle: Lifecycle, _lock: File) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut needed_at = Instant::now();
    while !lifecycle.hard().is_cancelled() {
        tokio::select! {
            _ = beat.tick() => {}
            () = lifecycle.hard().cancelled() => {}
        }
        attempts.forget_old();
        if attempts.is_needed() {
            needed_at = Instant::now();
        }
        let drained = lifecycle.soft().is_cancelled() && attempts.listening() == 0;
        if drained || (until_idle && needed_at.elapsed() > IDLE) {
            tracing::info!(drained, "keeper.ending: nothing is held");
            lifecycle.stop();
        }
    }
}
