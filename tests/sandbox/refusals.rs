//! Refused calls are told as they happen: what, and how often. No listener, no start; and who is none of ours cannot
//! listen.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use kage::sandbox::container::Sandbox;
use kage::sandbox::error::SandboxError;
use kage::sandbox::refusals::listener::Refusals;
use kage::sandbox::refusals::tally::{MAX_FORMS, OTHERS};
use kage::sandbox::seccomp::SeccompProfile;
use kage::sandbox::seccomp::table::Told;
use kage::sandbox::spec::Spec;

use crate::support::{UID, World, numbers};

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
const ENETUNREACH: i32 = 101;

fn with_probe(world: &World, script: &str) -> Spec {
    let spec = world.spec(&format!("exec >/workspace/out 2>&1\n{script}"));
    world.give_probe(&spec);
    spec
}

fn said(spec: &Spec) -> String {
    std::fs::read_to_string(spec.workspace.join("out")).unwrap_or_default()
}

/// Runs a script in a sandbox; gives what it printed, and what it was refused.
async fn refused(world: &World, script: &str) -> (String, BTreeMap<String, u64>) {
    let spec = with_probe(world, script);
    let ended = world.run(&spec).await;
    assert_eq!(ended.exit_code, 0, "{}", said(&spec));
    (said(&spec), world.refused(&spec))
}

/// What the runtime's libseccomp (2.5.4) has no name for is refused without a word.
const NEWER_THAN_THE_LIBRARY: [&str; 2] = ["statmount", "listmount"];

#[tokio::test]
async fn every_forbidden_call_is_counted_by_its_name() {
    let world = World::new().await;
    let (said, counted) = refused(&world, "mkdir d; cd d; ../probe calls").await;
    let answers = numbers(&said);
    assert!(answers.len() >= 115, "{said}");
    let names: Vec<&str> = counted.keys().map(|kind| kind.split(' ').next().unwrap_or_default()).collect();
    // The probe names forms by the call and a word.
    let is_counted =
        |probe: &str| names.iter().any(|name| probe == *name || probe.starts_with(&format!("{name}_")));
    let missing: Vec<&String> = answers
        .keys()
        .filter(|probe| !is_counted(probe) && !NEWER_THAN_THE_LIBRARY.contains(&probe.as_str()))
        .collect();
    assert!(missing.is_empty(), "not counted: {missing:?} of {counted:#?}");
    for form in [
        "clone CLONE_NEWUSER",
        "clone CLONE_NEWNET",
        "ioctl request 0x5412",
        "chmod mode 0004755",
        "openat mode 0004755",
        "prctl option 0x16",
        "personality persona 0x40000",
        "mknod mode 0020644",
    ] {
        assert!(counted.contains_key(form), "{form}: {counted:#?}");
    }
}

#[tokio::test]
async fn sockets_of_all_kinds_are_counted_in_few_rows() {
    let world = World::new().await;
    let (_, counted) = refused(&world, "./probe sockets").await;
    let sockets: BTreeMap<&String, &u64> =
        counted.iter().filter(|(kind, _)| kind.starts_with("socket ")).collect();
    assert_eq!(sockets.len(), MAX_FORMS + 1, "{sockets:#?}");
    // 47 families, 10 types, 8 protocols and 23 of netlink's; the kernel itself refuses some of the families' own.
    let all: u64 = sockets.values().copied().sum();
    assert!((3500..=47 * 80 + 23).contains(&all), "{all}");
    assert!(sockets.keys().any(|kind| kind.ends_with(OTHERS)));
}

#[tokio::test]
async fn addresses_outside_are_told_and_those_inside_are_not() {
    let world = World::new().await;
    let (said, counted) = refused(&world, "./probe reach").await;
    let answers = numbers(&said);
    for way in ["tcp4", "tcp6", "udp4", "mapped"] {
        assert_eq!(answers[way], ENETUNREACH, "{way}: {said}");
    }
    assert_eq!((answers["loopback"], answers["unix"], answers["send"]), (111, 2, 0), "{said}");
    assert_eq!((answers["unix16"], answers["nowhere"]), (2, 14), "{said}");
    let expected = [
        ("connect to 1.1.1.1:443", 1),
        ("connect to 8.8.8.8:853", 1),
        ("connect to [2606:4700::1111]:853", 1),
        ("sendto to 169.254.169.254:443", 1),
    ];
    let alarming: Vec<(&str, u64)> = counted
        .iter()
        .filter(|(kind, _)| *kind != "clone3")
        .map(|(kind, count)| (kind.as_str(), *count))
        .collect();
    assert_eq!(alarming, expected);
}

#[tokio::test]
async fn half_a_million_refusals_are_one_row_and_every_one_is_counted() {
    let world = World::new().await;
    let (_, counted) = refused(&world, "./probe flood 500000").await;
    assert_eq!(counted.get("bpf"), Some(&500_000), "{counted:#?}");
    assert!(counted.len() <= 2, "{counted:#?}");
}

#[tokio::test]
async fn ordinary_programs_raise_no_alarm() {
    let world = World::new().await;
    let script = "mkdir a; echo x >a/b; ln -s b a/c; cp -a a d; chmod 750 d; tar cf t.tar a; tar xf t.tar -C d; mv d e; \\
                  ls -laR >/dev/null; sleep 0.01 & wait; perl -e 'system(\"true\")' | cat; rm -rf a e; ./probe needed";
    let spec = with_probe(&world, script);
    let ended = world.run(&spec).await;
    assert_eq!(ended.exit_code, 0, "{}", said(&spec));
    world.watched(&spec).tally().renew();
    let loud: Vec<String> = world
        .watched(&spec)
        .tally()
        .take_news()
        .unwrap_or_default()
        .into_iter()
        // The probe tries the refused modes too.
        .filter(|one| !one.quiet && !one.form.starts_with("mode "))
        .map(|one| format!("{} {}", one.call, one.form))
        .collect();
    assert_eq!(loud, Vec::<String>::new());
}

#[tokio::test]
async fn without_a_listener_nothing_starts() {
    let world = World::new().await;
    let folder = world.path("gone");
    let watched = Refusals::listen(&folder).expect("listens").expect();
    std::fs::remove_file(folder.join("refusals.sock")).expect("was there");
    let spec = world.spec("echo begun >/workspace/out");
    let mut sandbox = Sandbox::create(&world.engine, &spec, &watched.profile(Told::RefusedAndAddresses))
        .await
        .expect("creates");
    let refused = sandbox.start().await.expect_err("nobody listens");
    assert!(
        matches!(&refused, SandboxError::NoListener(why) if why.contains("refusals.sock"))
            && refused.is_transient(),
        "{refused}"
    );
    sandbox.remove().await.expect("is removed");
    assert!(!spec.workspace.join("out").exists(), "it began all the same");
    assert!(!watched.connected(Duration::from_millis(10)).await);
}

/// A word that nobody expects: the descriptor is closed, and the kernel refuses.
#[tokio::test]
async fn a_sandbox_that_is_not_expected_is_refused_by_the_kernel() {
    let world = World::new().await;
    let spec = with_probe(&world, "./probe calls");
    let watched = world.refusals.expect();
    let mut sandbox = Sandbox::create(&world.engine, &spec, &watched.profile(Told::RefusedAndAddresses))
        .await
        .expect("creates");
    drop(watched);
    sandbox.start().await.expect("starts");
    assert_eq!(sandbox.wait().await.expect("ends").exit_code, 0);
    sandbox.remove().await.expect("is removed");
    let answers = numbers(&said(&spec));
    assert!(answers.values().all(|answer| matches!(*answer, EPERM | ENOSYS)), "{answers:#?}");
    assert_eq!((answers["bpf"], answers["mount"]), (ENOSYS, ENOSYS), "nobody answered");
}

/// As for a runtime that hands nothing over.
#[tokio::test]
async fn the_profile_without_a_listener_refuses_the_same() {
    let world = World::new().await;
    let spec = with_probe(&world, "mkdir d; cd d; ../probe calls");
    let mut sandbox =
        Sandbox::create(&world.engine, &spec, &SeccompProfile::built_in()).await.expect("creates");
    sandbox.start().await.expect("starts");
    assert_eq!(sandbox.wait().await.expect("ends").exit_code, 0);
    sandbox.remove().await.expect("is removed");
    let plain = numbers(&said(&spec));
    let (said, _) = refused(&world, "mkdir d; cd d; ../probe calls").await;
    assert_eq!(plain, numbers(&said), "the same answers, told or not");
}

#[tokio::test]
async fn strangers_at_the_socket_disturb_nobody() {
    let world = World::new().await;
    let socket = world.path("l").join("refusals.sock");
    // Not one of ours: the folder is closed, and who is asked for by the kernel is not root.
    let knock = format!(
        "use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un('{}')) and exit 1; exit 0",
        socket.display()
    );
    let status =
        Command::new("perl").args(["-e", &knock]).uid(UID).gid(UID).current_dir("/").status().expect("perl");
    assert!(status.success(), "a stranger may connect");
    // Root, but no runtime: nothing, garbage, and a state without a descriptor.
    let silent = UnixStream::connect(&socket).expect("connects");
    UnixStream::connect(&socket).expect("connects").write_all(b"garbage").expect("is taken");
    let state = br#"{"ociVersion":"1.0.2","fds":["seccompFd"],"pid":1,"metadata":"x","state":{}}"#;
    UnixStream::connect(&socket).expect("connects").write_all(state).expect("is taken");
    let (_, counted) = refused(&world, "./probe flood 3").await;
    assert_eq!(counted.get("bpf"), Some(&3));
    drop(silent);
    let (said, _) = refused(&world, "find / -name 'refusals*' -not -path '/proc/*' 2>/dev/null; true").await;
    assert_eq!(said, "", "the sandbox sees it");
}

/// Not an assertion but a measurement: `cargo test --test sandbox -- --ignored --nocapture what_it_costs`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn what_it_costs() {
    let world = World::new().await;
    let (told, _) = refused(&world, "./probe costs").await;
    let spec = with_probe(&world, "./probe costs");
    let mut sandbox =
        Sandbox::create(&world.engine, &spec, &SeccompProfile::built_in()).await.expect("creates");
    sandbox.start().await.expect("starts");
    sandbox.wait().await.expect("ends");
    sandbox.remove().await.expect("is removed");
    println!("nanoseconds a call, told:\n{told}not told:\n{}", said(&spec));
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for turn in 0..42 {
        let spec = world.spec("true");
        let begun = std::time::Instant::now();
        let mut sandbox = if turn % 2 == 0 {
            world.create(&spec).await
        } else {
            Sandbox::create(&world.engine, &spec, &SeccompProfile::built_in()).await.expect("creates")
        };
        sandbox.start().await.expect("starts");
        let took = begun.elapsed().as_secs_f64() * 1e3;
        // The first of each warms up.
        if turn > 1 {
            if turn % 2 == 0 { &mut with } else { &mut without }.push(took);
        }
        sandbox.wait().await.expect("ends");
        sandbox.remove().await.expect("is removed");
    }
    for (name, times) in [("with a listener", &mut with), ("without", &mut without)] {
        times.sort_by(f64::total_cmp);
        println!("create and start {name}: median {:.1} ms, of {}", times[times.len() / 2], times.len());
    }
}
