//! What goes wrong in a storm, when, and to whom: a pure function of its seed, so that a seed replays.

use std::fmt;

use rand::rngs::ChaCha20Rng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::work::{Job, Work};

/// Who can be struck. `Second` is another runner on the same host, with a data folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Api,
    Runner,
    Second,
    Gateway,
    Sequencer,
    Notifier,
    Retention,
}

impl Role {
    pub const fn program(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Runner | Self::Second => "runner",
            Self::Gateway => "gateway",
            Self::Sequencer => "sequencer",
            Self::Notifier => "notifier",
            Self::Retention => "retention",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9`, and a start some time later.
    Kill(Role),
    /// SIGTERM, and a start some time later.
    Terminate(Role),
    /// The keeper of refused calls, by `kill -9`: the runner starts another.
    KillKeeper,
    /// SIGSTOP for longer than a lease.
    Freeze(Role),
    /// The role's clock is an hour or more off from now on.
    Skew(Role),
    EngineKilled,
    EngineStopped,
    DatabaseStopped,
    DatabaseCrashed,
    DatabaseCut,
    DatabaseSlow,
    DatabaseSilent,
    /// `docker rm -f` of a sandbox.
    Removed,
    /// `docker pause`, and `unpause` some time later.
    Paused,
    /// `docker pause` for good.
    PausedForGood,
    /// Each new container is removed as soon as the engine says that there is one.
    Snatched,
    DataFull,
    EngineFull,
}

impl Fault {
    /// As the summary counts it.
    pub fn kind(self) -> String {
        match self {
            Self::Kill(role) => format!("kill -9 {}", role.program()),
            Self::Terminate(role) => format!("SIGTERM {}", role.program()),
            Self::Freeze(role) => format!("SIGSTOP {}", role.program()),
            Self::Skew(role) => format!("clock of {} off", role.program()),
            Self::KillKeeper => "kill -9 keeper".to_owned(),
            Self::EngineKilled => "kill -9 dockerd".to_owned(),
            Self::EngineStopped => "SIGTERM dockerd".to_owned(),
            Self::DatabaseStopped => "Postgres stopped".to_owned(),
            Self::DatabaseCrashed => "Postgres crashed".to_owned(),
            Self::DatabaseCut => "connections cut".to_owned(),
            Self::DatabaseSlow => "network slow".to_owned(),
            Self::DatabaseSilent => "network silent".to_owned(),
            Self::Removed => "docker rm -f".to_owned(),
            Self::Paused => "docker pause, unpause".to_owned(),
            Self::PausedForGood => "docker pause".to_owned(),
            Self::Snatched => "removed at creation".to_owned(),
            Self::DataFull => "data folder full".to_owned(),
            Self::EngineFull => "engine's disk full".to_owned(),
        }
    }

    /// Whether it can end a sandbox, or keep one from being made, by no fault of the run.
    pub const fn takes_sandboxes(self, live_restore: bool) -> bool {
        match self {
            Self::EngineKilled | Self::EngineStopped => !live_restore,
            Self::Removed | Self::PausedForGood | Self::Snatched | Self::DataFull | Self::EngineFull => true,
            _ => false,
        }
    }
}

/// A fault, as it was drawn.
#[derive(Debug, Clone, Copy)]
pub struct Strike {
    /// Milliseconds after the storm's beginning.
    pub at: u64,
    pub fault: Fault,
    /// Milliseconds until it is made good; what cannot be made good ignores it.
    pub hold: u64,
    /// Which of the sandboxes that are there, modulo their number; how far off a clock goes.
    pub which: u32,
}

/// The world that the storm is over.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub live_restore: bool,
    /// With a second runner. Its data folder is not the gateway's, so there are no runs that ask a model.
    pub second: bool,
}

pub struct Plan {
    pub seed: u64,
    pub setup: Setup,
    pub strikes: Vec<Strike>,
    pub jobs: Vec<Job>,
    /// When there is one more month that is long past: milliseconds after the storm's beginning.
    pub months: Vec<u64>,
    /// Seconds, after which no new fault comes.
    pub length: u64,
}

/// Milliseconds between two faults, on average.
const BETWEEN: u64 = 3_000;
/// As above, between two tasks; less in a short storm, in which there is one of each kind all the same.
const BETWEEN_JOBS: u64 = 2_800;
/// As above, between two faults that meet `kage retention`, and between two months that it is to let go of.
const BETWEEN_RETENTION: u64 = 8_000;
const BETWEEN_MONTHS: u64 = 2_500;

/// Seconds of a storm in which a run may take a minute.
const LONG: u64 = 30;

impl Plan {
    /// `only`: faults whose names begin with one of these; none: all.
    pub fn of(seed: u64, length: u64, only: &[String]) -> Self {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let setup = Setup { live_restore: random.random(), second: random.random_ratio(1, 3) };
        let mut strikes = strikes(faults(setup), only, length, BETWEEN, &mut random);
        let (mut jobs, between) = (Vec::new(), BETWEEN_JOBS.min(length * 1_000 / 9));
        let mut at = 0;
        let mut kinds: Vec<Work> =
            Work::ALL.into_iter().filter(|work| !(setup.second && *work == Work::Asks)).collect();
        let drawn = kinds.clone();
        if length >= LONG {
            kinds.insert(1, Work::TimesOut);
        }
        while at < length * 1_000 {
            let work = match kinds.get(jobs.len()) {
                // Each kind once, then as it comes.
                Some(work) => *work,
                None => *drawn.choose(&mut random).expect("some"),
            };
            jobs.push(Job {
                number: jobs.len(),
                at,
                work,
                size: random.random_range(5..60),
                seed: random.random(),
            });
            at += random.random_range(between / 3..between * 5 / 3);
        }
        // Of a stream of their own: what came before retention was struck stays what its seed says.
        random.set_stream(1);
        strikes.extend(self::strikes(of_retention(), only, length, BETWEEN_RETENTION, &mut random));
        strikes.sort_by_key(|strike| strike.at);
        assert!(!strikes.is_empty(), "KAGE_CHAOS_ONLY leaves no fault");
        let months = moments(length, BETWEEN_MONTHS, &mut random);
        Self { seed, setup, strikes, jobs, months, length }
    }

    /// Whether a sandbox may have been taken from a run, by what was planned.
    pub fn takes_sandboxes(&self) -> bool {
        self.strikes.iter().any(|strike| {
            strike.fault.takes_sandboxes(self.setup.live_restore)
                // Another runner takes over, which has not got the first one's files.
                || (self.setup.second
                    && matches!(strike.fault, Fault::Kill(Role::Runner | Role::Second) | Fault::Terminate(Role::Runner | Role::Second)
                        | Fault::Freeze(_) | Fault::Skew(Role::Runner | Role::Second) | Fault::DatabaseSilent
                        | Fault::DatabaseStopped | Fault::DatabaseCrashed | Fault::DatabaseSlow))
        })
    }
}

/// Faults out of these, from the second second on.
fn strikes(
    mut all: Vec<Fault>,
    only: &[String],
    length: u64,
    between: u64,
    random: &mut ChaCha20Rng,
) -> Vec<Strike> {
    all.retain(|fault| {
        let name = format!("{fault:?}");
        only.is_empty() || only.iter().any(|only| name.starts_with(only))
    });
    let mut strikes = Vec::new();
    let mut at = 2_000;
    while at < length * 1_000 {
        let Some(fault) = all.choose(random).copied() else { return strikes };
        let hold = match fault {
            // A lease is five seconds.
            Fault::Freeze(_) => random.random_range(6_000..10_000),
            Fault::DatabaseSlow | Fault::Snatched | Fault::DataFull | Fault::EngineFull => {
                random.random_range(2_000..6_000)
            }
            _ => random.random_range(100..5_000),
        };
        strikes.push(Strike { at, fault, hold, which: random.random() });
        at += random.random_range(between / 3..between * 5 / 3);
    }
    strikes
}

/// Moments of a storm, so far from one another on average.
fn moments(length: u64, between: u64, random: &mut ChaCha20Rng) -> Vec<u64> {
    let mut moments = Vec::new();
    let mut at = 0;
    while at < length * 1_000 {
        moments.push(at);
        at += random.random_range(between / 3..between * 5 / 3);
    }
    moments
}

/// What can happen to `kage retention`, in every world.
fn of_retention() -> Vec<Fault> {
    let role = Role::Retention;
    vec![Fault::Kill(role), Fault::Kill(role), Fault::Terminate(role), Fault::Skew(role)]
}

/// What can happen in such a world. Those that are the point come more often.
fn faults(setup: Setup) -> Vec<Fault> {
    let mut all = vec![
        Fault::KillKeeper,
        Fault::EngineKilled,
        Fault::EngineStopped,
        Fault::DatabaseStopped,
        Fault::DatabaseCrashed,
        Fault::DatabaseCut,
        Fault::DatabaseSlow,
        Fault::DatabaseSilent,
        Fault::Removed,
        Fault::Paused,
        Fault::PausedForGood,
        Fault::Snatched,
        Fault::DataFull,
        Fault::EngineFull,
        Fault::Freeze(Role::Runner),
        Fault::Kill(Role::Runner),
        Fault::Terminate(Role::Runner),
    ];
    let mut roles = vec![Role::Api, Role::Runner, Role::Sequencer, Role::Notifier];
    if setup.second {
        roles.push(Role::Second);
        all.extend([Fault::Freeze(Role::Second), Fault::Freeze(Role::Runner)]);
    } else {
        roles.push(Role::Gateway);
    }
    for role in roles {
        all.extend([Fault::Kill(role), Fault::Terminate(role)]);
        if role != Role::Notifier {
            all.push(Fault::Skew(role));
        }
    }
    all
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "KAGE_CHAOS_SEED={}: {} s, {} live-restore, {}",
            self.seed,
            self.length,
            if self.setup.live_restore { "with" } else { "without" },
            if self.setup.second { "two runners" } else { "one runner, a gateway" }
        )?;
        for Strike { at, fault, hold, which } in &self.strikes {
            writeln!(f, "  {at:>6} ms  {fault:?}, for {hold} ms, victim {which}")?;
        }
        for Job { number, at, work, size, .. } in &self.jobs {
            writeln!(f, "  {at:>6} ms  task {number}: {work:?}, size {size}")?;
        }
        writeln!(f, "  months long past at {:?} ms", self.months)?;
        Ok(())
    }
}

#[test]
fn a_seed_replays() {
    let (one, two) = (Plan::of(7, 60, &[]), Plan::of(7, 60, &[]));
    assert_eq!(one.to_string(), two.to_string());
    assert_ne!(one.to_string(), Plan::of(8, 60, &[]).to_string());
    // Held fast, so that a seed of an old report still means the same: change both together.
    let first = &one.strikes[0];
    insta::assert_debug_snapshot!((one.setup, one.strikes.len(), one.jobs.len(), one.months.len(), first));
}
