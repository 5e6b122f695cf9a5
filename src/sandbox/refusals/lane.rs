//! How fast a sandbox has answers of one kind, and the calls that wait for theirs.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use kage_notify::Listener;
use tokio::time::Instant;

/// How fast a sandbox has its answers. Each costs us some microseconds, and its caller waits for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Answers at full speed, before it is slowed down.
    pub burst: f64,
    /// Answers in a second beyond that.
    pub steady: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { burst: 500_000.0, steady: 2_000.0 }
    }
}

/// Between two looks at what is due.
const LOOK: Duration = Duration::from_millis(20);
/// Held calls among which none is looked for whose caller has gone.
const FEW: usize = 1024;

/// A bucket of answers that fills up again, and the calls that wait for one. Those that wait are at most as many as the
/// sandbox may have threads; beyond a thousand, others are found and let go.
#[derive(Debug)]
pub(super) struct Lane {
    pace: Pace,
    left: f64,
    at: Instant,
    held: VecDeque<Held>,
    /// When it was last seen to.
    looked: Instant,
    /// Held calls at which those without a caller are let go.
    swept_at: usize,
}

/// A call that was counted, and has no answer yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub call: u64,
    pub reply: Reply,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// The error number.
    Refuse(u16),
    /// The call is an allowed one, and was looked at.
    Pass,
}

impl Held {
    /// False: its caller does not wait any more.
    pub fn send(&self, listener: &Listener) -> io::Result<bool> {
        match self.reply {
            Reply::Refuse(errno) => listener.refuse(self.call, errno),
            Reply::Pass => listener.let_pass(self.call),
        }
    }
}

impl Lane {
    pub fn new(pace: Pace) -> Self {
        let now = Instant::now();
        Self { pace, left: pace.burst, at: now, held: VecDeque::new(), looked: now, swept_at: FEW }
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether there is an answer left now.
    pub fn has_some(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.pace.steady).min(self.pace.burst);
        self.at = now;
        self.left >= 1.0
    }

    /// One less; not below none.
    pub fn spend(&mut self, now: Instant) {
        self.left = if self.has_some(now) { self.left - 1.0 } else { 0.0 };
    }

    /// Keeps a call for later.
    pub fn hold(&mut self, held: Held, waits: impl Fn(&Held) -> bool) {
        self.held.push_back(held);
        if self.held.len() >= self.swept_at {
            self.held.retain(waits);
            self.swept_at = FEW.max(self.held.len() * 2);
        }
    }

    /// When to look next; none if nothing is held.
    pub fn due(&mut self, now: Instant) -> Option<Instant> {
        (!self.held.is_empty()).then(|| {
            let missing = if self.has_some(now) { 0.0 } else { (1.0 - self.left) / self.pace.steady };
            (self.looked + LOOK).max(now + Duration::from_secs_f64(missing))
        })
    }

    /// Answers what there are answers for, in the order in which it came. `send`: false if nobody waits for it any more,
    /// which costs nothing.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn release(&mut self, now: Instant, send: impl Fn(&Held) -> io::Result<bool>) -> io::Result<()> {
        self.looked = now;
        while !self.held.is_empty() && self.has_some(now) {
            if let Some(held) = self.held.pop_front()
                && send(&held)?
            {
                self.spend(now);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { burst: 3.0, steady: 10.0 };

    fn held(call: u64) -> Held {
        Held { call, reply: Reply::Refuse(1) }
    }

    fn released(lane: &mut Lane, now: Instant, gone: impl Fn(u64) -> bool) -> Vec<u64> {
        let sent = std::cell::RefCell::new(Vec::new());
        let send = |held: &Held| {
            let waits = !gone(held.call);
            if waits {
                sent.borrow_mut().push(held.call);
            }
            Ok(waits)
        };
        lane.release(now, send).expect("nothing fails");
        sent.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_so_many_in_a_second_in_the_order_they_came() {
        let (mut lane, start) = (Lane::new(PACE), Instant::now());
        for _ in 0..3 {
            assert!(lane.has_some(start));
            lane.spend(start);
        }
        assert!(!lane.has_some(start) && lane.due(start).is_none());
        (0..20).for_each(|call| lane.hold(held(call), |_| true));
        assert_eq!(released(&mut lane, start, |_| false), Vec::<u64>::new());
        assert_eq!(lane.due(start), Some(start + Duration::from_millis(100)));
        let later = start + Duration::from_millis(250);
        assert_eq!(released(&mut lane, later, |_| false), [0, 1]);
        // Those that nobody waits for cost nothing; and what was not used for an hour is no more than a burst.
        let much_later = start + Duration::from_secs(3600);
        assert_eq!(released(&mut lane, much_later, |call| call % 2 == 0), [3, 5, 7]);
        assert!(!lane.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_are_killed_are_not_held_for_ever() {
        let mut lane = Lane::new(PACE);
        for call in 0..1_000_000 {
            lane.hold(held(call), |held| held.call < 700);
            assert!(lane.held.len() <= 2 * FEW, "{} are held", lane.held.len());
        }
        assert_eq!(released(&mut lane, Instant::now(), |_| false), [0, 1, 2]);
    }
}
