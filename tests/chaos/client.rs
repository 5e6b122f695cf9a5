//! A client that follows one task to its end through everything, and breaks off by itself now and then.

use std::time::Duration;

use rand::rngs::ChaCha20Rng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep, timeout_at};

use crate::support::TestKage;
use crate::support::sse::{Event, EventStream};

/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// What it needs of the world.
#[derive(Clone)]
pub struct Access {
    pub url: String,
    pub key: String,
    pub http: reqwest::Client,
}

impl Access {
    pub fn of(kage: &TestKage) -> Self {
        // A connection that nobody answers any more is one to give up.
        let http = reqwest::Client::builder().no_proxy().read_timeout(Duration::from_secs(40)).build();
        Self { url: kage.url.clone(), key: kage.key.clone(), http: http.expect("a client") }
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).header("X-API-Key", &self.key)
    }
}

/// What it has seen over all its connections.
#[derive(Debug, Default)]
pub struct Seen {
    pub events: Vec<Event>,
    pub connections: usize,
    /// Answers other than 200, by status.
    pub refusals: std::collections::BTreeMap<u16, usize>,
}

/// Follows from the first event to the last.
///
/// # Errors
/// What came is not what may come, or the end never does.
pub async fn follow(access: Access, task: String, seed: u64, until: Instant) -> Result<Seen, String> {
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    let (mut seen, mut last) = (Seen::default(), 0);
    while Instant::now() < until {
        let request = access.request(reqwest::Method::GET, &format!("/api/v1/tasks/{task}/progress"));
        let answer = timeout_at(until, request.header("Last-Event-ID", last.to_string()).send()).await;
        match answer {
            Ok(Ok(response)) if response.status() == 200 => {
                seen.connections += 1;
                let patience = Instant::now() + Duration::from_millis(random.random_range(50..6_000));
                if take(&mut seen, EventStream::new(response), &mut last, patience.min(until)).await? {
                    return Ok(seen);
                }
            }
            Ok(Ok(response)) => {
                let status = response.status().as_u16();
                *seen.refusals.entry(status).or_default() += 1;
                if ![429, 503].contains(&status) {
                    return Err(format!("a client was answered {status}"));
                }
                if !response.headers().contains_key("retry-after") {
                    return Err(format!("{status} without Retry-After"));
                }
            }
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(PAUSE).await;
    }
    Err(format!("the end never came; the last event was {last}"))
}

/// Whether the task's end was seen.
async fn take(
    seen: &mut Seen,
    mut stream: EventStream,
    last: &mut i64,
    until: Instant,
) -> Result<bool, String> {
    loop {
        let Ok(Ok(Some(event))) = timeout_at(until, stream.try_next()).await else { return Ok(false) };
        let Some(id) = event.id else { continue };
        if id != *last + 1 {
            return Err(format!("event {id} came after {last}"));
        }
        *last = id;
        let end = event.name == "task_complete";
        seen.events.push(event);
        if end {
            return Ok(true);
        }
    }
}
