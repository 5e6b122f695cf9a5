//! The sandbox's first process is the same user's as the CLI: nothing that the CLI may do to its own user's processes may
//! end it, blind it or decide the run's verdict.

use crate::shim;
use crate::support::{World, numbers};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;

#[tokio::test]
async fn nothing_that_a_cli_does_reaches_it() {
    let world = World::new().await;
    let script = "trap '' HUP INT QUIT USR1 USR2 WINCH; until test -x ./probe; do sleep 0.05; done; ./probe first; sleep 0.3; echo \"nice $(cut -d' ' -f19 /proc/1/stat)\"; echo \"alive 1\"; exit 7";
    let mut run = shim::run(&world, script).await;
    world.give_probe(&run.spec);
    let (out, _, exited) = shim::read_to_end(&mut run.link).await;
    let said = String::from_utf8(out).expect("text");
    assert!(said.ends_with("alive 1\n"), "{exited:?} {said}");
    assert_eq!((exited.code, exited.ended_by), (Some(7), kage_shim::protocol::EndedBy::Itself), "{said}");
    let mut answers = numbers(&said);
    for (name, expected) in [
        ("nice", 0),
        ("alive", 1),
        ("prlimit64_own", 0),
        ("setpriority_own", 0),
        ("sched_setaffinity_own", 0),
    ] {
        assert_eq!(answers.remove(name), Some(expected), "{name}: {said}");
    }
    answers.retain(|_, answer| !matches!(*answer, EPERM | EACCES | ENOENT));
    assert!(answers.is_empty(), "{answers:?}");
    let refused = world.refused(&run.spec);
    for kind in [
        "prlimit64 of another process",
        "setpriority of another process",
        "setpriority of several processes",
        "sched_setaffinity of the first process",
    ] {
        assert!(refused.contains_key(kind), "{kind}: {refused:#?}");
    }
    assert_eq!(shim::finish(run).await, 7);
}
