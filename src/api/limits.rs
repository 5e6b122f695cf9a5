//! Limits of rates: of an address before anybody is authenticated, of a key after it, and of failed authentications,
//! which shut an address out. Their memory is bounded, whoever comes.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::{DashMapStateStore, ShrinkableKeyedStateStore};
use governor::{Quota, RateLimiter};

use crate::api::network::network;
use crate::api::origin::Origin;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::refusals::Refusal;
use crate::api::state::ApiState;
use crate::config::edge::Rates;
use crate::metrics::http::method_name;
use crate::metrics::metrics;

/// Addresses, or keys, that are told apart at once; more of them share one limit.
const MOST: usize = 1 << 16;
/// How often those are forgotten that have their whole quota again.
const SWEEP: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// governor's map, with an end.
struct Bounded<K: Hash + Eq + Clone> {
    known: DashMapStateStore<K>,
    most: usize,
    /// Whom all others share a limit with.
    rest: K,
}

impl<K: Hash + Eq + Clone> StateStore for Bounded<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let is_full = || self.known.len() >= self.most;
        let key = if !self.known.contains_key(key) && is_full() { &self.rest } else { key };
        self.known.measure_and_replace(key, f)
    }
}

impl<K: Hash + Eq + Clone> ShrinkableKeyedStateStore<K> for Bounded<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        self.known.retain_recent(drop_below);
    }

    fn shrink_to_fit(&self) {
        self.known.shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.known.len()
    }

    fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// What is left of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    policy: &'static str,
    quota: u32,
    remaining: u32,
    /// Seconds until it is whole again.
    whole_in: u64,
}

impl Left {
    /// As draft-ietf-httpapi-ratelimit-headers-11 has it.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let Self { policy, quota, remaining, whole_in } = self;
        add(headers, POLICY, &format!("\"{policy}\";q={quota};w={}", MINUTE.as_secs()));
        add(headers, LEFT, &format!("\"{policy}\";r={remaining};t={whole_in}"));
    }
}

fn add(headers: &mut HeaderMap, name: HeaderName, item: &str) {
    let before = headers.get(&name).and_then(|value| value.to_str().ok());
    let all = before.map_or_else(|| item.to_owned(), |before| format!("{item}, {before}"));
    if let Ok(value) = HeaderValue::from_str(&all) {
        headers.insert(name, value);
    }
}

type Limiter<K> = RateLimiter<K, Bounded<K>, DefaultClock, StateInformationMiddleware>;

/// So many a minute of each key.
struct Limit<K: Hash + Eq + Clone> {
    policy: &'static str,
    quota: u32,
    limiter: Limiter<K>,
    clock: DefaultClock,
    swept: Mutex<Instant>,
}

impl<K: Hash + Eq + Clone> Limit<K> {
    fn new(policy: &'static str, a_minute: u32, most: usize, rest: K) -> Self {
        let clock = DefaultClock::default();
        let quota = Quota::per_minute(NonZeroU32::new(a_minute).unwrap_or(NonZeroU32::MIN));
        let store = Bounded { known: DashMapStateStore::default(), most, rest };
        let limiter = Limiter::new(quota, store, clock.clone());
        Self { policy, quota: a_minute, limiter, clock, swept: Mutex::new(Instant::now()) }
    }

    /// Takes one; an error is the seconds after which there is one again.
    fn take(&self, key: &K) -> Result<Left, u64> {
        self.sweep();
        let every = MINUTE / self.quota;
        match self.limiter.check_key(key) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let whole_in = seconds(every * self.quota.saturating_sub(remaining));
                Ok(Left { policy: self.policy, quota: self.quota, remaining, whole_in })
            }
            Err(until) => Err(seconds(until.wait_time_from(self.clock.now())).max(1)),
        }
    }

    fn exhausted(&self) -> Left {
        Left { policy: self.policy, quota: self.quota, remaining: 0, whole_in: MINUTE.as_secs() }
    }

    fn sweep(&self) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.elapsed() >= SWEEP {
            *swept = Instant::now();
            drop(swept);
            self.limiter.retain_recent();
        }
    }
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

pub(super) struct Limits {
    address: Limit<IpAddr>,
    key: Limit<String>,
    failures: Limit<IpAddr>,
    /// Until when an address is shut out.
    shut_out: Mutex<HashMap<IpAddr, Instant>>,
}

impl Limits {
    pub fn new(rates: Rates) -> Self {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            address: Limit::new("address", rates.address, MOST, nobody),
            key: Limit::new("key", rates.key, MOST, String::new()),
            failures: Limit::new("failures", rates.failures, MOST, nobody),
            shut_out: Mutex::default(),
        }
    }

    fn shut_out(&self) -> MutexGuard<'_, HashMap<IpAddr, Instant>> {
        self.shut_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody may try to authenticate. Whoever is shut out is not even looked up: a right guess would be
    /// told from a wrong one.
    ///
    /// # Errors
    /// 429 until the minute is over.
    pub fn may_authenticate(&self, origin: &Origin) -> ApiResult<()> {
        let until = self.shut_out().get(&from(origin)).copied();
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(());
        }
        let detail = "too many requests from this address failed to authenticate";
        Err(limited(detail, seconds(left), self.failures.exhausted()))
    }

    /// Counts a failed authentication. True: it is one too many, and its address is shut out from now on.
    pub fn failed(&self, origin: &Origin) -> bool {
        let network = from(origin);
        if self.failures.take(&network).is_ok() {
            return false;
        }
        let (now, mut shut_out) = (Instant::now(), self.shut_out());
        if shut_out.len() >= MOST {
            shut_out.retain(|_, until| *until > now);
        }
        // Full of others that are shut out: their failures are still refused one by one.
        if shut_out.len() >= MOST && !shut_out.contains_key(&network) {
            return false;
        }
        shut_out.insert(network, now + MINUTE).is_none_or(|until| until <= now)
    }

    /// # Errors
    /// 429 if the key has made too many requests.
    pub fn of_key(&self, key_id: &str) -> ApiResult<Left> {
        let detail = "too many requests with this key";
        let taken = self.key.take(&key_id.to_owned());
        taken.map_err(|wait| limited(detail, wait, self.key.exhausted()))
    }
}

/// Requests without an address, which only tests make, share one.
fn from(origin: &Origin) -> IpAddr {
    origin.address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), network)
}

fn limited(detail: &str, wait_secs: u64, left: Left) -> ApiError {
    metrics().http.rate_limited(left.policy);
    let mut headers = HeaderMap::new();
    left.tell(&mut headers);
    ApiError::rate_limited(format!("{detail}; try again in {wait_secs} s"), wait_secs).with_headers(headers)
}

/// Before anything is read of a request but its head.
pub(super) async fn of_address(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let origin = Origin::of(&request);
    match state.limits.address.take(&from(&origin)) {
        Ok(left) => {
            let mut response = next.run(request).await;
            left.tell(response.headers_mut());
            response
        }
        Err(wait) => {
            // Whatever it asked for: one kind of refusal.
            let route = Some(format!("{} *", method_name(request.method().as_str())).into());
            let origin = Origin { route, ..origin };
            state.refusals.note(Refusal { origin, who: None, reason: "rate-limited" });
            let detail = "too many requests from this address";
            limited(detail, wait, state.limits.address.exhausted()).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        Origin { address: address.parse().ok(), ..Origin::default() }
    }

    fn limits(address: u32, key: u32, failures: u32) -> Limits {
        Limits::new(Rates { address, key, failures })
    }

    #[test]
    fn a_quota_is_spent_and_told() {
        let limit = Limit::new("key", 3, 10, String::new());
        let took: Vec<_> = (0..4).map(|_| limit.take(&"a".to_owned())).collect();
        let left: Vec<_> = took.iter().flatten().map(|left| left.remaining).collect();
        assert_eq!(left, [2, 1, 0]);
        assert!(matches!(took[3], Err(1..=20)), "one comes back every 20 s: {took:?}");
        assert!(limit.take(&"b".to_owned()).is_ok(), "another key has its own");
        let mut headers = HeaderMap::new();
        Left { policy: "key", quota: 3, remaining: 1, whole_in: 40 }.tell(&mut headers);
        Left { policy: "address", quota: 9, remaining: 8, whole_in: 7 }.tell(&mut headers);
        assert_eq!(headers[POLICY], "\"address\";q=9;w=60, \"key\";q=3;w=60");
        assert_eq!(headers[LEFT], "\"address\";r=8;t=7, \"key\";r=1;t=40");
    }

    #[test]
    fn memory_is_bounded_and_nobody_known_loses_by_it() {
        let limit = Limit::new("address", 2, 100, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let known: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(limit.take(&known).is_ok());
        let refused = (0..10_000u32)
            .filter(|number| limit.take(&IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number))).is_err())
            .count();
        assert!(limit.limiter.len() <= 101, "{}", limit.limiter.len());
        assert_eq!(refused, 10_000 - 99 - 2, "the others share one");
        assert!(limit.take(&known).is_ok(), "its second");
        assert!(limit.take(&known).is_err());
    }

    #[test]
    fn failures_shut_a_network_out_and_no_other() {
        let limits = limits(1000, 1000, 3);
        let mut shut = Vec::new();
        for host in 1..=6 {
            // Another address of the same /64 each time.
            let origin = origin(&format!("2001:db8::{host}"));
            shut.push((limits.may_authenticate(&origin).is_ok(), limits.failed(&origin)));
        }
        assert_eq!(&shut[..4], [(true, false), (true, false), (true, false), (true, true)]);
        assert!(shut[4..].iter().all(|one| *one == (false, false)), "told of once: {shut:?}");
        assert!(limits.may_authenticate(&origin("2001:db8::ffff")).is_err());
        assert!(limits.may_authenticate(&origin("2001:db8:0:1::1")).is_ok());
        assert!(limits.may_authenticate(&origin("192.0.2.1")).is_ok());
    }
}
