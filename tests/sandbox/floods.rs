//! Who floods the record of refused calls hides nothing by it, slows down no neighbour, and is told of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kage::sandbox::refusals::lane::Pace;
use kage::sandbox::refusals::tally::FLOOD;

use crate::support::{World, image_name};

/// Few answers, and then one a second, so that forty callers are a flood.
const PACE: Pace = Pace { burst: 200.0, steady: 1.0 };

/// What `./probe killed` tries.
const TRIED: [&str; 10] =
    ["bpf", "mount", "keyctl", "setns", "swapon", "reboot", "acct", "chroot", "kcmp", "unshare"];

#[tokio::test(flavor = "multi_thread")]
async fn calls_whose_callers_are_killed_behind_a_flood_are_counted() {
    let world = World::at(&image_name(), PACE).await;
    let flooding = world.spec("./probe crowd 40; sleep 1; ./probe killed");
    world.give_probe(&flooding);
    assert_eq!(world.run(&flooding).await.exit_code, 0);
    let counted = world.refused(&flooding);
    let missing: Vec<&str> = TRIED.into_iter().filter(|call| forms(&counted, call) == 0).collect();
    assert!(missing.is_empty(), "not counted: {missing:?} of {counted:#?}");
    assert!(counted[&format!("clone3 {FLOOD}")] > 0, "{counted:#?}");
}

/// By numbers and not by time: at the flood's own pace either would take minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_expected_calls_holds_up_no_alarming_one_and_no_neighbour() {
    let world = World::at(&image_name(), PACE).await;
    let flooding = world.spec("./probe crowd 40; sleep 1; ./probe flood 150");
    let beside = world.spec("sleep 1; ./probe flood 150");
    world.give_probe(&flooding);
    world.give_probe(&beside);
    let (one, other) = tokio::join!(world.run(&flooding), world.run(&beside));
    assert_eq!((one.exit_code, other.exit_code), (0, 0));
    let (one, other) = (world.refused(&flooding), world.refused(&beside));
    assert_eq!((one["bpf"], other["bpf"]), (150, 150));
    assert!(other.keys().all(|kind| !kind.ends_with(FLOOD)), "{other:#?}");
}

/// Not an assertion but a measurement: `cargo test --test sandbox -- --ignored --nocapture what_a_flood_costs`. The
/// sandbox has two processors, and its burst behind it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn what_a_flood_costs() {
    for attack in ["crowd 100", "churn 4", "flood 100000000"] {
        let world = World::at(&image_name(), Pace { burst: 1000.0, ..Pace::default() }).await;
        let mut spec = world.spec(&format!("./probe {attack} & sleep 14"));
        spec.limits.cpu_millis = 2000;
        spec.limits.pids = 256;
        world.give_probe(&spec);
        let mut sandbox = world.started(&spec).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let calls = |world: &World| world.refused(&spec).values().sum::<u64>();
        let (before, used, at) = (calls(&world), processor_time(), Instant::now());
        tokio::time::sleep(Duration::from_secs(8)).await;
        let seconds = at.elapsed().as_secs_f64();
        let share = (processor_time() - used).as_secs_f64() / seconds;
        let rate = (calls(&world) - before) as f64 / seconds;
        println!("{attack}: {:.1} % of one processor, {rate:.0} counts a second", share * 100.0);
        sandbox.wait().await.expect("ends");
        sandbox.remove().await.expect("is removed");
    }
}

/// Of this process so far; the kernel counts in hundredths of a second.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("reads");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// In all forms.
fn forms(counted: &BTreeMap<String, u64>, call: &str) -> u64 {
    counted.iter().filter(|(kind, _)| kind.split(' ').next() == Some(call)).map(|(_, count)| count).sum()
}
