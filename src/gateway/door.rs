//! A run's socket: bound in the run's own folder, for as long as the run. Whoever comes through it is that run,
//! whatever it says of itself.

use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::gateway::connection;
use crate::gateway::environment::Environment;
use crate::gateway::served::ServedRun;

/// The socket's name in the run's folder.
const NAME: &str = "model.sock";

#[derive(Debug, thiserror::Error)]
pub(super) enum DoorError {
    #[error("another gateway serves this run")]
    Taken,
    #[error("its socket cannot be made: {0}")]
    Io(#[from] std::io::Error),
}

/// A run's folder. Paths go through its descriptor: they are short whatever the data folder is called, and
/// nobody can put another folder in its place.
pub(super) struct Folder {
    folder: File,
}

impl Folder {
    /// `None`: this run's folder is not on this machine.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(sockets: &Path, run: uuid::Uuid) -> Result<Option<Self>, DoorError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(sockets.join(run.to_string()), flags, Mode::empty()) {
            Ok(folder) => Ok(Some(Self { folder: folder.into() })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(DoorError::Io(error.into())),
        }
    }

    fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{NAME}", self.folder.as_raw_fd()).into()
    }

    /// Binds the socket. One that a dead gateway left is replaced.
    ///
    /// # Errors
    /// [`DoorError::Taken`] if somebody answers on it.
    pub async fn bind(&self) -> Result<UnixListener, DoorError> {
        let path = self.socket();
        match UnixStream::connect(&path).await {
            Ok(_) => return Err(DoorError::Taken),
            // Somebody who has too much to do is somebody.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(DoorError::Taken),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => std::fs::remove_file(&path)?,
        }
        let listener = UnixListener::bind(&path)?;
        // The sandbox's user is another one; the folder lets nobody else in.
        std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        Ok(listener)
    }

    pub fn unlink(&self) {
        if let Err(error) = std::fs::remove_file(self.socket())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "gateway.socket_left");
        }
    }
}

/// Takes connections until the run's end, or the gateway's.
pub(super) async fn keep(
    environment: Arc<Environment>,
    run: Arc<ServedRun>,
    folder: Folder,
    listener: UnixListener,
) {
    let places = Arc::new(Semaphore::new(environment.config.connections));
    loop {
        let accepted = tokio::select! {
            () = run.end.cancelled() => break,
            () = environment.shut.cancelled() => break,
            // The place first: who finds none waits in the socket's queue.
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), Ok((stream, _))) = accepted else {
            // Out of descriptors: better in a moment.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (environment, this) = (Arc::clone(&environment), Arc::clone(&run));
        environment.lifecycle.clone().spawn(run.connections.track_future(async move {
            let _place = place;
            connection::serve(environment, this, stream).await;
        }));
    }
    // Nobody comes in any more.
    drop(listener);
    folder.unlink();
}
