//! Who floods the record of refused calls hides nothing by it, slows down no neighbour, and is told of.

use std::collections::BTreeMap;

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

/// In all forms.
fn forms(counted: &BTreeMap<String, u64>, call: &str) -> u64 {
    counted.iter().filter(|(kind, _)| kind.split(' ').next() == Some(call)).map(|(_, count)| count).sum()
}
