//! From submit to the first output at a client, against `docker run --rm` with the same flags printing one line.
//!
//! `cargo bench --bench cold_run`. Needs root, the engine and PostgreSQL's programs; says what is missing.

#[path = "support/figures.rs"]
mod figures;
#[path = "support/http.rs"]
mod http;
#[path = "support/peer.rs"]
mod peer;
#[path = "support/stack.rs"]
#[expect(dead_code, reason = "other benches look into the roles' memory")]
mod stack;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::figures::{Pairs, rounds};
use crate::http::Event;
use crate::peer::Peer;
use crate::stack::Stack;

const SCRIPT: &str = "echo 'the first line'";
const LINE: &str = "the first line\n";

/// Milliseconds from the request to the log event, at a client of the API.
fn over_the_api(stack: &Stack) -> Result<f64> {
    let began = Instant::now();
    let task = stack.submit(SCRIPT)?;
    let mut events = stack.api.events(&task)?;
    let mut event = Event::default();
    let mut first = None;
    // To the end, so that the next round finds a quiet server.
    while events.next(&mut event)? {
        if event.name == "log" && first.is_none() {
            first = Some(began.elapsed());
            let log: serde_json::Value = serde_json::from_slice(&event.data)?;
            ensure!(log["text"] == LINE, "the output is {log}");
        }
    }
    Ok(first.context("no output came")?.as_secs_f64() * 1e3)
}

/// Milliseconds from a program's start to the first line on its standard output that holds the script's.
fn of_a_program(mut command: Command) -> Result<f64> {
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("a pipe")?);
    let mut line = String::new();
    while !line.contains(LINE.trim_end()) {
        line.clear();
        ensure!(output.read_line(&mut line)? > 0, "it ended without the line");
    }
    let first = began.elapsed();
    std::io::copy(&mut output, &mut std::io::sink())?;
    ensure!(child.wait()?.success(), "{command:?} failed");
    Ok(first.as_secs_f64() * 1e3)
}

fn main() -> Result<()> {
    let stack = Stack::start(&["serve"])?;
    let peer = Peer::new(&stack)?;
    let docker = || of_a_program(peer.run(&["--rm", "--log-driver=none"], SCRIPT));
    let kage_run = || {
        let args = ["run", "--repo", "small", "--cli", "shell", "--allow-no-changes", SCRIPT];
        of_a_program(stack.kage(&args))
    };
    // The first of each makes the shared checkout and fills the caches.
    for _ in 0..2 {
        over_the_api(&stack)?;
        kage_run()?;
        docker()?;
    }
    let mut api = Pairs::new("submit to first output, SSE client", "ms", 1.0);
    let mut program = Pairs::new("`kage run` to first output on its stdout", "ms", 1.0);
    for _ in 0..rounds(25) {
        let ours = over_the_api(&stack)?;
        let peer = docker()?;
        api.push(ours, peer);
        let ours = kage_run()?;
        program.push(ours, peer);
    }
    Pairs::header();
    api.print();
    program.print();
    println!("peer: docker run --rm with our profile's flags, from its start to the line on its stdout");
    Ok(())
}
