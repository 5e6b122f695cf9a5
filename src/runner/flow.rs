//! How many events a run makes of its output, and that this has an end.

use crate::db::events::NewEvent;

/// Events of an attempt that are read from its lines; further ones are left in the log alone.
const MAX_MAPPED: u32 = 50_000;

const GATHERED: &str = "it writes so much in so small pieces that its output is gathered for longer from here on, and the \
    order between its two streams within that time is not kept";
const LEFT_OUT: &str = "so many events were read from its output that further ones are left in its log alone";

/// Counts of one attempt, as far as this process knows.
#[derive(Default)]
pub(super) struct Flow {
    mapped: u32,
    told_gathered: bool,
    told_left_out: bool,
}

impl Flow {
    /// The event, if there is room for it.
    pub fn admit(&mut self, event: Option<NewEvent>) -> Option<NewEvent> {
        let event = event?;
        self.mapped = self.mapped.saturating_add(1);
        (self.mapped <= MAX_MAPPED).then_some(event)
    }

    /// What the run's watchers are to be told now; each thing once. `gathered`: its output is, for longer than at first.
    pub fn news(&mut self, gathered: bool) -> Option<&'static str> {
        if gathered && !std::mem::replace(&mut self.told_gathered, true) {
            return Some(GATHERED);
        }
        let left_out = self.mapped > MAX_MAPPED;
        (left_out && !std::mem::replace(&mut self.told_left_out, true)).then_some(LEFT_OUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::EventKind;

    #[test]
    fn there_is_an_end_to_events_and_it_is_told_once() {
        let mut flow = Flow::default();
        let event = || Some(NewEvent::other(EventKind::Warning, &"x"));
        let kept = (0..MAX_MAPPED + 10).filter(|_| flow.admit(event()).is_some()).count();
        assert_eq!(kept, MAX_MAPPED as usize);
        assert_eq!(
            (flow.news(true), flow.news(true), flow.news(true)),
            (Some(GATHERED), Some(LEFT_OUT), None)
        );
        assert_eq!(Flow::default().news(false), None);
        assert!(flow.admit(None).is_none());
    }
}
