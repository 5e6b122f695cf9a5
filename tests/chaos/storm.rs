//! A storm: the plan's faults come over a world in which its tasks are at work.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::faketime;
use crate::filling::{fill, free};
use crate::plan::{Fault, Plan, Strike};
use crate::proxy::Weather;
use crate::support::leftovers;
use crate::world::World;

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// The faults that are on.
pub struct Storm<'a> {
    world: &'a mut World,
    begun: Instant,
    /// Faults that wait for a sandbox to strike.
    waiting: Vec<(usize, Strike)>,
    /// Sandboxes that were paused, by the fault's place in the plan.
    paused: BTreeMap<usize, String>,
    snatchers: BTreeMap<usize, JoinHandle<()>>,
    snatched: Arc<AtomicUsize>,
    engine_held: usize,
    database_held: usize,
    pub counts: BTreeMap<String, usize>,
    /// Planned, and met nobody.
    pub missed: usize,
}

impl<'a> Storm<'a> {
    pub fn over(world: &'a mut World, begun: Instant) -> Self {
        Self {
            world,
            begun,
            waiting: Vec::new(),
            paused: BTreeMap::new(),
            snatchers: BTreeMap::new(),
            snatched: Arc::default(),
            engine_held: 0,
            database_held: 0,
            counts: BTreeMap::new(),
            missed: 0,
        }
    }

    /// From the first fault until the last is made good.
    pub async fn pass(&mut self, plan: &Plan) {
        // Ends before beginnings of the same moment.
        let mut due: Vec<(u64, bool, usize)> = Vec::new();
        for (place, strike) in plan.strikes.iter().enumerate() {
            due.push((strike.at, true, place));
            due.push((strike.at + strike.hold, false, place));
        }
        due.sort_unstable();
        for (at, begins, place) in due {
            let at = self.begun + Duration::from_millis(at);
            while Instant::now() < at {
                self.tick();
                sleep(TICK).await;
            }
            let strike = plan.strikes[place];
            let now = self.begun.elapsed().as_millis();
            if begins {
                println!("{now:>8} ms  {:?}", strike.fault);
                // What blocks must not hold up the clients.
                tokio::task::block_in_place(|| self.begin(place, strike));
            } else {
                tokio::task::block_in_place(|| self.end(place, strike));
            }
        }
        while Instant::now() < self.begun + Duration::from_secs(plan.length) {
            self.tick();
            sleep(TICK).await;
        }
        let snatched = self.snatched.load(Ordering::Relaxed);
        if snatched > 0 {
            self.counts.insert(Fault::Snatched.kind(), snatched);
        }
    }

    fn count(&mut self, strike: Strike, done: bool) {
        if done {
            *self.counts.entry(strike.fault.kind()).or_default() += 1;
        } else {
            self.missed += 1;
        }
    }

    /// What is to be looked at all the time.
    fn tick(&mut self) {
        tokio::task::block_in_place(|| {
            self.world.supervise();
            for (place, strike) in std::mem::take(&mut self.waiting) {
                if !self.strike_a_sandbox(place, strike) {
                    self.waiting.push((place, strike));
                }
            }
        });
    }

    fn begin(&mut self, place: usize, strike: Strike) {
        let done = match strike.fault {
            Fault::Kill(role) => self.world.strike(role, Signal::KILL),
            Fault::Terminate(role) => self.world.strike(role, Signal::TERM),
            Fault::Skew(role) => {
                let hours = i64::from(strike.which % 48) - 24;
                self.world.skew(role, hours * 3_600 + 1_800);
                self.world.strike(role, Signal::KILL);
                faketime::library().is_some()
            }
            Fault::Freeze(role) => self.world.signal(role, Signal::STOP),
            Fault::KillKeeper => self.kill_keeper(strike.which),
            Fault::EngineKilled | Fault::EngineStopped => {
                self.engine_held += 1;
                let first = self.engine_held == 1;
                if first {
                    let killed = strike.fault == Fault::EngineKilled;
                    self.world.engine.end(if killed { Signal::KILL } else { Signal::TERM });
                }
                first
            }
            Fault::DatabaseStopped | Fault::DatabaseCrashed => {
                self.database_held += 1;
                let first = self.database_held == 1;
                if first {
                    let crashed = strike.fault == Fault::DatabaseCrashed;
                    self.world.cluster.stop(if crashed { "immediate" } else { "fast" });
                }
                first
            }
            Fault::DatabaseCut => {
                self.world.proxy.cut();
                true
            }
            Fault::DatabaseSlow => {
                let delay = Duration::from_millis(u64::from(strike.which % 150) + 20);
                self.world.proxy.set(Weather { delay, rate: Some(150_000), ..Weather::default() });
                true
            }
            Fault::DatabaseSilent => {
                self.world.proxy.set(Weather { is_black_hole: true, ..Weather::default() });
                true
            }
            // Counted when they have met one.
            Fault::Removed | Fault::Paused | Fault::PausedForGood => {
                self.waiting.push((place, strike));
                return;
            }
            Fault::Snatched => {
                let snatcher = self.snatch();
                self.snatchers.insert(place, snatcher);
                return;
            }
            Fault::DataFull => fill(&self.world.kage.data),
            Fault::EngineFull => fill(&self.world.engine.path("data")),
        };
        self.count(strike, done);
    }

    fn end(&mut self, place: usize, strike: Strike) {
        match strike.fault {
            Fault::Kill(role) | Fault::Terminate(role) | Fault::Skew(role) => self.world.let_up(role),
            Fault::Freeze(role) => {
                self.world.signal(role, Signal::CONT);
            }
            Fault::EngineKilled | Fault::EngineStopped => {
                self.engine_held -= 1;
                if self.engine_held == 0 {
                    let options = self.world.engine_options.clone();
                    self.world.engine.begin(&options);
                }
            }
            Fault::DatabaseStopped | Fault::DatabaseCrashed => {
                self.database_held -= 1;
                if self.database_held == 0 {
                    self.world.cluster.begin();
                }
            }
            Fault::DatabaseSlow | Fault::DatabaseSilent => self.world.proxy.set(Weather::default()),
            Fault::Removed | Fault::Paused | Fault::PausedForGood => {
                let before = self.waiting.len();
                self.waiting.retain(|(waiting, _)| *waiting != place);
                if self.waiting.len() < before {
                    self.missed += 1;
                }
                if let Some(id) = self.paused.remove(&place) {
                    let _ = self.world.engine.docker().args(["unpause", &id]).output();
                }
            }
            Fault::Snatched => {
                if let Some(snatcher) = self.snatchers.remove(&place) {
                    snatcher.abort();
                }
            }
            Fault::DataFull => free(&self.world.kage.data),
            Fault::EngineFull => free(&self.world.engine.path("data")),
            Fault::KillKeeper | Fault::DatabaseCut => {}
        }
    }

    /// Whether there was one.
    fn strike_a_sandbox(&mut self, place: usize, strike: Strike) -> bool {
        if self.engine_held > 0 {
            return false;
        }
        let listed =
            self.world.engine.docker().args(["ps", "--quiet", "--filter", "status=running"]).output();
        let listed =
            listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let mut ids: Vec<&str> = listed.lines().collect();
        ids.reverse();
        let Some(id) = ids.get(strike.which as usize % ids.len().max(1)) else { return false };
        let args: &[&str] =
            if strike.fault == Fault::Removed { &["rm", "--force", id] } else { &["pause", id] };
        let done = self.world.engine.docker().args(args).output().is_ok_and(|output| output.status.success());
        if done {
            println!("{:>8} ms  {:?} {id}", self.begun.elapsed().as_millis(), strike.fault);
            self.count(strike, true);
            if strike.fault == Fault::Paused {
                self.paused.insert(place, (*id).to_owned());
            }
        }
        done
    }

    fn kill_keeper(&self, which: u32) -> bool {
        let folders = [self.world.kage.data.clone(), self.world.second()];
        let keepers: Vec<_> = folders.iter().filter_map(|folder| leftovers::keeper(folder)).collect();
        let chosen = keepers.get(which as usize % keepers.len().max(1));
        chosen.is_some_and(|keeper| kill_process(*keeper, Signal::KILL).is_ok())
    }

    /// Removes what is created, between the runner's call that creates it and the one that starts it.
    fn snatch(&self) -> JoinHandle<()> {
        let docker = |args: &[&str]| {
            let mut command = tokio::process::Command::from(self.world.engine.docker());
            command.args(args).stdin(Stdio::null()).kill_on_drop(true);
            command
        };
        let mut events = docker(&["events", "--filter", "event=create", "--format", "{{.ID}}"]);
        let (url, program) = (self.world.engine.url(), self.world.engine.docker().get_program().to_owned());
        let snatched = Arc::clone(&self.snatched);
        tokio::spawn(async move {
            let Ok(mut events) = events.stdout(Stdio::piped()).spawn() else { return };
            let mut lines = BufReader::new(events.stdout.take().expect("a pipe")).lines();
            while let Ok(Some(id)) = lines.next_line().await {
                let mut remove = tokio::process::Command::new(&program);
                remove.env("DOCKER_HOST", &url).env_remove("DOCKER_CONTEXT").args(["rm", "--force", &id]);
                let removed = remove.stdout(Stdio::null()).stderr(Stdio::null()).status().await;
                if removed.is_ok_and(|status| status.success()) {
                    snatched.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    }
}
