//! What runners ask: a request, an answer, and so on, until they hang up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::keeper::attempts::Attempts;
use crate::keeper::rights;
use crate::lifecycle::Lifecycle;
use crate::sandbox::refusals::protocol::{self, Answer, Hello, Request, VERSION};

/// Connections at a time; the others wait in the kernel's queue. A runner has one, and one for each run.
const MAX_CONNECTIONS: usize = 2048;
/// Longest time that a question is kept.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Runs until the hard token.
pub(super) async fn accept(socket: UnixListener, attempts: Arc<Attempts>, lifecycle: Lifecycle) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, _)) => {
                let (attempts, lifecycle) = (Arc::clone(&attempts), lifecycle.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    let _connected = Connected::new(&attempts);
                    if let Err(error) = serve(stream, &attempts, &lifecycle).await {
                        tracing::warn!(%error, "keeper.connection_dropped");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "keeper.accept_failed");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Counts a connection for as long as it lives.
struct Connected<'a>(&'a Attempts);

impl<'a> Connected<'a> {
    fn new(attempts: &'a Attempts) -> Self {
        attempts.connections.fetch_add(1, Ordering::SeqCst);
        Self(attempts)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(mut stream: UnixStream, attempts: &Attempts, lifecycle: &Lifecycle) -> io::Result<()> {
    protocol::check_peer(&stream)?;
    while let Some(request) = protocol::receive(&mut stream).await? {
        let answer = tokio::select! {
            answer = answer(request, attempts, lifecycle) => answer,
            // Nobody waits for this answer any more.
            () = hung_up(&stream) => return Ok(()),
        };
        protocol::send(&mut stream, &answer).await?;
    }
    Ok(())
}

/// Waits until there is something to read, which while an answer is owed is the other side's end.
async fn hung_up(stream: &UnixStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        let peeked = stream.try_io(Interest::READABLE, || {
            Ok(recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)?)
        });
        match peeked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

async fn answer(request: Request, attempts: &Attempts, lifecycle: &Lifecycle) -> Answer {
    match request {
        Request::Hello => Answer::Hello(Hello {
            protocol: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: attempts.process.clone(),
            reads_addresses: rights::may_read_addresses(),
            attempts: attempts.len() as u64,
        }),
        Request::Expect { attempt, word } => match attempts.expect(attempt, word) {
            Ok(()) => Answer::Done,
            Err(reason) => Answer::Refused { reason: reason.to_owned() },
        },
        Request::Connected { attempt, within_ms } => match attempts.find(&attempt) {
            Some(watched) => Answer::Connected { yes: watched.connected(bounded(within_ms)).await },
            None => Answer::Unknown,
        },
        Request::Forget { attempt } => match attempts.find(&attempt) {
            Some(watched) => {
                watched.tally().forget();
                Answer::Done
            }
            None => Answer::Unknown,
        },
        Request::News { attempt, after, within_ms } => match attempts.find(&attempt) {
            Some(watched) => {
                // Over or not: the totals as they are by then.
                let _ = timeout(bounded(within_ms), watched.tally().beyond(after)).await;
                Answer::News(watched.tally().totals())
            }
            None => Answer::Unknown,
        },
        Request::Over { attempt } => {
            if attempts.over(&attempt) {
                Answer::Done
            } else {
                Answer::Unknown
            }
        }
        Request::Leave if attempts.holds_something() => {
            Answer::Refused { reason: format!("it holds {} attempts", attempts.len()) }
        }
        Request::Leave => {
            lifecycle.stop();
            Answer::Done
        }
    }
}

fn bounded(within_ms: u64) -> Duration {
    Duration::from_millis(within_ms).min(MAX_WAIT)
}
