//! Whoever is slow slows those before him: nothing grows, nothing is lost.

use std::time::Duration;

use serde_json::json;

use crate::proxy::{Proxy, Weather};
use crate::support::git::git;
use crate::support::sse::output;
use crate::support::tasks::{shell, shell_with, string};
use crate::support::{TestKage, eventually};
use crate::watcher::Watcher;
use crate::world::{apart, assert_result};

const MIB: u64 = 1 << 20;

/// What a flood may add to the runner's memory. Of an attempt it holds one commit's output (`BATCH`, 1 MiB, and one frame of
/// 64 KiB) as bytes, redacted, as blocks, and as parameters of a statement; a line of 1 MiB that has not ended, twice; and the
/// arenas that the allocator keeps of these. Far below what comes through: that would be the whole limit, and `yes` fills
/// that in a second.
const RUNNER: u64 = 24 * MIB;
/// What it may add to the API's: a page of a stream (16 blocks of 64 KiB) as rows, as text and as base64.
const API: u64 = 20 * MIB;
const LIMIT: u64 = 32 * MIB;

/// A field of `/proc/PID/status`, in bytes.
pub fn field(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the field");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

/// Forgets the peak of a process; what it holds now.
pub fn forget_peak(pid: u32) -> u64 {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("is ours");
    field(pid, "VmRSS")
}

/// How much a process' peak is above what it held.
fn growth(pid: u32, before: u64) -> u64 {
    field(pid, "VmHWM").saturating_sub(before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_cut_at_its_limit_and_costs_no_memory() {
    let limit = LIMIT.to_string();
    let (mut kage, roles) = apart(&[("KAGE_LIMIT_OUTPUT_BYTES", &limit)]).await;
    // Warm: what a first run allocates for good is not the flood's.
    kage.run(&shell("seq 1 100000; echo x > x")).await;
    let (runner, api) = (kage.process(roles.runner).pid(), kage.process(roles.api).pid());
    let before = (forget_peak(runner), forget_peak(api));
    let task =
        kage.submit(&shell_with("yes # as fast as it can", &json!({ "allow_no_changes": true }))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    let ended = kage.ended(id).await;
    let run = &ended["runs"][0];
    assert_eq!(run["state"], "output_limit", "{ended}");
    assert_eq!(run["output_bytes"], LIMIT, "cut exactly there");
    let grown = (growth(runner, before.0), growth(api, before.1));
    println!(
        "flood of {} MiB: runner {} KiB over {}, api {} KiB over {}",
        LIMIT / MIB,
        grown.0 / 1024,
        before.0 / 1024,
        grown.1 / 1024,
        before.1 / 1024
    );
    let seen = watcher.end().await;
    let written = output(&seen.events, "shell", "stdout");
    assert!(
        written.len() as u64 == LIMIT && written.chunks_exact(2).all(|line| line == b"y\n"),
        "lost output"
    );
    let told = |event: &&crate::support::sse::Event| event.data["state"] == "output_limit";
    assert!(seen.events.iter().any(|event| told(&event)), "no event says so");
    assert!(grown.0 < RUNNER, "the runner grew by {} bytes", grown.0);
    assert!(grown.1 < API, "the API grew by {} bytes", grown.1);
}

/// What a CLI writes in no time takes as long as its commits, and the CLI waits. `KAGE_TEST_ROUND_TRIP_MS=300` is the long form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_database_slows_the_runs() {
    // More than the shim holds (8 MiB, and 1 MiB in its socket) and two commits (1 MiB each).
    const LINES: usize = 1_000_000;
    let round_trip =
        std::env::var("KAGE_TEST_ROUND_TRIP_MS").map_or(60, |text| text.parse().expect("a number"));
    let mut kage = TestKage::new().await;
    let (proxy, url) = Proxy::before_postgres(&kage.settings["KAGE_DATABASE_URL"]);
    kage.start("api").await;
    let runner = kage.start_with("runner", &[("KAGE_DATABASE_URL", &url)]).await;
    kage.demo().await;
    kage.run(&shell("seq 1 100000; echo x > x")).await;
    assert!(proxy.accepted() > 0, "the runner goes another way");
    let script = format!(
        "echo line 1; sleep 2; begun=$(date +%s%N); seq -f 'line %.0f' 2 {LINES}; \
         echo $((($(date +%s%N) - begun) / 1000000)) > took; echo {LINES} > result"
    );
    let task = kage.submit(&shell(&script)).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "line 1\n").await;
    let pid = kage.process(runner).pid();
    let before = forget_peak(pid);
    proxy.set(Weather { delay: Duration::from_millis(round_trip / 2), ..Weather::default() });
    eventually("all of it is written down", async || {
        (kage.task(id).await["runs"][0]["state"] != "running").then_some(())
    })
    .await;
    let grown = growth(pid, before);
    // What follows is the harvest, which has nothing to do with it.
    proxy.set(Weather::default());
    watcher.end().await.assert_lines("shell", LINES);
    let ended = kage.task(id).await;
    assert_result(&kage, &ended, LINES);
    let branch = string(&ended["runs"][0]["branch"]);
    let took: u64 = git(&kage.mirror("demo"), ["show", &format!("{branch}:took")]).parse().expect("a number");
    println!(
        "{LINES} lines in {took} ms at {round_trip} ms a round trip; the runner grew by {} KiB over {}",
        grown / 1024,
        before / 1024
    );
    // One commit at the least, of several statements, came before the last line was taken.
    assert!(took >= 3 * round_trip, "the CLI wrote its {LINES} lines in {took} ms");
    assert!(grown < RUNNER, "the runner grew by {grown} bytes");
}
