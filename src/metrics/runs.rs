//! Runs: the queue, the road, the ends, and what their sandboxes were refused.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::family::{Book, Histograms, LONG, counter, counters, gauge, gauges, histograms};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Expected {
    expected: &'static str,
}

/// A part of an attempt's road.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From the moment at which it might have been claimed.
    Queue,
    /// Base, worktree, container.
    Prepare,
    /// From the container's start to the CLI's end.
    Run,
    /// From the CLI's end to the run's.
    Harvest,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Queue, Self::Prepare, Self::Run, Self::Harvest];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Prepare => "prepare",
            Self::Run => "run",
            Self::Harvest => "harvest",
        }
    }
}

/// The queue as it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Queue {
    /// Runs that might be claimed: those in a back-off are not among them.
    pub length: i64,
    /// How long the first of them waits, in seconds.
    pub oldest_secs: f64,
    /// Runners that said within half a minute that they are there, and take runs.
    pub runners: i64,
}

pub struct Runs {
    length: Gauge,
    oldest: Gauge<f64, AtomicU64>,
    runners: Gauge,
    open: Family<State, Gauge>,
    ended: Family<State, Counter>,
    retried: Counter,
    phases: Histograms<InPhase>,
    refused_calls: Family<Expected, Counter>,
    uncounted: Counter,
    containment_refusals: Counter,
    quarantined: Counter,
    leases_lost: Counter,
}

impl Runs {
    pub(super) fn register(book: &mut Book) -> Self {
        let this = Self {
            length: gauge(book, "queue_length", "Runs that wait for a runner and might be claimed"),
            oldest: gauge(book, "queue_oldest_age_seconds", "How long the first of them waits"),
            runners: gauge(book, "runners_alive", "Runners that are there and take runs"),
            open: gauges(book, "runs", "Runs that have not ended"),
            ended: counters(book, "runs_ended", "Runs that ended, by how"),
            retried: counter(book, "run_attempts_retried", "Attempts after which the run is tried again"),
            phases: histograms(
                book,
                "run_phase_duration_seconds",
                "How long the parts of an attempt take",
                LONG,
            ),
            refused_calls: counters(book, "refused_calls", "System calls that sandboxes were refused"),
            uncounted: counter(
                book,
                "refused_calls_uncounted",
                "Attempts whose refused system calls were not counted to the end",
            ),
            containment_refusals: counter(
                book,
                "containment_refusals",
                "Sandboxes that were not what they were asked to be",
            ),
            quarantined: counter(
                book,
                "quarantined_paths",
                "Paths of repositories that runs did not see since nobody has approved them",
            ),
            leases_lost: counter(book, "leases_lost", "Runs that this runner had to let go"),
        };
        for phase in Phase::ALL {
            drop(this.phases.get_or_create(&InPhase { phase: phase.as_str() }));
        }
        for expected in ["true", "false"] {
            drop(this.refused_calls.get_or_create(&Expected { expected }));
        }
        for state in
            ["succeeded", "failed", "sandbox_error", "containment_refused", "lost", "budget_exhausted"]
        {
            drop(this.ended.get_or_create(&State { state }));
        }
        this
    }

    /// `open`: every state that is not an end, with how many runs are in it.
    pub fn stand(&self, queue: Queue, open: &[(&'static str, i64)]) {
        self.length.set(queue.length);
        self.oldest.set(queue.oldest_secs);
        self.runners.set(queue.runners);
        for (state, count) in open {
            self.open.get_or_create(&State { state }).set(*count);
        }
    }

    pub fn ended(&self, state: &'static str) {
        self.ended.get_or_create(&State { state }).inc();
    }

    pub fn retried(&self) {
        self.retried.inc();
    }

    pub fn took(&self, phase: Phase, time: Duration) {
        self.phases.get_or_create(&InPhase { phase: phase.as_str() }).observe(time.as_secs_f64());
    }

    /// So many more calls. `expected`: ordinary programs try them.
    pub fn refused(&self, expected: bool, more: u64) {
        let expected = if expected { "true" } else { "false" };
        self.refused_calls.get_or_create(&Expected { expected }).inc_by(more);
    }

    pub fn uncounted(&self) {
        self.uncounted.inc();
    }

    pub fn containment_refused(&self) {
        self.containment_refusals.inc();
    }

    pub fn quarantined(&self, paths: usize) {
        self.quarantined.inc_by(paths as u64);
    }

    pub fn lease_lost(&self) {
        self.leases_lost.inc();
    }
}
