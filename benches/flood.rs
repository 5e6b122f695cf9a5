//! A million lines from a run to an SSE client, stored, against `docker logs -f` of the same output.
//!
//! `cargo bench --bench flood`. Needs root, the engine and PostgreSQL's programs; says what is missing. Every
//! byte is compared with what was written, at both clients and again in what is stored.

#[path = "support/expected.rs"]
mod expected;
#[path = "support/figures.rs"]
mod figures;
#[path = "support/http.rs"]
mod http;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/peer.rs"]
mod peer;
#[path = "support/stack.rs"]
mod stack;

use std::fs;
use std::io::Read as _;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::borrow::Cow;

use crate::expected::{BYTES, Expected, script};
use crate::figures::{Pairs, rounds};
use crate::http::{Event, Events};
use crate::memory::{field, megabytes};
use crate::peer::{Peer, client, docker};
use crate::stack::Stack;

/// Goal for the server's memory, in bytes.
const MOST_MEMORY: u64 = 100_000_000;
const IDLE_STREAMS: usize = 1000;

#[derive(Deserialize)]
struct Log<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
    offset: u64,
}

/// Seconds from the request to the last line at a client of the API.
fn over_the_api(stack: &Stack, script: &str) -> Result<f64> {
    let began = Instant::now();
    let task = stack.submit(script)?;
    let mut events = stack.api.events(&task)?;
    let (mut event, mut seen, mut last) = (Event::default(), Expected::default(), None);
    while events.next(&mut event)? {
        if event.name == "log" {
            let log: Log<'_> = serde_json::from_slice(&event.data)?;
            ensure!(log.offset == seen.bytes(), "a block at {} after {} bytes", log.offset, seen.bytes());
            seen.take(log.text.as_bytes())?;
            if seen.bytes() == BYTES {
                last = Some(began.elapsed());
            }
        }
    }
    let last = last.with_context(|| format!("only {} bytes came", seen.bytes()))?;
    let stored = stack.api.call("GET", &format!("/api/v1/tasks/{task}/runs/shell/log"), "")?;
    let mut seen = Expected::default();
    seen.take(&stored)?;
    ensure!(seen.bytes() == BYTES, "only {} bytes are stored", seen.bytes());
    Ok(last.as_secs_f64())
}

/// Seconds from the start of `docker run` to the last line on the stdout of `docker logs -f`.
fn through_the_engine(peer: &Peer, script: &str) -> Result<f64> {
    let began = Instant::now();
    let output = peer.run(&["--detach", "--log-driver=json-file"], script).output()?;
    ensure!(output.status.success(), "docker run: {}", String::from_utf8_lossy(&output.stderr));
    let id = String::from_utf8(output.stdout)?.trim().to_owned();
    let mut child = client().args(["logs", "-f", &id]).stdout(Stdio::piped()).spawn()?;
    let mut pipe = child.stdout.take().context("a pipe")?;
    let (mut buffer, mut seen) = (vec![0; 256 << 10], Expected::default());
    while seen.bytes() < BYTES {
        let count = pipe.read(&mut buffer)?;
        ensure!(count > 0, "only {} bytes came", seen.bytes());
        seen.take(&buffer[..count])?;
    }
    let last = began.elapsed();
    child.wait()?;
    docker(&["rm", "--force", &id])?;
    Ok(last.as_secs_f64())
}

/// Streams of a run that waits, which stay open for as long as they are held.
fn idle_streams(stack: &Stack) -> Result<Vec<Events>> {
    let task = stack.submit("echo waits; sleep 600")?;
    let mut event = Event::default();
    let mut streams = Vec::with_capacity(IDLE_STREAMS);
    for _ in 0..IDLE_STREAMS {
        let mut events = stack.api.events(&task)?;
        ensure!(events.next(&mut event)? && event.name == "connected", "{} came first", event.name);
        streams.push(events);
    }
    Ok(streams)
}

fn print_memory(what: &str, bytes: u64) {
    let verdict = if bytes < MOST_MEMORY { "met" } else { "MISSED" };
    println!("{what:<60}{:>8.1} MB   goal < {:.0} MB {verdict}", megabytes(bytes), megabytes(MOST_MEMORY));
}

fn main() -> Result<()> {
    let stack = Stack::start(&["serve"])?;
    let peer = Peer::new(&stack)?;
    let pid = stack.pid("serve")?;
    let mut table = Vec::new();
    for (name, buffered) in
        [("1,000,000 lines, one write a line", false), ("1,000,000 lines, buffered", true)]
    {
        let mut pairs = Pairs::new(name, "s", 1.0);
        let script = script(buffered);
        for _ in 0..rounds(3) {
            let ours = over_the_api(&stack, &script)?;
            pairs.push(ours, through_the_engine(&peer, &script)?);
        }
        table.push(pairs);
    }
    let alone = field(pid, "VmHWM")?;
    // Forgets the peak.
    fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let idle = idle_streams(&stack)?;
    over_the_api(&stack, &script(false))?;
    let beside_idle = field(pid, "VmHWM")?;
    drop(idle);
    Pairs::header();
    for pairs in &table {
        pairs.print();
    }
    print_memory("peak memory of `kage serve`", alone);
    print_memory(&format!("the same beside {IDLE_STREAMS} idle streams"), beside_idle);
    println!("peer: docker run --detach and docker logs -f, json-file without rotation");
    Ok(())
}
