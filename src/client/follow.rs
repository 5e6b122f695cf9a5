//! Watching a task: its events in order, each once, across broken connections.
//!
//! The server gives every event an id that rises. The client remembers the last one that it has
//! handed out and asks for what comes after it (`Last-Event-ID`); whatever is not newer is dropped.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, Response};
use tokio::time::Instant;
use uuid::Uuid;

use crate::client::Client;
use crate::client::continuity::{Continuity, Gap};
use crate::client::error::ClientError;
use crate::client::event::{self, Event, Message, Payload};
use crate::client::sse::Decoder;
use crate::domain::name::Name;
use crate::wire::event::Connected;
use crate::wire::let_go::LetGo;

/// A connection that lasted as long as this was a good one, even when nothing happened on it.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Of what a server asks to be left alone for.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// How often in a row the same place in the stream may come malformed.
const MAX_MALFORMED: u32 = 3;

/// What there is to tell a watcher.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// A connection stands; the server says where the task is.
    Connected(Connected),
    Event(Box<Event>),
    /// The event before this one did not follow on: bytes of output are missing.
    Gap(Gap),
    /// Output is missing since it is no longer kept.
    LetGo(LetGo),
    /// The connection broke; another try comes after the delay.
    Reconnecting {
        cause: ClientError,
        delay: Duration,
    },
}

/// A task being watched.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    task: Uuid,
    run: Option<Name>,
    last: Option<u64>,
    connection: Option<Connection>,
    continuity: Continuity,
    /// An event that waits behind the gap before it.
    held: Option<Box<Event>>,
    ended: bool,
    wait: Option<Duration>,
    /// Failures since the last good connection, and when the first of them was.
    failures: u32,
    failing_since: Option<Instant>,
    malformed: u32,
}

#[derive(Debug)]
struct Connection {
    response: Response,
    decoder: Decoder,
    since: Instant,
}

impl Client {
    /// Watches a task from its beginning to its end, or one of its runs.
    pub fn follow(&self, task: Uuid, run: Option<Name>) -> Follow {
        Follow {
            client: self.clone(),
            task,
            run,
            last: None,
            connection: None,
            continuity: Continuity::default(),
            held: None,
            ended: false,
            wait: None,
            failures: 0,
            failing_since: None,
            malformed: 0,
        }
    }
}

impl Follow {
    /// The next update; `None` after the task's last event. Not to be dropped halfway and called
    /// again: a connection that is being made would be lost each time.
    ///
    /// # Errors
    /// [`ClientError`] where trying again is of no use, or was tried for too long.
    pub async fn next(&mut self) -> Result<Option<Update>, ClientError> {
        if let Some(event) = self.held.take() {
            return Ok(Some(self.hand_out(event)));
        }
        if self.ended {
            return Ok(None);
        }
        if let Some(delay) = self.wait.take() {
            tokio::time::sleep(delay).await;
        }
        match self.advance().await {
            Ok(update) => Ok(Some(update)),
            Err(error) => self.failed(error).map(Some),
        }
    }

    async fn advance(&mut self) -> Result<Update, ClientError> {
        loop {
            let connection = match &mut self.connection {
                Some(connection) => connection,
                None => {
                    let response = self.connect().await?;
                    let (decoder, since) = (Decoder::default(), Instant::now());
                    self.connection.insert(Connection { response, decoder, since })
                }
            };
            let Some(frame) = connection.decoder.pop() else {
                let Some(bytes) = self.client.chunk(&mut connection.response).await? else {
                    return Err(self.lost("the stream ended before the task did"));
                };
                if let Err(error) = connection.decoder.push(&bytes) {
                    return Err(self.malformed(&error.to_string()));
                }
                continue;
            };
            match event::read(frame).map_err(|what| self.malformed(&what))? {
                Message::Nothing => {}
                Message::Connected(connected) => return Ok(Update::Connected(connected)),
                Message::LetGo(missing) => return Ok(Update::LetGo(missing.let_go)),
                Message::Broken(message) => return Err(self.lost(&message)),
                // Sent again after a reconnect: we have it.
                Message::Event(event) if self.last.is_some_and(|last| event.id <= last) => {}
                Message::Event(event) => return self.accept(event),
            }
        }
    }

    fn accept(&mut self, event: Box<Event>) -> Result<Update, ClientError> {
        if let Payload::Log(log) = &event.payload {
            let length = event::log_bytes(log).map_err(|what| self.malformed(&what))?.len() as u64;
            let gap = self.continuity.note(&log.run, &log.stream, log.attempt, log.offset, length);
            if let Some(gap) = gap {
                self.held = Some(event);
                return Ok(Update::Gap(gap));
            }
        }
        Ok(self.hand_out(event))
    }

    fn hand_out(&mut self, event: Box<Event>) -> Update {
        self.last = Some(event.id);
        self.malformed = 0;
        self.recovered();
        if matches!(event.payload, Payload::TaskComplete(_)) {
            self.ended = true;
            self.connection = None;
        }
        Update::Event(event)
    }

    async fn connect(&self) -> Result<Response, ClientError> {
        let mut request = self
            .client
            .api(Method::GET, &["tasks", &self.task.to_string(), "progress"])
            .header(ACCEPT, "text/event-stream");
        if let Some(run) = &self.run {
            request = request.query(&[("run", run.as_str())]);
        }
        if let Some(last) = self.last {
            request = request.header("last-event-id", last.to_string());
        }
        let response = self.client.send(request).await?;
        let kind =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if kind.starts_with("text/event-stream") {
            Ok(response)
        } else {
            Err(self.client.protocol("something else than an event stream"))
        }
    }

    /// Drops the connection and decides whether another is worth a try.
    fn failed(&mut self, error: ClientError) -> Result<Update, ClientError> {
        let since = self.connection.take().map(|connection| connection.since);
        if since.is_some_and(|since| since.elapsed() >= GOOD_AFTER) {
            self.recovered();
        }
        let hopeful = match &error {
            // Too many streams at once: a place becomes free.
            ClientError::Refused { status, .. } => *status == 429,
            ClientError::Protocol { .. } => self.malformed > 0 && self.malformed < MAX_MALFORMED,
            ClientError::Failed { .. } | ClientError::Lost { .. } => true,
            // A server that was never there is no reason to wait.
            ClientError::Unreachable { .. } => self.last.is_some() || self.failing_since.is_some(),
            ClientError::BadKey | ClientError::Setup(_) => false,
        };
        let failing_since = *self.failing_since.get_or_insert_with(Instant::now);
        if !hopeful || failing_since.elapsed() > self.client.patience.reconnect_for {
            return Err(error);
        }
        // Not before the server wants it; a server that says nonsense keeps nobody for ever.
        let asked = error.retry_after().unwrap_or_default().min(MOST_RETRY_AFTER);
        let delay = self.client.delay(self.failures).max(asked);
        self.failures += 1;
        self.wait = Some(delay);
        Ok(Update::Reconnecting { cause: error, delay })
    }

    fn recovered(&mut self) {
        self.failures = 0;
        self.failing_since = None;
    }

    fn lost(&self, cause: &str) -> ClientError {
        ClientError::Lost { server: self.client.server(), cause: self.client.shown(cause) }
    }

    fn malformed(&mut self, what: &str) -> ClientError {
        self.malformed += 1;
        self.client.protocol(self.client.shown(what))
    }
}
