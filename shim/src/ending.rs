//! How a run is brought to its end: SIGTERM to every process, the grace time, SIGKILL
//! until none is left.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::processes::Processes;

/// Between two passes of SIGKILL; what was forked during one pass is caught by the next.
const PASS: Duration = Duration::from_millis(10);

/// A process that outlives SIGKILL for this long (uninterruptible sleep) is left to the
/// end of the container.
const GIVE_UP: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Stage {
    Asked { kill_at: Option<Instant> },
    Killing { next_pass: Instant, give_up: Instant },
    Over,
}

#[derive(Debug)]
pub struct Ending {
    processes: Processes,
    stage: Stage,
}

impl Ending {
    /// Sends SIGTERM, and lets stopped processes run so that they can obey.
    pub fn begin(processes: Processes, grace: Duration, now: Instant) -> Self {
        processes.signal_all(Signal::TERM);
        processes.signal_all(Signal::CONT);
        Self { processes, stage: Stage::Asked { kill_at: now.checked_add(grace) } }
    }

    /// Takes the next step that is due. Call it whenever a child was reaped and at
    /// [`Ending::deadline`].
    pub fn step(&mut self, now: Instant) {
        if self.is_over() {
            return;
        }
        if self.processes.none_left() {
            self.stage = Stage::Over;
            return;
        }
        match self.stage {
            Stage::Asked { kill_at: Some(kill_at) } if now >= kill_at => self.kill(now, now + GIVE_UP),
            Stage::Killing { give_up, .. } if now >= give_up => self.stage = Stage::Over,
            Stage::Killing { next_pass, give_up } if now >= next_pass => self.kill(now, give_up),
            Stage::Asked { .. } | Stage::Killing { .. } | Stage::Over => {}
        }
    }

    fn kill(&mut self, now: Instant, give_up: Instant) {
        self.processes.signal_all(Signal::KILL);
        self.stage = Stage::Killing { next_pass: now + PASS, give_up };
    }

    /// Whether no process is left, or none that can be ended.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// When [`Ending::step`] has to be called next, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Asked { kill_at } => kill_at,
            Stage::Killing { next_pass, give_up } => Some(next_pass.min(give_up)),
            Stage::Over => None,
        }
    }
}
