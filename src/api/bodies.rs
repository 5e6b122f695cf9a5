//! Memory for the bodies of requests: of all together, and of each key's. What is counted is what has come, not what was
//! announced: a client that sends nothing takes nothing, and one that never ends holds what it sent and no more than its
//! share.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};

use crate::api::problem::ApiError;
use crate::metrics::http::Limit;
use crate::metrics::metrics;

/// Of [`Bodies::new`]'s bytes, what one key may have is this part.
pub(super) const SHARES: usize = 4;
/// A body is in memory as it came, and joined.
pub(super) const COPIES: usize = 2;
/// What a value takes once it is read, in a list that may have grown to twice its length.
const VALUE: usize = 160;
/// What a field takes more: its name, and its place in the object's table.
const FIELD: usize = 512;

pub(super) struct Bodies {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    /// Of keys that have any.
    keys: HashMap<String, usize>,
}

/// Why a body is not read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// It alone is more than a key's share: no later try can help.
    Body,
    Key,
    All,
}

/// What one request's body takes; given back with it.
pub(super) struct Room {
    bodies: Arc<Bodies>,
    key_id: String,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    bytes: usize,
    scan: Scan,
    full: Option<Full>,
}

impl Bodies {
    /// `most`: bytes for all of them.
    pub fn new(most: usize) -> Self {
        Self { most, held: Mutex::default() }
    }

    /// For a request of this key's. It takes nothing yet.
    pub fn room(self: &Arc<Self>, key_id: &str) -> Arc<Room> {
        Arc::new(Room { bodies: Arc::clone(self), key_id: key_id.to_owned(), taken: Mutex::default() })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, key_id: &str, own: usize, more: usize) -> Result<(), Full> {
        let share = self.most / SHARES;
        if own.saturating_add(more) > share {
            return Err(Full::Body);
        }
        let mut held = self.held();
        let of_key = held.keys.get(key_id).copied().unwrap_or(0).saturating_add(more);
        if of_key > share {
            return Err(Full::Key);
        }
        let all = held.all.saturating_add(more);
        if all > self.most {
            return Err(Full::All);
        }
        held.all = all;
        held.keys.insert(key_id.to_owned(), of_key);
        Ok(())
    }

    fn give_back(&self, key_id: &str, bytes: usize) {
        let mut held = self.held();
        held.all -= bytes;
        if let Some(own) = held.keys.get_mut(key_id) {
            *own -= bytes;
            if *own == 0 {
                held.keys.remove(key_id);
            }
        }
    }
}

impl Room {
    /// The body, counted while it is read. Where there is no room for more of it, it breaks off, and
    /// [`Room::refusal`] says why.
    pub fn counted(self: &Arc<Self>, body: Body) -> Body {
        Body::new(Counted { body, room: Arc::clone(self) })
    }

    /// 413, 429 or 503 where the body broke off for want of room.
    pub fn refusal(&self) -> Option<ApiError> {
        let full = self.taken().full?;
        Some(match full {
            Full::Body => ApiError::too_large(
                "the body would take more memory than a request may have (KAGE_API_BODIES_BYTES)",
            ),
            Full::Key => {
                metrics().http.limited(Limit::BodiesOfKey);
                ApiError::bodies_of_key_full("the bodies of this key's other requests take all it may have")
            }
            Full::All => {
                metrics().http.limited(Limit::Bodies);
                ApiError::bodies_full(
                    "the bodies of other requests take all the memory that there is for them",
                )
            }
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, data: &[u8]) -> Result<(), Full> {
        let mut taken = self.taken();
        let more = data.len() * COPIES + taken.scan.bytes(data);
        let done = self.bodies.take(&self.key_id, taken.bytes, more);
        match done {
            Ok(()) => taken.bytes += more,
            Err(full) => taken.full = Some(full),
        }
        done
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = self.taken().bytes;
        if bytes > 0 {
            self.bodies.give_back(&self.key_id, bytes);
        }
    }
}

/// How far JSON was looked at: what its values will take is told by its signs, outside of texts. What is no JSON is
/// counted in some way, and refused when it is read.
#[derive(Default)]
struct Scan {
    in_text: bool,
    escaped: bool,
}

impl Scan {
    /// Bytes of memory for what the next part holds.
    fn bytes(&mut self, part: &[u8]) -> usize {
        let mut bytes = 0;
        for sign in part {
            if self.in_text {
                match sign {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_text = false,
                    _ => {}
                }
            } else {
                match sign {
                    b'"' => self.in_text = true,
                    b',' | b'[' | b'{' => bytes += VALUE,
                    b':' => bytes += FIELD,
                    _ => {}
                }
            }
        }
        bytes
    }
}

struct Counted {
    body: Body,
    room: Arc<Room>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, room } = &mut *self;
        let polled = Pin::new(body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && room.take(data).is_err()
        {
            return Poll::Ready(Some(Err(axum::Error::new("no room for the body"))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse;

    use super::*;

    fn refused(room: &Room) -> (u16, bool) {
        let response = room.refusal().expect("is refused").into_response();
        (response.status().as_u16(), response.headers().contains_key(header::RETRY_AFTER))
    }

    #[test]
    fn a_key_has_its_share_and_all_have_theirs() {
        let bodies = Arc::new(Bodies::new(4000 * COPIES));
        let text = |bytes: usize| vec![b'x'; bytes];
        let (first, second) = (bodies.room("a"), bodies.room("a"));
        assert!(first.take(&text(600)).is_ok() && second.take(&text(300)).is_ok());
        assert_eq!((second.take(&text(200)), refused(&second)), (Err(Full::Key), (429, true)));
        assert!(second.take(&text(100)).is_ok(), "what it had no room for was not counted");
        let others: Vec<_> = ["b", "c", "d"].iter().map(|key| bodies.room(key)).collect();
        assert!(others.iter().all(|room| room.take(&text(1000)).is_ok()));
        let late = bodies.room("e");
        assert_eq!((late.take(&text(1)), refused(&late)), (Err(Full::All), (503, true)));
        drop(first);
        let whole = bodies.room("f");
        assert_eq!((whole.take(&text(1001)), refused(&whole)), (Err(Full::Body), (413, false)));
        assert!(late.take(&text(600)).is_ok());
        drop((second, others, late, whole));
        let held = bodies.held();
        assert!(held.all == 0 && held.keys.is_empty(), "nothing is left of what was given back");
    }

    #[test]
    fn values_count_and_texts_do_not() {
        let whole = |json: &str| Scan::default().bytes(json.as_bytes());
        assert_eq!(whole(r#""[[[,,,{{{:::\"[[[\\""#), 0);
        assert_eq!(whole(r#"{"a\\":[[],{},"{,"]}"#), FIELD + 6 * VALUE);
        // As it comes, in whatever parts.
        let (json, mut scan) = (r#"{"a\"b,":[1,"\\",{"c":"[\\\""}],"d":[]}"#, Scan::default());
        let parts: usize = json.as_bytes().chunks(1).map(|part| scan.bytes(part)).sum();
        assert_eq!(parts, whole(json));
    }

    /// The estimate is no less than what is allocated, for what takes most of all.
    #[test]
    fn a_value_takes_no_more_than_is_counted() {
        let size = std::mem::size_of::<serde_json::Value>();
        assert!(2 * size <= VALUE, "a list twice as long as it needs to be: {size}");
        // Four places at least: name, value and hash of each, and the table.
        assert!(4 * (24 + size + 8) + 64 <= FIELD + VALUE, "{size}");
    }
}
