//! Refused calls are told as they happen: by whom, what, how often; and a sandbox whose listener is gone stays refused.

use std::collections::BTreeMap;
use std::time::Duration;

use kage::sandbox::container::Sandbox;
use kage::sandbox::error::SandboxError;
use kage::sandbox::refusals::tally::MAX_KINDS;
use kage::sandbox::seccomp::SeccompProfile;

use crate::support::{World, numbers};

const PERL: &str = "exec >/workspace/out 2>&1\n";

/// Runs a script in a sandbox; gives what it printed, and what it was refused.
async fn refused(world: &World, script: &str) -> (String, BTreeMap<String, u64>) {
    let spec = world.spec(&format!("{PERL}{script}"));
    world.give_probe(&spec);
    let ended = world.run(&spec).await;
    let said = std::fs::read_to_string(spec.workspace.join("out")).unwrap_or_default();
    assert_eq!(ended.exit_code, 0, "{said}");
    (said, world.refused(&spec))
}

#[tokio::test]
async fn every_forbidden_call_is_counted_by_its_name() {
    let world = World::new().await;
    let (said, counted) = refused(&world, "mkdir d; cd d; ../probe calls").await;
    let answers = numbers(&said);
    assert!(answers.len() >= 115, "{said}");
    let kinds: u64 = counted.values().sum();
    println!("{counted:#?}");
    assert!(counted.len() >= 110, "{counted:#?}");
    // What newer kernels have and the runtime's library does not know is refused without a word.
    assert!(kinds as usize >= answers.len() - 8, "{kinds} of {}", answers.len());
    assert!(counted.contains_key("bpf"), "{counted:#?}");
}
