//! Counts of refused calls. A hostile sandbox decides how many there are and of how many kinds: both are bounded here.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Forms of one call that are told apart in one attempt; all others are one more. There are as many calls as a kernel has.
pub const MAX_FORMS: usize = 32;

/// The form under which the others are counted.
pub const OTHERS: &str = "(other forms)";

/// Kinds of all calls that are told apart in one attempt: far more than the table can tell.
pub const MAX_KINDS: usize = 1024;

/// The call under which all are counted beyond that.
pub const OTHER_CALLS: &str = "(other calls)";

/// The form under which calls are counted whose answers are held back: there are too many of them. Always an alarm,
/// and told apart whatever other forms there are.
pub const FLOOD: &str = "a flood: answers are held back";

/// Calls of one name and form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// The kernel's name; `call 999` for one that we do not know.
    pub call: String,
    /// Which form of it, where that says something: a socket's family, a namespace. Made by us.
    pub form: String,
    /// Of the first; pointers mean nothing outside.
    pub arguments: [u64; 6],
    /// What ordinary programs try and do without: no alarm.
    pub quiet: bool,
    pub count: u64,
    pub first_at: DateTime<Utc>,
    pub last_at: DateTime<Utc>,
}

/// What is counted of one attempt.
#[derive(Debug, Default)]
pub struct Tally {
    kinds: Mutex<Kinds>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Kinds {
    by_name: BTreeMap<(String, String), Refused>,
    /// Grows with everything that happens.
    version: u64,
    /// Counted since it was last asked for.
    fresh: bool,
    /// Nobody counts any more, although the sandbox goes on.
    failed: bool,
}

/// All that was counted of an attempt at some moment. Totals, so that to write them down twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Another moment with the same version has the same totals.
    pub version: u64,
    pub kinds: Vec<Refused>,
    /// Nobody counts any more, although the sandbox goes on.
    pub failed: bool,
}

impl Tally {
    pub fn count(&self, call: String, form: String, arguments: [u64; 6], quiet: bool) {
        let now = Utc::now();
        let mut kinds = self.kinds();
        kinds.fresh = true;
        kinds.version += 1;
        let mut key = (call, form);
        if !kinds.by_name.contains_key(&key) {
            let forms = kinds
                .by_name
                .range((key.0.clone(), String::new())..)
                .take_while(|(there, _)| there.0 == key.0);
            if forms.count() >= MAX_FORMS && key.1 != FLOOD {
                key.1 = OTHERS.to_owned();
            }
            if kinds.by_name.len() >= MAX_KINDS && !kinds.by_name.contains_key(&key) {
                key = (OTHER_CALLS.to_owned(), String::new());
            }
        }
        let kind = kinds.by_name.entry(key).or_insert_with_key(|(call, form)| Refused {
            call: call.clone(),
            form: form.clone(),
            arguments,
            quiet,
            count: 0,
            first_at: now,
            last_at: now,
        });
        kind.count = kind.count.saturating_add(1);
        kind.last_at = now;
        drop(kinds);
        self.changed.notify_waiters();
    }

    /// All kinds, if anything was counted since this was last asked. Counts are of the whole attempt.
    pub fn take_news(&self) -> Option<Vec<Refused>> {
        let mut kinds = self.kinds();
        std::mem::take(&mut kinds.fresh).then(|| kinds.by_name.values().cloned().collect())
    }

    /// Forgets what was counted: the shim's own attempts, made to see that they are refused.
    pub fn forget(&self) {
        let mut kinds = self.kinds();
        kinds.by_name.clear();
        kinds.fresh = false;
        kinds.version += 1;
    }

    /// Nobody counts any more, although the sandbox goes on.
    pub fn fail(&self) {
        let mut kinds = self.kinds();
        kinds.failed = true;
        kinds.version += 1;
        drop(kinds);
        self.changed.notify_waiters();
    }

    /// Asked for again, because what was taken could not be kept.
    pub fn renew(&self) {
        self.kinds().fresh = true;
    }

    pub fn totals(&self) -> Totals {
        let kinds = self.kinds();
        Totals {
            version: kinds.version,
            kinds: kinds.by_name.values().cloned().collect(),
            failed: kinds.failed,
        }
    }

    /// Waits for something newer than this version.
    pub async fn beyond(&self, version: u64) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Armed before we look: what happens in between wakes it.
            changed.as_mut().enable();
            if self.kinds().version > version {
                return;
            }
            changed.await;
        }
    }

    fn kinds(&self) -> MutexGuard<'_, Kinds> {
        // Whole also when somebody panicked while he held it: numbers alone.
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(tally: &Tally, call: &str, form: &str) {
        tally.count(call.to_owned(), form.to_owned(), [0; 6], false);
    }

    #[test]
    fn a_million_of_any_kind_are_few_rows() {
        let tally = Tally::default();
        for number in 0..1_000_000_u32 {
            count(&tally, "socket", &format!("family {}", number % 1000));
        }
        let news = tally.take_news().expect("something was counted");
        assert_eq!(news.len(), MAX_FORMS + 1);
        assert_eq!(news.iter().map(|kind| kind.count).sum::<u64>(), 1_000_000);
        let others = news.iter().find(|kind| kind.form == OTHERS).expect("the others");
        assert_eq!(others.count, 1_000_000 - MAX_FORMS as u64 * 1000);
    }

    #[test]
    fn a_flood_is_told_apart_whatever_else_there_is() {
        let tally = Tally::default();
        for number in 0..100 {
            tally.count("socket".to_owned(), format!("family {number}"), [0; 6], true);
        }
        count(&tally, "socket", FLOOD);
        let news = tally.take_news().expect("something was counted");
        let flood = news.iter().find(|kind| kind.form == FLOOD).expect("the flood");
        assert_eq!((flood.count, flood.quiet, news.len()), (1, false, MAX_FORMS + 2));
    }

    #[test]
    fn news_are_told_once_unless_they_were_lost() {
        let tally = Tally::default();
        assert_eq!(tally.take_news(), None);
        count(&tally, "bpf", "");
        count(&tally, "bpf", "");
        let first = tally.take_news().expect("news");
        assert_eq!((first.len(), first[0].count), (1, 2));
        assert_eq!(tally.take_news(), None);
        tally.renew();
        assert_eq!(tally.take_news(), Some(first));
    }

    #[test]
    fn calls_without_number_are_few_rows_too() {
        let tally = Tally::default();
        for number in 0..10_000_u32 {
            count(&tally, &format!("call {number}"), "");
        }
        let news = tally.take_news().expect("something was counted");
        assert_eq!(news.len(), MAX_KINDS + 1);
        assert_eq!(news.iter().map(|kind| kind.count).sum::<u64>(), 10_000);
        assert!(news.iter().any(|kind| kind.call == OTHER_CALLS));
    }

    #[tokio::test]
    async fn who_waits_hears_of_all_that_happens() {
        let tally = Tally::default();
        let first = tally.totals();
        assert_eq!((first.version, first.kinds.len(), first.failed), (0, 0, false));
        let waits = tally.beyond(0);
        let mut waits = pin!(waits);
        assert!(futures::poll!(waits.as_mut()).is_pending());
        count(&tally, "bpf", "");
        waits.await;
        let second = tally.totals();
        assert_eq!((second.version, second.kinds[0].count), (1, 1));
        tally.fail();
        tally.beyond(1).await;
        assert!(tally.totals().failed);
        // What the shim tried is no news, but who asks next must not take it for what he knows.
        tally.forget();
        assert!(tally.totals().version > 2 && tally.totals().kinds.is_empty());
    }
}
