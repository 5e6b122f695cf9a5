//! From what was played to bytes on the wire, with the fault that was asked for.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{HeaderValue, LOCATION};

use crate::answer::{self, Body};
use crate::dialect::Dialect;
use crate::fault::Kind;
use crate::play::Played;
use crate::reply::{FILLER, Frames};

/// So that what was said before a break is on the wire when the break comes.
const BEFORE_BREAK: Duration = Duration::from_millis(50);
/// Filler goes out in writes of about this size.
const BATCH: usize = 64 << 10;
/// Not UTF-8, not JSON, no event.
const GARBAGE: &[u8] = b"\xff\xfe\x00data: {\"unterminated\n\n\x80\x81 data data data\n\n";

type Bits = BoxStream<'static, Result<Bytes, io::Error>>;

/// # Errors
/// The fault is a connection that breaks without an answer.
pub async fn deliver(
    dialect: Dialect,
    stream: bool,
    path: &str,
    played: Played,
) -> io::Result<Response<Body>> {
    match played.fault {
        Some(Kind::Status { status, retry_after_secs }) => {
            let message = format!("kage-model-server: the script says {status} here");
            return Ok(answer::error(dialect, status, &message, retry_after_secs));
        }
        Some(Kind::Redirect) => {
            let mut response = answer::whole(307, "text/plain", Bytes::new());
            if let Ok(target) = HeaderValue::from_str(&format!("http://redirected.invalid{path}")) {
                response.headers_mut().insert(LOCATION, target);
            }
            return Ok(response);
        }
        Some(Kind::Silent) => std::future::pending::<()>().await,
        Some(Kind::Reset) => {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the script's fault"));
        }
        Some(Kind::Delay { millis }) => tokio::time::sleep(Duration::from_millis(millis)).await,
        _ => {}
    }
    let (frames, content_type) = if stream {
        (dialect.stream(&played.reply), dialect.stream_type())
    } else {
        (halves(&dialect.whole(&played.reply).to_string()), "application/json")
    };
    let error = if stream {
        dialect.stream_error("kage-model-server: overloaded, says the script")
    } else {
        Bytes::new()
    };
    let bits = bits(frames, played.fault, error);
    let body = StreamBody::new(bits.map(|bit| bit.map(Frame::data)));
    Ok(answer::with_body(200, content_type, BodyExt::boxed_unsync(body)))
}

/// An answer in one piece, cut where its text begins, so that half of it can go out and its text be drawn out.
fn halves(whole: &str) -> Frames {
    let near = ["\"text\":\"", "\"content\":\""].iter().find_map(|key| Some(whole.find(key)? + key.len()));
    let (first, second) = whole.split_at(near.unwrap_or(0));
    let frames = [first, second].map(|half| Bytes::from(half.to_owned())).to_vec();
    Frames { frames, filler_at: 1, filler: Bytes::from_static(FILLER.as_bytes()) }
}

fn bits(frames: Frames, fault: Option<Kind>, error: Bytes) -> Bits {
    let half = frames.frames.len().div_ceil(2);
    let (before, after) = match fault {
        Some(Kind::Cut | Kind::Stall | Kind::Garbage | Kind::StreamError) => (half, None),
        Some(Kind::Endless) => (frames.filler_at, None),
        Some(Kind::Huge { .. }) => (frames.filler_at, Some(frames.filler_at)),
        _ => (frames.frames.len(), None),
    };
    let opening = said(frames.frames[..before].to_vec());
    let filler = frames.filler;
    let rest: Bits = match fault {
        Some(Kind::Cut) => broken(),
        Some(Kind::Stall) => futures::stream::pending().boxed(),
        Some(Kind::Garbage) => said(vec![Bytes::from_static(GARBAGE)]),
        Some(Kind::StreamError) => said(vec![error]),
        Some(Kind::Endless) => fill(&filler, None),
        Some(Kind::Huge { bytes }) => fill(&filler, Some(bytes.div_ceil(FILLER.len()))),
        _ => futures::stream::empty().boxed(),
    };
    let closing = after.map_or_else(Vec::new, |after| frames.frames[after..].to_vec());
    let all = opening.chain(rest).chain(said(closing));
    match fault {
        Some(Kind::Drip { bytes, interval_ms }) => {
            drip(all.boxed(), bytes, Duration::from_millis(interval_ms))
        }
        _ => all.boxed(),
    }
}

/// One after the other, each in a write of its own, as a model would.
fn said(frames: Vec<Bytes>) -> Bits {
    Box::pin(async_stream::stream! {
        for frame in frames {
            yield Ok(frame);
            tokio::task::yield_now().await;
        }
    })
}

fn broken() -> Bits {
    Box::pin(async_stream::stream! {
        tokio::time::sleep(BEFORE_BREAK).await;
        yield Err(io::Error::new(io::ErrorKind::BrokenPipe, "the script's fault"));
    })
}

/// `times` fillers, or without end.
fn fill(filler: &Bytes, times: Option<usize>) -> Bits {
    let batch = (BATCH / filler.len().max(1)).max(1);
    let many = Bytes::from(filler.repeat(batch));
    let one = filler.len();
    Box::pin(async_stream::stream! {
        let mut left = times;
        while left != Some(0) {
            let now = left.map_or(batch, |left| left.min(batch));
            left = left.map(|left| left - now);
            yield Ok(many.slice(..now * one));
            tokio::task::yield_now().await;
        }
    })
}

fn drip(mut all: Bits, bytes: usize, interval: Duration) -> Bits {
    Box::pin(async_stream::stream! {
        while let Some(bit) = all.next().await {
            let mut bit = match bit {
                Ok(bit) => bit,
                Err(error) => { yield Err(error); return }
            };
            while !bit.is_empty() {
                yield Ok(bit.split_to(bytes.min(bit.len())));
                tokio::time::sleep(interval).await;
            }
        }
    })
}
