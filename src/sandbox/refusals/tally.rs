//! Counts of refused calls. A hostile sandbox decides how many there are and of how many kinds: both are bounded here.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

/// Forms of one call that are told apart in one attempt; all others are one more. There are as many calls as a kernel has.
pub const MAX_FORMS: usize = 32;

/// The form under which the others are counted.
pub const OTHERS: &str = "(other forms)";

/// Calls of one name and form.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Counted since it was last asked for.
    fresh: bool,
    /// Nobody counts any more, and nobody has been told.
    failed: bool,
}

impl Tally {
    pub fn count(&self, call: String, form: String, arguments: [u64; 6], quiet: bool) {
        let now = Utc::now();
        let mut kinds = self.kinds();
        kinds.fresh = true;
        let mut key = (call, form);
        if !kinds.by_name.contains_key(&key) {
            let forms = kinds
                .by_name
                .range((key.0.clone(), String::new())..)
                .take_while(|(there, _)| there.0 == key.0);
            if forms.count() >= MAX_FORMS {
                key.1 = OTHERS.to_owned();
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
        self.changed.notify_one();
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
    }

    /// Nobody counts any more, although the sandbox goes on.
    pub fn fail(&self) {
        self.kinds().failed = true;
        self.changed.notify_one();
    }

    /// Whether that has happened since this was last asked.
    pub fn take_failure(&self) -> bool {
        std::mem::take(&mut self.kinds().failed)
    }

    /// Asked for again, because what was taken could not be kept.
    pub fn renew(&self) {
        self.kinds().fresh = true;
    }

    /// Waits until something was counted, and `pause` longer, so that a flood is taken in few pieces.
    pub async fn changed(&self, pause: Duration) {
        self.changed.notified().await;
        tokio::time::sleep(pause).await;
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
        assert!(!tally.take_failure());
        tally.fail();
        assert!(tally.take_failure() && !tally.take_failure());
    }
}
