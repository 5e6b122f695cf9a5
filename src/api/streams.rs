//! How many event streams are open: in all, and with each key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::problem::{ApiError, ApiResult};
use crate::metrics::http::Limit;
use crate::metrics::metrics;

pub(super) struct Streams {
    all: Arc<Semaphore>,
    /// Most with one key.
    most: usize,
    /// Of keys that have any: not more of them than there may be streams.
    open: Mutex<HashMap<String, usize>>,
}

/// A stream's place, for as long as it is held.
pub(super) struct Place {
    streams: Arc<Streams>,
    key_id: String,
    _permit: OwnedSemaphorePermit,
}

impl Streams {
    pub fn new(all: usize, of_key: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), most: of_key, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// 429 where the key has as many as it may, 503 where there are as many as there may be.
    pub fn take(self: &Arc<Self>, key_id: &str) -> ApiResult<Place> {
        let mut open = self.open();
        let own = open.get(key_id).copied().unwrap_or(0);
        if own >= self.most {
            metrics().http.limited(Limit::StreamsOfKey);
            let detail = format!("{own} event streams are open with this key, and no more may be");
            return Err(ApiError::streams_of_key_full(detail));
        }
        let permit = Arc::clone(&self.all).try_acquire_owned().map_err(|_| {
            metrics().http.limited(Limit::Streams);
            ApiError::streams_full("too many event streams are open")
        })?;
        open.insert(key_id.to_owned(), own + 1);
        Ok(Place { streams: Arc::clone(self), key_id: key_id.to_owned(), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open();
        if let Some(own) = open.get_mut(&self.key_id) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.key_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse;

    use super::*;

    fn refused(streams: &Arc<Streams>, key: &str) -> (u16, bool) {
        let response = streams.take(key).err().expect("is refused").into_response();
        (response.status().as_u16(), response.headers().contains_key(header::RETRY_AFTER))
    }

    #[test]
    fn a_key_has_its_own_and_all_have_theirs() {
        let streams = Arc::new(Streams::new(3, 2));
        let first = streams.take("a").expect("a place");
        let second = streams.take("a").expect("a place");
        assert_eq!(refused(&streams, "a"), (429, true));
        let third = streams.take("b").expect("another key has its own");
        assert_eq!(refused(&streams, "b"), (503, true), "a refusal takes no place of the key");
        assert_eq!(refused(&streams, "a"), (429, true));
        drop(first);
        let fourth = streams.take("b").expect("a place that was given back");
        assert_eq!(refused(&streams, "b"), (429, true));
        assert_eq!(refused(&streams, "a"), (503, true));
        drop((second, third, fourth));
        assert!(streams.open().is_empty(), "nothing is left of a key without streams");
        assert_eq!(streams.all.available_permits(), 3);
    }

    #[test]
    fn refusals_leave_nothing_behind() {
        let streams = Arc::new(Streams::new(1, 5));
        let held = streams.take("holder").expect("a place");
        for number in 0..1000 {
            assert_eq!(refused(&streams, &format!("key {number}")), (503, true));
        }
        assert_eq!(streams.open().len(), 1);
        // A task that is dropped in the middle gives its place back as well.
        let place = held;
        let panicked = std::thread::spawn(move || {
            let _place = place;
            panic!("in the middle");
        });
        assert!(panicked.join().is_err());
        assert!(streams.take("next").is_ok());
    }
}
