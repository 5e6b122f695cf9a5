//! Requests a minute, and how much of what is refused is told.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// So many in any minute.
#[derive(Debug)]
pub(super) struct Rate {
    most: usize,
    recent: VecDeque<Instant>,
}

impl Rate {
    pub fn new(a_minute: u32) -> Self {
        Self { most: a_minute as usize, recent: VecDeque::new() }
    }

    /// Takes one, or says after how many seconds there will be one.
    pub fn admit(&mut self, now: Instant) -> Result<(), u64> {
        while self.recent.front().is_some_and(|first| now.duration_since(*first) >= MINUTE) {
            self.recent.pop_front();
        }
        match self.recent.front() {
            Some(first) if self.recent.len() >= self.most => {
                Err((MINUTE - now.duration_since(*first)).as_secs() + 1)
            }
            _ => {
                self.recent.push_back(now);
                Ok(())
            }
        }
    }
}

/// What is told of a kind of event that a hostile CLI can cause at will: a few a minute, the others counted.
#[derive(Debug)]
pub(super) struct Told {
    rate: Rate,
    untold: u64,
}

impl Told {
    pub fn new(a_minute: u32) -> Self {
        Self { rate: Rate::new(a_minute), untold: 0 }
    }

    /// Whether to tell of this one, and how many before it were not told.
    pub fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.rate.admit(now).is_ok() {
            return Some(std::mem::take(&mut self.untold));
        }
        self.untold += 1;
        None
    }

    /// How many are left that nobody was told of.
    pub fn take_untold(&mut self) -> u64 {
        std::mem::take(&mut self.untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_holds_so_many() {
        let mut rate = Rate::new(2);
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        assert_eq!(rate.admit(at(0)), Ok(()));
        assert_eq!(rate.admit(at(30)), Ok(()));
        assert_eq!(rate.admit(at(40)), Err(21));
        assert_eq!(rate.admit(at(60)), Ok(()));
        assert_eq!(rate.admit(at(61)), Err(30));
    }

    #[test]
    fn what_is_not_told_is_counted() {
        let mut told = Told::new(1);
        let start = Instant::now();
        assert_eq!(told.tell(start), Some(0));
        assert_eq!(told.tell(start), None);
        assert_eq!(told.tell(start), None);
        assert_eq!(told.tell(start + MINUTE), Some(2));
        assert_eq!(told.take_untold(), 0);
    }
}
