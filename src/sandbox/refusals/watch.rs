//! Answers the calls of one sandbox until its last process has ended.
//!
//! A call whose caller is killed while it waits to be received is withdrawn by the kernel, and nobody hears of it. So
//! every call is received and counted as soon as it is there; what is held back of a flood is its answers ([`Lane`]).

use std::io;
use std::time::Duration;

use kage_notify::ready::AsyncListener;
use kage_notify::{Call, Listener, Waiting};
use tokio::time::{Instant, sleep, sleep_until};

use crate::sandbox::refusals::lane::{Held, Lane, Pace, Reply};
use crate::sandbox::refusals::tally::{FLOOD, Tally};
use crate::sandbox::refusals::{address, words};
use crate::sandbox::seccomp;
use crate::sandbox::seccomp::architecture::Architecture;

/// Where the host does not let us read: no CAP_SYS_PTRACE, or another PID namespace.
const UNREADABLE: &str = "to an address that could not be read";
/// Calls after which other tasks of the process have their turn.
const TURN: u32 = 32;
/// Between two looks at what waits, once a sandbox has had its burst: callers that are killed, or whose wait a signal
/// breaks off, cost it little and us a call each.
const PAUSE: Duration = Duration::from_millis(1);

/// How many times faster than it has answers of one kind a sandbox may go on to call before that.
const RECEIVED: f64 = 5.0;

/// What a sandbox's calls are, for their pace: a flood of the one kind does not hold up the others.
#[derive(Debug)]
struct Lanes {
    /// Ordinary programs try them.
    expected: Lane,
    alarming: Lane,
    /// Allowed, and looked at.
    observed: Lane,
    /// What is received; its answers are never held.
    received: Lane,
}

/// Runs until no process has the filter any more. An error ends it too: the kernel refuses from then on.
///
/// # Errors
/// The kernel's.
pub async fn answer_all(listener: Listener, tally: &Tally, pace: Pace) -> io::Result<()> {
    let listener = AsyncListener::new(listener)?;
    let mut lanes = Lanes::new(pace);
    let mut turn = 0_u32;
    loop {
        let due = lanes.due();
        let call = tokio::select! {
            // It takes nothing when it is dropped.
            biased;
            call = listener.next() => call?,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                lanes.release(listener.get())?;
                continue;
            }
        };
        let Some(call) = call else { return Ok(()) };
        lanes.take(listener.get(), &call, tally)?;
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(TURN) {
            lanes.release(listener.get())?;
            tokio::task::yield_now().await;
        }
        if !lanes.received.has_some(Instant::now()) && listener.get().waiting()? == Waiting::Nothing {
            sleep(PAUSE).await;
        }
    }
}

impl Lanes {
    fn new(pace: Pace) -> Self {
        let lane = || Lane::new(pace);
        let received = Lane::new(Pace { steady: pace.steady * RECEIVED, ..pace });
        Self { expected: lane(), alarming: lane(), observed: lane(), received }
    }

    /// When some answer may be due.
    fn due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        [&mut self.expected, &mut self.alarming, &mut self.observed]
            .into_iter()
            .filter_map(|lane| lane.due(now))
            .min()
    }

    fn release(&mut self, listener: &Listener) -> io::Result<()> {
        let now = Instant::now();
        for lane in [&mut self.expected, &mut self.alarming, &mut self.observed] {
            lane.release(now, |held| held.send(listener))?;
        }
        Ok(())
    }

    /// Counts a call, and answers it now or later.
    fn take(&mut self, listener: &Listener, call: &Call, tally: &Tally) -> io::Result<()> {
        let now = Instant::now();
        self.received.spend(now);
        let name = Architecture::NATIVE.call(call.number);
        // Counted first: who has the answer may look for the count.
        let (lane, reply) = if let (Some(name), Some(place)) = (name, seccomp::observed(name)) {
            look(listener, call, name, place, tally);
            (&mut self.observed, Reply::Pass)
        } else {
            let answer = seccomp::answer(name);
            let form = name.map_or_else(String::new, |name| words::form(name, &call.arguments));
            tally.count(called(name, call), form, call.arguments, answer.quiet);
            let lane = if answer.quiet { &mut self.expected } else { &mut self.alarming };
            (lane, Reply::Refuse(answer.errno))
        };
        let held = Held { call: call.id, reply };
        if lane.has_some(now) && lane.is_empty() {
            if held.send(listener)? {
                lane.spend(now);
            }
            return Ok(());
        }
        tally.count(called(name, call), FLOOD.to_owned(), call.arguments, false);
        lane.hold(held, |held| listener.still_waits(held.call));
        Ok(())
    }
}

fn called(name: Option<&str>, call: &Call) -> String {
    name.map_or_else(|| format!("call {}", call.number), str::to_owned)
}

/// An allowed call: noted if it wants to go outside; the kernel will carry it out whatever it says by then.
fn look(listener: &Listener, call: &Call, name: &str, (address, size): (usize, usize), tally: &Tally) {
    let read = address::read(call.thread, call.arguments[address], call.arguments[size]);
    // Only then was it the caller's memory that was read.
    if listener.still_waits(call.id) {
        match read {
            Ok(Some(outside)) => tally.count(name.to_owned(), format!("to {outside}"), call.arguments, false),
            Ok(None) => {}
            Err(_) => tally.count(name.to_owned(), UNREADABLE.to_owned(), call.arguments, true),
        }
    }
}
