//! The runner's side of the keeper: the process that holds the kernel's listeners, and outlives us.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::sandbox::refusals::listener::{self, new_word};
use crate::sandbox::refusals::protocol::{self, Answer, Hello, Request, VERSION};
use crate::sandbox::refusals::tally::Totals;
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::seccomp::table::Told;

/// An answer that does not come so much later than was asked for will not come.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("the keeper of refused calls does not answer ({0})")]
    Away(#[source] io::Error),
    #[error("the keeper of refused calls speaks protocol {0}, we {VERSION}: it is of another version")]
    Protocol(u32),
    #[error("the keeper of refused calls says: {0}")]
    Refused(String),
    /// Nobody counts the attempt's calls any more.
    #[error(
        "the keeper of refused calls does not know the attempt: the one that held its listener has ended"
    )]
    Unknown,
    #[error("the keeper of refused calls gave an answer to another question")]
    Confused,
}

/// Where a keeper's sockets are.
#[derive(Debug, Clone)]
pub struct Keeper {
    folder: PathBuf,
}

/// A keeper that answers.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    pub hello: Hello,
}

impl Keeper {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// # Errors
    /// [`KeeperError::Away`] also for one that is somebody else's.
    pub async fn connect(&self) -> Result<Connection, KeeperError> {
        let ask = async {
            let mut stream = UnixStream::connect(self.folder.join(protocol::SOCKET)).await?;
            protocol::check_peer(&stream)?;
            let answer = exchange(&mut stream, &Request::Hello).await?;
            Ok((stream, answer))
        };
        let asked = timeout(ANSWER_WITHIN, ask).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match asked.map_err(KeeperError::Away)? {
            (_, Answer::Hello(hello)) if hello.protocol != VERSION => {
                Err(KeeperError::Protocol(hello.protocol))
            }
            (stream, Answer::Hello(hello)) => Ok(Connection { stream, hello }),
            (_, Answer::Refused { reason }) => Err(KeeperError::Refused(reason)),
            _ => Err(KeeperError::Confused),
        }
    }
}

impl Connection {
    /// `extra`: how long the answer may be waited for at the other side.
    async fn ask(&mut self, request: &Request, extra: Duration) -> Result<Answer, KeeperError> {
        let asked = timeout(extra + ANSWER_WITHIN, exchange(&mut self.stream, request)).await;
        let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match asked.map_err(KeeperError::Away)? {
            Answer::Unknown => Err(KeeperError::Unknown),
            Answer::Refused { reason } => Err(KeeperError::Refused(reason)),
            answer => Ok(answer),
        }
    }

    /// Ends a keeper that holds nothing.
    ///
    /// # Errors
    /// [`KeeperError::Refused`]: it holds something.
    pub async fn leave(mut self) -> Result<(), KeeperError> {
        match self.ask(&Request::Leave, Duration::ZERO).await {
            Ok(answer) => done(answer),
            // Gone before its last word.
            Err(KeeperError::Away(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

async fn exchange(stream: &mut UnixStream, request: &Request) -> io::Result<Answer> {
    protocol::send(stream, request).await?;
    protocol::receive(stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn done(answer: Answer) -> Result<(), KeeperError> {
    if answer == Answer::Done { Ok(()) } else { Err(KeeperError::Confused) }
}

/// One attempt whose refused calls a keeper counts.
#[derive(Debug)]
pub struct Counted {
    keeper: Keeper,
    attempt: String,
    /// The keeper's process. Another one has nothing of it.
    process: String,
    /// `None`: a question was broken off, and its answer may still come there.
    link: Mutex<Option<Connection>>,
}

impl Counted {
    /// Expects one sandbox, which is to be made with the profile.
    ///
    /// # Errors
    /// [`KeeperError`]: nothing may be started.
    pub async fn expect(
        keeper: &Keeper,
        mut connection: Connection,
        attempt: String,
        told: Told,
    ) -> Result<(Self, SeccompProfile), KeeperError> {
        let word = new_word();
        let profile = SeccompProfile::reporting(told, &keeper.folder.join(listener::SOCKET), &word);
        let request = Request::Expect { attempt: attempt.clone(), word };
        done(connection.ask(&request, Duration::ZERO).await?)?;
        Ok((Self::of(keeper, connection, attempt), profile))
    }

    /// Takes up an attempt that a former runner has begun.
    ///
    /// # Errors
    /// [`KeeperError::Unknown`]: nobody counts it any more.
    pub async fn take_up(keeper: &Keeper, attempt: String) -> Result<Self, KeeperError> {
        let mut connection = keeper.connect().await?;
        let request = Request::News { attempt: attempt.clone(), after: u64::MAX, within_ms: 0 };
        connection.ask(&request, Duration::ZERO).await?;
        Ok(Self::of(keeper, connection, attempt))
    }

    fn of(keeper: &Keeper, connection: Connection, attempt: String) -> Self {
        let process = connection.hello.process.clone();
        Self { keeper: keeper.clone(), attempt, process, link: Mutex::new(Some(connection)) }
    }

    async fn ask(&self, request: Request, extra: Duration) -> Result<Answer, KeeperError> {
        let mut link = self.link.lock().await;
        // Taken out: a question that is broken off must not leave its answer to the next one.
        let mut connection = match link.take() {
            Some(connection) => connection,
            None => self.reconnect().await?,
        };
        let answer = match connection.ask(&request, extra).await {
            // It may have hung up on us alone. All requests may be repeated.
            Err(KeeperError::Away(_)) => {
                connection = self.reconnect().await?;
                connection.ask(&request, extra).await
            }
            answer => answer,
        };
        if !matches!(answer, Err(KeeperError::Away(_))) {
            *link = Some(connection);
        }
        answer
    }

    async fn reconnect(&self) -> Result<Connection, KeeperError> {
        let connection = self.keeper.connect().await?;
        if connection.hello.process == self.process { Ok(connection) } else { Err(KeeperError::Unknown) }
    }

    /// Whether the runtime hands over within this time.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn connected(&self, within: Duration) -> Result<bool, KeeperError> {
        let request = Request::Connected { attempt: self.attempt.clone(), within_ms: millis(within) };
        match self.ask(request, within).await? {
            Answer::Connected { yes } => Ok(yes),
            _ => Err(KeeperError::Confused),
        }
    }

    /// Forgets what was counted: the shim's own attempts, made to see that they are refused.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn forget(&self) -> Result<(), KeeperError> {
        done(self.ask(Request::Forget { attempt: self.attempt.clone() }, Duration::ZERO).await?)
    }

    /// The totals, as soon as there are newer ones than `after`, or after this time.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn news(&self, after: u64, within: Duration) -> Result<Totals, KeeperError> {
        let request = Request::News { attempt: self.attempt.clone(), after, within_ms: millis(within) };
        match self.ask(request, within).await? {
            Answer::News(totals) => Ok(totals),
            _ => Err(KeeperError::Confused),
        }
    }

    /// All is written down.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn over(&self) -> Result<(), KeeperError> {
        done(self.ask(Request::Over { attempt: self.attempt.clone() }, Duration::ZERO).await?)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
