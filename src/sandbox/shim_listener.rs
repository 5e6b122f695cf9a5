//! Where a run's shim connects.
//!
//! The socket is in a folder that the sandbox sees, so whoever is inside may connect to it and say anything.
//! Before the job is given only the shim exists there. Afterwards the socket has a name that only the shim knows, in a
//! folder that cannot be listed, so that nobody else can fill its queue; a connection must show the session secret
//! too, and all others are dropped while we keep listening. Once the shim is connected, the socket is gone.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kage_shim::containment::Facts;
use kage_shim::protocol::{FromRunner, FromShim, Hello, Offsets, Resume, VERSION, socket_of};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use subtle::ConstantTimeEq;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::sandbox::profile::{HOSTS_FILE, RESOLVER_FILE};
use crate::sandbox::shim_link::{LinkError, ShimLink};
use crate::sandbox::spec::SandboxUser;

/// The socket's name in the run's folder.
pub(crate) const SOCKET: &str = "run.sock";
/// What it is bound as, and renamed then: of a connected socket the sandbox sees this in `/proc/net/unix`.
const SOCKET_BEING_MADE: &str = ".run.sock";

/// `localhost` must have an address also where there is no resolver.
const HOSTS: &str = "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";

const RESOLVER: &str = "# There is no resolver: a sandbox has no network.\n";

/// A connection that has not said hello by then is dropped.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Connections that may be saying hello at a time; the others wait in the kernel's queue.
const MAX_PENDING: usize = 32;

/// The socket on which a run's shim is expected.
#[derive(Debug)]
pub struct ShimListener {
    listener: UnixListener,
    folder: OwnedFd,
    /// The socket's.
    name: String,
}

impl ShimListener {
    /// Prepares the run's folder and listens in it for a shim without a job. The folder is made if it is not there; it
    /// belongs to us, and the sandbox can open what is in it by name alone. The socket belongs to the sandbox's user.
    ///
    /// # Errors
    /// [`LinkError::Folder`].
    pub fn bind(io_dir: &Path, user: SandboxUser) -> Result<Self, LinkError> {
        Self::bind_as(io_dir, user, SOCKET.to_owned())
    }

    fn bind_as(io_dir: &Path, user: SandboxUser, name: String) -> Result<Self, LinkError> {
        let prepare = || -> io::Result<Self> {
            std::fs::create_dir_all(io_dir)?;
            std::fs::set_permissions(io_dir, Permissions::from_mode(0o711))?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let folder = rustix::fs::open(io_dir, flags, Mode::empty())?;
            for (name, text) in [(HOSTS_FILE, HOSTS), (RESOLVER_FILE, RESOLVER)] {
                let file = inside(&folder, name);
                if !file.exists() {
                    std::fs::write(&file, text)?;
                    std::fs::set_permissions(&file, Permissions::from_mode(0o644))?;
                }
            }
            // Under another name until its owner and mode are right.
            let being_made = inside(&folder, SOCKET_BEING_MADE);
            remove_if_there(&being_made)?;
            let listener = UnixListener::bind(&being_made)?;
            std::fs::set_permissions(&being_made, Permissions::from_mode(0o600))?;
            let (uid, gid) = user.on_host();
            chown(&being_made, Some(uid), Some(gid))?;
            std::fs::rename(&being_made, inside(&folder, &name))?;
            Ok(Self { listener, folder, name })
        };
        prepare().map_err(|error| LinkError::Folder { path: io_dir.to_owned(), error })
    }

    /// Waits for the shim of a sandbox that has just been started; next it is to be given its job. The first
    /// connection that says hello properly is the shim: no other program runs there yet. With what it found there,
    /// which [`crate::sandbox::proof`] judges.
    ///
    /// # Errors
    /// [`LinkError::NotConnected`] at the deadline, [`LinkError::Version`], or the connection broke.
    pub async fn accept_first(self, deadline: Duration) -> Result<(ShimLink, Facts), LinkError> {
        let fresh = |hello: &Hello| hello.session.is_none();
        let (link, hello) = self.accept(deadline, fresh).await?;
        if hello.acked != Offsets::default() {
            return Err(LinkError::Protocol("a shim without a job has output".to_owned()));
        }
        let facts =
            hello.facts.ok_or_else(|| LinkError::Protocol("a shim that has not looked".to_owned()))?;
        Ok((link, *facts))
    }

    /// The same for a shim that was given a job of this session: at a place that no other program of the sandbox knows.
    /// Next is [`ShimListener::accept_resumed`].
    ///
    /// # Errors
    /// [`LinkError::Folder`].
    pub fn bind_again(io_dir: &Path, user: SandboxUser, session: &str) -> Result<Self, LinkError> {
        Self::bind_as(io_dir, user, socket_of(session))
    }

    /// Waits for the shim of a run that was begun before, and asks it to go on from `committed`.
    ///
    /// # Errors
    /// [`LinkError::NotConnected`] at the deadline, [`LinkError::Version`], [`LinkError::Protocol`] if the shim has
    /// dropped output that is not committed, or the connection broke.
    pub async fn accept_resumed(
        self,
        session: &str,
        committed: Offsets,
        deadline: Duration,
    ) -> Result<ShimLink, LinkError> {
        let known = |hello: &Hello| {
            hello.session.as_ref().is_some_and(|shown| bool::from(shown.as_bytes().ct_eq(session.as_bytes())))
        };
        let (mut link, hello) = self.accept(deadline, known).await?;
        if hello.acked.stdout > committed.stdout || hello.acked.stderr > committed.stderr {
            let acked = hello.acked;
            return Err(LinkError::Protocol(format!(
                "acknowledged {acked:?} is beyond committed {committed:?}"
            )));
        }
        link.resume_from(committed);
        link.send(&FromRunner::Resume(Resume { committed })).await?;
        Ok(link)
    }

    /// The first connection whose hello is `wanted`. Several may be saying hello at a time, so that one that keeps
    /// silent holds nobody up.
    async fn accept(
        self,
        deadline: Duration,
        wanted: impl Fn(&Hello) -> bool,
    ) -> Result<(ShimLink, Hello), LinkError> {
        let at = Instant::now() + deadline;
        let mut pending = FuturesUnordered::new();
        loop {
            let step = async {
                tokio::select! {
                    connection = self.listener.accept(), if pending.len() < MAX_PENDING => Step::Connected(connection),
                    Some(greeting) = pending.next() => Step::Greeted(greeting),
                }
            };
            match timeout_at(at, step).await.map_err(|_| LinkError::NotConnected(deadline))? {
                Step::Connected(connection) => pending.push(greet(connection?.0)),
                Step::Greeted(Ok((link, hello))) if wanted(&hello) => {
                    if hello.version != VERSION {
                        return Err(LinkError::Version(hello.version));
                    }
                    return Ok((link, hello));
                }
                Step::Greeted(Ok(_)) => tracing::warn!("dropped a connection that is not this run's shim"),
                Step::Greeted(Err(error)) => {
                    tracing::warn!(%error, "dropped a connection that did not say hello")
                }
            }
        }
    }
}

enum Step {
    Connected(io::Result<(UnixStream, tokio::net::unix::SocketAddr)>),
    Greeted(Result<(ShimLink, Hello), LinkError>),
}

async fn greet(stream: UnixStream) -> Result<(ShimLink, Hello), LinkError> {
    let mut link = ShimLink::new(stream);
    match timeout(HELLO_WITHIN, link.recv_frame()).await {
        Err(_) => Err(LinkError::NotConnected(HELLO_WITHIN)),
        Ok(Ok(FromShim::Hello(hello))) => Ok((link, hello)),
        Ok(Ok(_)) => Err(LinkError::Protocol("the first frame is not a hello".to_owned())),
        Ok(Err(error)) => Err(error),
    }
}

impl Drop for ShimListener {
    /// Takes the socket away: with the shim connected, or with nobody waiting, there is nothing to connect to.
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&inside(&self.folder, &self.name)) {
            tracing::warn!(%error, "a run's socket could not be removed");
        }
    }
}

/// A path into the folder that is short enough for a socket's address, however deep the folder is.
fn inside(folder: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
