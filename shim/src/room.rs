//! Which of the sandbox's writable places have been full.
//!
//! The kernel keeps no count of writes that found no room, so the places are looked at: often enough, whenever the
//! CLI says something (a program that finds no room mostly says so), and when it ends.

use std::time::{Duration, Instant};

use rustix::fs::statvfs;

/// At the latest, and at the earliest, after the last look.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// A place with less room than this is full: a write may need more than the blocks that are left.
const FULL_BYTES: u64 = 64 * 1024;

pub struct Room {
    places: Vec<(String, bool)>,
    last: Instant,
}

impl Room {
    pub fn new(places: Vec<String>, now: Instant) -> Self {
        Self { places: places.into_iter().map(|place| (place, false)).collect(), last: now }
    }

    /// When [`Room::look`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        if self.places.is_empty() { None } else { self.last.checked_add(LOOK_EVERY) }
    }

    pub fn look_if_due(&mut self, now: Instant) {
        if self.deadline().is_some_and(|due| now >= due) {
            self.look(now);
        }
    }

    /// The CLI has written something.
    pub fn on_output(&mut self, now: Instant) {
        if now.saturating_duration_since(self.last) >= LOOK_AFTER {
            self.look(now);
        }
    }

    pub fn look(&mut self, now: Instant) {
        self.last = now;
        for (place, full) in &mut self.places {
            *full |= is_full(place);
        }
    }

    /// Those that were full at one time or another.
    pub fn full(&self) -> Vec<String> {
        self.places.iter().filter(|(_, full)| *full).map(|(place, _)| place.clone()).collect()
    }
}

/// A file system without a number of inodes of its own says 0 of 0.
fn is_full(place: &str) -> bool {
    statvfs(place).is_ok_and(|stat| {
        let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        (stat.f_blocks > 0 && bytes < FULL_BYTES) || (stat.f_files > 0 && stat.f_favail == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_of_its_own_or_is_not_there_is_not_full() {
        let now = Instant::now();
        let mut room = Room::new(vec!["/proc".to_owned(), "/nowhere".to_owned()], now);
        room.look(now);
        assert!(room.full().is_empty());
        assert_eq!(Room::new(Vec::new(), now).deadline(), None, "nothing to look at");
    }

    #[test]
    fn what_was_full_once_is_told_at_the_end() {
        let now = Instant::now();
        let mut room = Room { places: vec![("/proc".to_owned(), true)], last: now };
        room.look(now);
        assert_eq!(room.full(), ["/proc"]);
    }
}
