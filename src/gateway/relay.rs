//! Passes a provider's answer on: a stream chunk by chunk, as fast as the CLI reads and no faster; a single
//! document whole, once it is known to be one.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::WaitForCancellationFutureOwned;
use uuid::Uuid;

use crate::db::model_calls::CallOutcome;
use crate::dialect::answer::{self, Refusal, RefusalKind};
use crate::dialect::usage::{Reading, UsageReader};
use crate::domain::model::Dialect;
use crate::gateway::booked::Booked;
use crate::gateway::content::{self, Content};
use crate::gateway::headers::{self, BodyKind};
use crate::gateway::notices;
use crate::gateway::sieve::{Found, Sieve};

pub(super) type Body = BoxBody<Bytes, Abort>;

/// Ends the connection in the middle of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the answer is broken off")]
pub(super) struct Abort;

/// A document that is not a stream.
const DOCUMENT_BYTES: u64 = 16 << 20;
/// A short document: an error, a count.
const SHORT_BYTES: u64 = 64 << 10;

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// What comes faster than this is gathered: to wake the CLI for each of a thousand small writes costs more than to
/// pass them on. A stream that comes as a model writes is not held up.
const PASS_EVERY: Duration = Duration::from_millis(1);
const GATHER_BYTES: usize = 64 << 10;

/// How a provider's body went on.
enum Next {
    Chunk(Bytes),
    End,
    Failed(CallOutcome, RefusalKind, String),
}

/// A provider's body, with its limits. What ends it is waited for once, not anew for each chunk: a stream has
/// thousands of them.
struct Source {
    answer: reqwest::Response,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Pin<Box<Sleep>>,
    silence: Pin<Box<Sleep>>,
    /// How long the provider may be silent.
    idle: Duration,
    left: u64,
    /// When bytes were last passed on.
    passed: Option<Instant>,
    /// What the last gathering ended with.
    ended: Option<Next>,
    sieve: Sieve,
    run: Uuid,
}

impl Source {
    fn new(booked: &Booked, answer: reqwest::Response, limit: u64, deadline: Instant) -> Self {
        let config = &booked.environment.config;
        let idle = booked.run.provider.idle_secs.map_or(config.idle, Duration::from_secs);
        Self {
            answer,
            end: Box::pin(booked.run.end.clone().cancelled_owned()),
            deadline: Box::pin(sleep_until(deadline)),
            silence: Box::pin(sleep_until(Instant::now() + idle)),
            idle,
            left: limit.min(config.answer_bytes),
            passed: None,
            ended: None,
            sieve: Sieve::new(booked.secret.as_ref()),
            run: booked.run.run,
        }
    }

    /// What comes next, without the operator's credential.
    async fn next(&mut self, content: &mut Content) -> Next {
        loop {
            let passed = match self.gathered().await {
                Next::Chunk(chunk) => {
                    content.note_answer(&chunk);
                    self.sieve.pass(chunk)
                }
                Next::End => {
                    content.note_end();
                    let rest = self.sieve.rest();
                    return if rest.is_empty() { Next::End } else { Next::Chunk(rest) };
                }
                failed @ Next::Failed(..) => return failed,
            };
            match passed {
                // All of it may be the credential's beginning.
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => return Next::Chunk(chunk),
                Err(Found) => {
                    tracing::error!(run = %self.run, "gateway.credential_repeated");
                    let why = "the provider's answer repeats the operator's credential";
                    return Next::Failed(CallOutcome::Broken, RefusalKind::UpstreamBroken, why.to_owned());
                }
            }
        }
    }

    /// What comes in a while.
    async fn gathered(&mut self) -> Next {
        if let Some(ended) = self.ended.take() {
            return ended;
        }
        let first = match self.wait().await {
            Next::Chunk(first) => first,
            other => return other,
        };
        let due = self.passed.map(|passed| passed + PASS_EVERY).filter(|due| *due > Instant::now());
        let chunk = match due {
            None => first,
            Some(due) => self.gather(first, due).await,
        };
        let now = Instant::now();
        self.passed = Some(now);
        self.silence.as_mut().reset(now + self.idle);
        Next::Chunk(chunk)
    }

    /// A chunk and those that come until `due`.
    async fn gather(&mut self, first: Bytes, due: Instant) -> Bytes {
        let mut gathered = BytesMut::from(first);
        let mut due = Box::pin(sleep_until(due));
        while gathered.len() < GATHER_BYTES {
            let next = tokio::select! {
                biased;
                () = &mut due => break,
                next = self.wait() => next,
            };
            match next {
                Next::Chunk(chunk) => gathered.extend_from_slice(&chunk),
                ended => {
                    self.ended = Some(ended);
                    break;
                }
            }
        }
        gathered.freeze()
    }

    async fn wait(&mut self) -> Next {
        let slow =
            |what: &str| Next::Failed(CallOutcome::Timeout, RefusalKind::UpstreamTimeout, what.to_owned());
        let chunk = tokio::select! {
            biased;
            () = &mut self.end => {
                let why = "the run has ended".to_owned();
                return Next::Failed(CallOutcome::Aborted, RefusalKind::Revoked, why);
            }
            () = &mut self.deadline => return slow("the provider took too long"),
            chunk = self.answer.chunk() => chunk,
            () = &mut self.silence => return slow("the provider fell silent"),
        };
        self.count(chunk)
    }

    fn count(&mut self, chunk: Result<Option<Bytes>, reqwest::Error>) -> Next {
        let broken =
            |why: &str| Next::Failed(CallOutcome::Broken, RefusalKind::UpstreamBroken, why.to_owned());
        match chunk {
            Err(_) => broken("the provider's answer broke off"),
            Ok(None) => Next::End,
            Ok(Some(chunk)) => match self.left.checked_sub(chunk.len() as u64) {
                Some(left) => {
                    self.left = left;
                    Next::Chunk(chunk)
                }
                None => broken("the provider's answer is too large"),
            },
        }
    }
}

/// A good answer (2xx).
pub(super) async fn success(
    mut booked: Booked,
    answer: reqwest::Response,
    deadline: Instant,
) -> Result<Response<Body>, Refusal> {
    let status = answer.status();
    let Some(kind) = headers::body_kind(answer.headers()) else {
        let why = "the provider's answer is neither JSON nor a stream of it";
        booked.content.leave_out(content::UNREADABLE);
        booked.end(CallOutcome::Broken, None, Some(why.to_owned())).await;
        return Err(Refusal::new(RefusalKind::UpstreamBroken, why));
    };
    let out = headers::to_client(answer.headers(), kind, booked.secret.as_ref());
    booked.status = Some(status.as_u16());
    let body = if kind.is_stream() {
        stream(booked, answer, deadline, kind)
    } else {
        document(booked, answer, deadline).await?
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    *response.headers_mut() = out;
    Ok(response)
}

/// The stream as it comes. The last bytes wait until the call is settled: whoever has seen the end finds it
/// in the books.
fn stream(mut booked: Booked, answer: reqwest::Response, deadline: Instant, kind: BodyKind) -> Body {
    let dialect = booked.run.dialect;
    let mut reader = UsageReader::new(dialect, kind.is_stream());
    let mut source = Source::new(&booked, answer, u64::MAX, deadline);
    let frames = async_stream::stream! {
        let failure = loop {
            match source.next(&mut booked.content).await {
                Next::Chunk(chunk) => {
                    booked.note_first_byte();
                    reader.feed(&chunk);
                    booked.counted = reader.usage();
                    yield Ok::<_, Abort>(Frame::data(chunk));
                }
                Next::End => break None,
                Next::Failed(outcome, kind, why) => break Some((outcome, Refusal::new(kind, why))),
            }
        };
        // The provider's connection is free, or closed, before the books are written.
        drop(source);
        let boundary = reader.at_boundary();
        let reading = reader.finish();
        let (outcome, refusal) = judge(failure, &reading);
        if let Some(refusal) = &refusal
            && outcome != CallOutcome::Aborted
        {
            notices::refused(&booked.environment, &booked.run, refusal);
        }
        let error = refusal.as_ref().map(|refusal| refusal.message.clone()).or_else(|| error_words(&reading));
        booked.end(outcome, Some(&reading), error).await;
        if let Some(refusal) = refusal {
            yield Ok(Frame::data(last_words(dialect, &refusal, boundary)));
            if dialect == Dialect::Ollama {
                // Its clients drop the error's line, and take a clean end for a short answer: they ask again at
                // once, without end. The pause lets the line go out first.
                tokio::task::yield_now().await;
                yield Err(Abort);
            }
        }
    };
    StreamBody::new(frames).boxed()
}

/// What a stream's end means: its outcome, and what the CLI is still to be told.
fn judge(failure: Option<(CallOutcome, Refusal)>, reading: &Reading) -> (CallOutcome, Option<Refusal>) {
    match failure {
        // What comes after the end of an answer that is complete is of no account.
        Some((outcome, _)) if reading.complete && outcome != CallOutcome::Aborted => (CallOutcome::Ok, None),
        Some((outcome, refusal)) => (outcome, Some(refusal)),
        // It told the CLI itself.
        None if reading.error.is_some() => (CallOutcome::UpstreamError, None),
        None if reading.complete => (CallOutcome::Ok, None),
        None => {
            let refusal = Refusal::new(RefusalKind::UpstreamBroken, "the provider's answer broke off");
            (CallOutcome::Broken, Some(refusal))
        }
    }
}

fn error_words(reading: &Reading) -> Option<String> {
    reading.error.as_ref().map(|error| error.chars().take(500).collect())
}

fn last_words(dialect: Dialect, refusal: &Refusal, at_boundary: bool) -> Bytes {
    let mut bytes = BytesMut::new();
    if !at_boundary {
        // Ends the line, and the event, in which the provider broke off.
        bytes.extend_from_slice(if dialect == Dialect::Ollama { b"\n" } else { b"\n\n" });
    }
    bytes.extend_from_slice(&answer::stream_error(dialect, refusal));
    bytes.freeze()
}

/// One JSON document, whole.
async fn document(mut booked: Booked, answer: reqwest::Response, deadline: Instant) -> Result<Body, Refusal> {
    let mut reader = UsageReader::new(booked.run.dialect, false);
    let mut source = Source::new(&booked, answer, DOCUMENT_BYTES, deadline);
    let mut bytes = BytesMut::new();
    let failure = loop {
        match source.next(&mut booked.content).await {
            Next::Chunk(chunk) => {
                booked.note_first_byte();
                reader.feed(&chunk);
                bytes.extend_from_slice(&chunk);
            }
            Next::End if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok() => break None,
            Next::End => {
                let refusal = Refusal::new(RefusalKind::UpstreamBroken, "the provider's answer is not JSON");
                break Some((CallOutcome::Broken, refusal));
            }
            Next::Failed(outcome, kind, why) => break Some((outcome, Refusal::new(kind, why))),
        }
    };
    let reading = reader.finish();
    if let Some((outcome, refusal)) = failure {
        booked.status = None;
        booked.end(outcome, None, Some(refusal.message.clone())).await;
        return Err(refusal);
    }
    let outcome = if reading.error.is_some() { CallOutcome::UpstreamError } else { CallOutcome::Ok };
    booked.end(outcome, Some(&reading), error_words(&reading)).await;
    Ok(full(bytes.freeze()))
}

/// What a provider says, if it says it in a JSON object and in short; else nothing.
pub(super) async fn short_document(mut answer: reqwest::Response, content: &mut Content) -> Option<Bytes> {
    if headers::body_kind(answer.headers()) != Some(BodyKind::Json) {
        content.leave_out(content::UNREADABLE);
        return None;
    }
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.ok()? {
            content.note_answer(&chunk);
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > SHORT_BYTES {
                return None;
            }
        }
        content.note_end();
        Some(bytes.freeze())
    };
    let bytes = timeout(Duration::from_secs(10), read).await.ok()??;
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes).is_ok().then_some(bytes)
}
