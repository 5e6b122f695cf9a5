//! Storms: random faults over a whole world at work, from a seed that replays. docs/faults.md tells how to read them.

mod check;
mod client;
#[path = "../faults/cluster.rs"]
mod cluster;
mod driver;
#[path = "../faults/faketime.rs"]
mod faketime;
#[path = "../faults/filling.rs"]
mod filling;
#[path = "../road/own_engine.rs"]
#[expect(dead_code, reason = "shared with the test program of the road, which needs other parts of it")]
mod own_engine;
mod past;
mod plan;
#[expect(dead_code, reason = "tests/faults does more with it")]
#[path = "../faults/proxy.rs"]
mod proxy;
mod report;
mod storm;
#[path = "../road/support/mod.rs"]
#[expect(dead_code, reason = "shared with other test programs, which need other parts of it")]
mod support;
mod work;
mod world;

use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

use crate::client::Access;
use crate::plan::Plan;
use crate::report::{Report, Summary};
use crate::storm::Storm;
use crate::world::World;

/// Seconds of a storm, and for what it leaves to come to its end.
const LENGTH: u64 = 40;
const CALM: Duration = Duration::from_secs(300);

/// One seed, from its world's making to its end.
async fn storm(seed: u64, length: u64) -> Report {
    let only = std::env::var("KAGE_CHAOS_ONLY").unwrap_or_default();
    let only: Vec<String> = only.split_terminator(',').map(str::to_owned).collect();
    let plan = Plan::of(seed, length, &only);
    println!("{plan}");
    let mut report = Report::of(seed);
    let mut world = World::new(plan.setup).await;
    let access = Access::of(&world.kage);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(length) + CALM;
    let clients: Vec<_> =
        plan.jobs.iter().map(|job| tokio::spawn(driver::drive(access.clone(), *job, begun, until))).collect();
    let months = tokio::spawn(past::plant(world.pool.clone(), plan.months.clone(), begun));
    let mut storm = Storm::over(&mut world, begun);
    storm.pass(&plan).await;
    (report.faults, report.missed) = (std::mem::take(&mut storm.counts), storm.missed);
    world.calm().await;
    println!("{:>8} ms  all faults are over", begun.elapsed().as_millis());
    let mut followed = Vec::new();
    for (job, client) in plan.jobs.iter().zip(clients) {
        match client.await.unwrap_or_else(|error| Err(format!("its client panicked: {error}"))) {
            Ok(seen) => followed.push((job, seen)),
            Err(why) => report.wrong.push(format!("task {} ({:?}): {why}", job.number, job.work)),
        }
        world.supervise();
    }
    println!("{:>8} ms  all tasks are over", begun.elapsed().as_millis());
    for (job, followed) in &followed {
        report.connections += followed.seen.connections;
        let state = check::task(&world, job, followed, plan.takes_sandboxes(), &mut report.wrong).await;
        *report.ends.entry(format!("{:?}: {state}", job.work)).or_default() += 1;
    }
    match months.await {
        Ok(planted) => past::is_let_go(&world, &planted, &mut report.wrong).await,
        Err(error) => report.wrong.push(format!("months long past: {error}")),
    }
    check::nothing_is_left(&world, &mut report.wrong).await;
    check::the_record_is_whole(&world, &mut report.wrong).await;
    report.wrong.extend(world.end());
    (report.deaths, report.took) = (world.deaths.clone(), begun.elapsed());
    report.wrong.append(&mut world.last_words);
    if !report.wrong.is_empty() {
        let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
        world.keep_logs(&kept);
        println!("the roles' logs are in {}", kept.display());
    }
    report
}

async fn interrupted() {
    tokio::signal::ctrl_c().await.expect("a signal handler");
    panic!("{INTERRUPTED}");
}

const INTERRUPTED: &str = "interrupted";

/// As [`storm`]; a panic, or Ctrl-C, is something wrong with this seed.
async fn caught(seed: u64, length: u64) -> Report {
    let begun = Instant::now();
    // Its world is taken apart while it unwinds.
    let run = async {
        tokio::select! {
            report = storm(seed, length) => report,
            // Within, so that the world is taken apart as by a panic of its own.
            () = interrupted() => unreachable!("it panics"),
        }
    };
    let run = std::panic::AssertUnwindSafe(run).catch_unwind().await;
    run.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        let took = begun.elapsed();
        Report { took, wrong: vec![format!("the storm itself: {said}")], ..Report::of(seed) }
    })
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number")))
}

/// The short one that always runs: the same seed each time, unless another is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_short_storm() {
    // A runner stopped and killed, a sandbox removed, connections cut, a gateway and a notifier killed.
    let seed = setting("KAGE_CHAOS_SEED").unwrap_or(56);
    let report = storm(seed, setting("KAGE_CHAOS_SECONDS").unwrap_or(16)).await;
    println!("{}", Summary(std::slice::from_ref(&report)));
    assert!(report.is_good(), "{:#?}", report.wrong);
}

/// `just chaos MINUTES`: one after the other, each with a seed of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "runs for as long as KAGE_CHAOS_MINUTES says"]
async fn storms() {
    let minutes = setting("KAGE_CHAOS_MINUTES").expect("KAGE_CHAOS_MINUTES says how long");
    let until = Instant::now() + Duration::from_secs(minutes * 60);
    let length = setting("KAGE_CHAOS_SECONDS").unwrap_or(LENGTH);
    let (first, mut reports) = (setting("KAGE_CHAOS_SEED"), Vec::new());
    while reports.is_empty() || Instant::now() < until {
        let seed =
            first.map_or_else(|| u64::from(rand::random::<u32>()), |first| first + reports.len() as u64);
        let report = caught(seed, length).await;
        println!(
            "seed {seed}: {}",
            if report.is_good() { "good".to_owned() } else { format!("{:#?}", report.wrong) }
        );
        let is_interrupted = report.wrong.iter().any(|why| why.ends_with(INTERRUPTED));
        reports.push(report);
        if is_interrupted {
            break;
        }
    }
    println!("{}", Summary(&reports));
    assert!(reports.iter().all(Report::is_good), "see the summary");
}
