//! What a runner and the keeper say to each other: one answer to each request, as JSON behind its length (`u32`,
//! big-endian). Both sides are root's or the same user's, and ask the kernel whether the other one is.

use std::io;

use rustix::net::sockopt::socket_peercred;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::sandbox::refusals::tally::Totals;

/// Both sides refuse a peer that speaks another version.
pub const VERSION: u32 = 1;

/// What the keeper's socket is called in its folder.
pub const SOCKET: &str = "keeper.sock";

/// Most bytes of a message. An attempt's totals are [`crate::sandbox::refusals::tally::MAX_KINDS`] kinds at most.
pub const MAX_MESSAGE: usize = 2 << 20;

/// Most bytes of an attempt's name, and of a word.
pub const MAX_NAME: usize = 128;

/// An attempt has a name that the runner gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Hello,
    /// A sandbox with this word in its profile is about to start. An attempt of this name that was there is forgotten.
    Expect {
        attempt: String,
        word: String,
    },
    /// Whether its runtime hands over within this time.
    Connected {
        attempt: String,
        within_ms: u64,
    },
    /// What was counted until now is no news: the shim's own attempts.
    Forget {
        attempt: String,
    },
    /// The totals, as soon as there are newer ones than these, or after this time.
    News {
        attempt: String,
        after: u64,
        within_ms: u64,
    },
    /// All is written down: the attempt may be forgotten.
    Over {
        attempt: String,
    },
    /// End, if nothing is held.
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    Hello(Hello),
    Done,
    Connected {
        yes: bool,
    },
    News(Totals),
    /// The attempt is not known: it was over, or another process expected it.
    Unknown,
    Refused {
        reason: String,
    },
}

/// Which keeper it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    pub protocol: u32,
    /// Of the program.
    pub version: String,
    /// Of the process: another one has none of its listeners.
    pub process: String,
    /// Whether it may read the addresses that programs pass.
    pub reads_addresses: bool,
    /// Attempts whose listeners it holds, or is about to.
    pub attempts: u64,
}

/// Whether the other end of a connection is root's or our own.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::PermissionDenied`] for anybody else.
pub fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = socket_peercred(stream)?.uid;
    if peer.is_root() || peer == rustix::process::geteuid() {
        return Ok(());
    }
    let why = format!("the peer is user {}, not root and not our own", peer.as_raw());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// # Errors
/// The socket's.
pub async fn send<T: Serialize + Sync>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).ok().filter(|_| text.len() <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::other("the message is too long"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    stream.write_all(&bytes).await
}

/// `None`: the other side has hung up.
///
/// # Errors
/// The socket's; [`io::ErrorKind::InvalidData`] for what is no message.
pub async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<T>> {
    let length = match stream.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    // Grows with what really comes.
    let mut text = Vec::new();
    stream.take(length as u64).read_to_end(&mut text).await?;
    if text.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&text)?))
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::sandbox::refusals::tally::{MAX_KINDS, Refused};

    #[tokio::test]
    async fn what_is_sent_is_received_and_nothing_else_is() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        check_peer(&ours).expect("ourselves");
        let request = Request::News { attempt: "a".to_owned(), after: u64::MAX, within_ms: 1 };
        send(&mut ours, &request).await.expect("is sent");
        assert_eq!(receive::<Request>(&mut theirs).await.expect("comes"), Some(request));
        ours.write_all(&[0xff; 4]).await.expect("is sent");
        receive::<Request>(&mut theirs).await.expect_err("longer than any message");
        ours.write_all(b"\0\0\0\x02{}").await.expect("is sent");
        receive::<Request>(&mut theirs).await.expect_err("no request");
        ours.write_all(b"\0\0\0\x09{}").await.expect("is sent");
        drop(ours);
        receive::<Request>(&mut theirs).await.expect_err("cut off");
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        drop(ours);
        assert_eq!(receive::<Request>(&mut theirs).await.expect("an end"), None);
    }

    #[test]
    fn the_most_that_can_be_counted_fits_into_a_message() {
        let kind = Refused {
            call: "x".repeat(40),
            form: "y".repeat(80),
            arguments: [u64::MAX; 6],
            quiet: false,
            count: u64::MAX,
            first_at: Utc::now(),
            last_at: Utc::now(),
        };
        let totals = Totals { version: u64::MAX, kinds: vec![kind; MAX_KINDS + 1], failed: true };
        let text = serde_json::to_vec(&Answer::News(totals)).expect("plain");
        assert!(text.len() < MAX_MESSAGE, "{}", text.len());
    }
}
