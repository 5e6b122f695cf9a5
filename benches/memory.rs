//! Memory of the roles when idle, and of the API for each client that waits on an event stream.
//!
//! `cargo bench --bench memory`. Needs root, the engine and PostgreSQL's programs; says what is missing.

#[path = "support/http.rs"]
mod http;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/stack.rs"]
#[expect(dead_code, reason = "other benches start containers beside it")]
mod stack;

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::http::Event;
use crate::memory::{field, megabytes};
use crate::stack::Stack;

const CLIENTS: usize = 5000;
/// For start-up work to end.
const SETTLE: Duration = Duration::from_secs(5);

fn print_role(stack: &Stack, role: &str) -> Result<()> {
    let pid = stack.pid(role)?;
    let (resident, own) = (field(pid, "VmRSS")?, field(pid, "RssAnon")?);
    println!("{:<44}{:>9.1} MB{:>9.1} MB", format!("kage {role}, idle"), megabytes(resident), megabytes(own));
    Ok(())
}

fn main() -> Result<()> {
    // The children inherit it.
    let wanted = CLIENTS as u64 + 1000;
    let limit = getrlimit(Resource::Nofile);
    ensure!(limit.maximum.is_none_or(|most| most >= wanted), "ulimit -Hn is below {wanted}");
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit })?;

    let mut stack = Stack::start(&["api", "runner"])?;
    sleep(SETTLE);
    println!("{:<44}{:>12}{:>12}", "", "resident", "anonymous");
    print_role(&stack, "api")?;
    print_role(&stack, "runner")?;

    // Without a runner the task stays in the queue, and its watchers wait.
    stack.stop("runner")?;
    let task = stack.submit("echo 'never run'")?;
    let api = stack.pid("api")?;
    let mut event = Event::default();
    let mut streams = Vec::with_capacity(CLIENTS);
    let before = field(api, "RssAnon")?;
    for _ in 0..CLIENTS {
        let mut events = stack.api.events(&task)?;
        ensure!(events.next(&mut event)? && event.name == "connected", "{} came first", event.name);
        streams.push(events);
    }
    sleep(SETTLE);
    let after = field(api, "RssAnon")?;
    let each = after.saturating_sub(before) as f64 / CLIENTS as f64 / 1e3;
    print_role(&stack, "api")?;
    println!("{:<44}{each:>33.1} kB", format!("for each of {} waiting clients", streams.len()));
    // Gone before the server, which would wait for them.
    drop(streams);
    Ok(())
}
