//! Answers the calls of one sandbox until its last process has ended.

use std::io;
use std::time::Duration;

use kage_notify::ready::AsyncListener;
use kage_notify::{Call, Listener};
use tokio::time::{Instant, sleep};

use crate::sandbox::refusals::tally::Tally;
use crate::sandbox::refusals::{address, words};
use crate::sandbox::seccomp;
use crate::sandbox::seccomp::architecture::Architecture;

/// Answers that a sandbox may have at full speed before it is slowed down. Each costs us some microseconds, and its
/// caller waits for it.
const BURST: f64 = 500_000.0;
/// Answers in a second beyond that.
const STEADY: f64 = 2_000.0;
/// How long it waits when it has had all of them.
const PAUSE: Duration = Duration::from_millis(50);
/// Where the host does not let us read: no CAP_SYS_PTRACE, or another PID namespace.
const UNREADABLE: &str = "to an address that could not be read";
/// Answers after which other tasks of the process have their turn.
const TURN: u32 = 32;

/// Runs until no process has the filter any more. An error ends it too: the kernel refuses from then on.
///
/// # Errors
/// The kernel's.
pub async fn answer_all(listener: Listener, tally: &Tally) -> io::Result<()> {
    let listener = AsyncListener::new(listener)?;
    let mut allowance = Allowance::new();
    let mut turn = 0_u32;
    while let Some(call) = listener.next().await? {
        answer(listener.get(), &call, tally)?;
        turn = turn.wrapping_add(1);
        if !allowance.take() {
            sleep(PAUSE).await;
        } else if turn.is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

fn answer(listener: &Listener, call: &Call, tally: &Tally) -> io::Result<()> {
    let name = Architecture::NATIVE.call(call.number);
    if let (Some(name), Some(place)) = (name, seccomp::observed(name)) {
        return look(listener, call, name, place, tally);
    }
    let answer = seccomp::answer(name);
    // Counted first: who has the answer may look for the count.
    let form = name.map_or_else(String::new, |name| words::form(name, &call.arguments));
    let name = name.map_or_else(|| format!("call {}", call.number), str::to_owned);
    tally.count(name, form, call.arguments, answer.quiet);
    listener.refuse(call.id, answer.errno).map(|_| ())
}

/// An allowed call: noted if it wants to go outside, and carried out by the kernel whatever it says by then.
fn look(
    listener: &Listener,
    call: &Call,
    name: &str,
    (address, size): (usize, usize),
    tally: &Tally,
) -> io::Result<()> {
    let read = address::read(call.thread, call.arguments[address], call.arguments[size]);
    // Only then was it the caller's memory that was read.
    if listener.still_waits(call.id) {
        match read {
            Ok(Some(outside)) => tally.count(name.to_owned(), format!("to {outside}"), call.arguments, false),
            Ok(None) => {}
            Err(_) => tally.count(name.to_owned(), UNREADABLE.to_owned(), call.arguments, true),
        }
    }
    listener.let_pass(call.id).map(|_| ())
}

/// A bucket of answers that fills up again.
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { left: BURST, at: Instant::now() }
    }

    /// False: there was none left.
    fn take(&mut self) -> bool {
        if self.left < 1.0 {
            let now = Instant::now();
            self.left += (now - self.at).as_secs_f64() * STEADY;
            self.at = now;
        }
        self.left -= 1.0;
        self.left >= 0.0
    }
}
