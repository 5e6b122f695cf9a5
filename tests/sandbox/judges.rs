//! Judges that are not ours: the benchmark's section on containers, and how many calls are refused beside Docker's
//! default and Podman's. Counted by trying every number in a container, not by reading profiles.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use kage::sandbox::container::Sandbox;
use serde_json::{Value, json};
use syscalls::Sysno;

use crate::bench::{Live, Verdict, section_5};
use crate::generated::{Place, generated};
use crate::golden::inspect;
use crate::support::{LABEL, LABEL_VALUE, UID, World, numbers, probe, write_program};

/// Podman's default: `/usr/share/containers/seccomp.json` of Debian's golang-github-containers-common 0.50.1+ds1-4.
const PODMANS: &str = include_str!("peers/podman.json");

async fn engine_info(world: &World) -> Value {
    let info = world.engine.api().info().await.expect("the engine answers");
    serde_json::to_value(info).expect("JSON")
}

fn shares(pid: u64) -> impl Fn(&str) -> bool {
    move |kind: &str| {
        let link = |of: &str| {
            std::fs::read_link(format!("/proc/{of}/ns/{kind}"))
                .expect("these tests are root on the engine's host")
        };
        link(&pid.to_string()) == link("self")
    }
}

fn processes(pid: u64) -> Vec<String> {
    let name = |pid: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
    };
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().chain([pid.to_string().as_str()]).map(name).collect()
}

async fn benched(world: &World, id: &str) -> BTreeMap<&'static str, Verdict> {
    let inspected = inspect(id).await;
    let pid = inspected["State"]["Pid"].as_u64().expect("it runs");
    let info = engine_info(world).await;
    let live =
        Live { inspect: &inspected, info: &info, processes: &processes(pid), shares_namespace: &shares(pid) };
    let checks = section_5(&live);
    assert_eq!(checks.len(), 32);
    for check in &checks {
        println!("{:5} {:?} {}", check.number, check.verdict, check.title);
    }
    checks.into_iter().map(|check| (check.number, check.verdict)).collect()
}

fn warned(verdicts: &BTreeMap<&'static str, Verdict>) -> BTreeSet<&'static str> {
    verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Warn).map(|(number, _)| *number).collect()
}

#[tokio::test]
async fn the_benchmarks_section_on_containers_passes() {
    let world = World::new().await;
    let spec = world.spec("sleep 100");
    let mut sandbox = world.started(&spec).await;
    let verdicts = benched(&world, sandbox.id()).await;
    sandbox.remove().await.expect("is removed");
    assert_eq!(warned(&verdicts), BTreeSet::new());
    let passed = verdicts.values().filter(|verdict| **verdict == Verdict::Pass).count();
    assert!(passed >= 26, "only {passed} of 32 have anything to look at");
}

/// The same checks find what is wrong with others: else that they pass says nothing.
#[tokio::test]
async fn the_benchmark_finds_what_plain_containers_lack() {
    let world = World::new().await;
    let command = vec!["sleep".to_owned(), "100".to_owned()];
    let labels = HashMap::from([(LABEL.to_owned(), LABEL_VALUE.to_owned())]);
    let plain = ContainerCreateBody {
        image: Some(world.image.to_string()),
        entrypoint: Some(command),
        labels: Some(labels),
        ..ContainerCreateBody::default()
    };
    let mut open = plain.clone();
    let bind = |path: &str| Mount {
        typ: Some(MountType::BIND),
        source: Some(path.to_owned()),
        target: Some(path.to_owned()),
        ..Mount::default()
    };
    open.host_config = Some(HostConfig {
        privileged: Some(true),
        network_mode: Some("host".to_owned()),
        pid_mode: Some("host".to_owned()),
        ipc_mode: Some("host".to_owned()),
        uts_mode: Some("host".to_owned()),
        userns_mode: Some("host".to_owned()),
        security_opt: Some(vec!["seccomp=unconfined".to_owned()]),
        mounts: Some(vec![bind("/etc"), bind("/var/run/docker.sock")]),
        ..HostConfig::default()
    });
    let mut found = Vec::new();
    for body in [plain, open] {
        let made = world.engine.api().create_container(None, body).await.expect("creates");
        let mut container = Sandbox::adopt(&world.engine, &made.id).await.expect("adopts");
        container.start().await.expect("starts");
        found.push(warned(&benched(&world, &made.id).await));
        container.remove().await.expect("is removed");
    }
    for number in ["5.4", "5.11", "5.12", "5.13", "5.19", "5.22", "5.26", "5.29", "5.30"] {
        assert!(found[0].contains(number), "{number} of Docker's default: {:?}", found[0]);
    }
    for number in ["5.5", "5.6", "5.10", "5.16", "5.17", "5.21", "5.22", "5.31", "5.32"] {
        assert!(found[1].contains(number), "{number} without walls: {:?}", found[1]);
    }
}

/// What the probe is answered by number, in a container like a sandbox but for its filter: no capability, no new
/// privileges, no root. `None`: Docker's default.
async fn answers(world: &World, seccomp: Option<&str>) -> BTreeMap<Sysno, i32> {
    let script = world.path("numbers.sh");
    let folder = world.path("numbers");
    std::fs::create_dir_all(&folder).expect("mkdir");
    std::fs::copy(probe(), folder.join("probe")).expect("copies");
    let out = folder.join("out");
    let _ = std::fs::remove_file(&out);
    std::fs::write(&out, "").expect("writes");
    std::os::unix::fs::chown(&out, Some(UID), Some(UID)).expect("these tests need to be root");
    write_program(&script, "#!/bin/sh\nexec /there/probe numbers >/there/out\n");
    let security = ["no-new-privileges:true".to_owned()].into_iter();
    let body = ContainerCreateBody {
        image: Some(world.image.to_string()),
        entrypoint: Some(vec!["/script".to_owned()]),
        user: Some(format!("{UID}:{UID}")),
        labels: Some(HashMap::from([(LABEL.to_owned(), LABEL_VALUE.to_owned())])),
        host_config: Some(HostConfig {
            binds: Some(vec![
                format!("{}:/there", folder.display()),
                format!("{}:/script", script.display()),
            ]),
            cap_drop: Some(vec!["ALL".to_owned()]),
            network_mode: Some("none".to_owned()),
            security_opt: Some(security.chain(seccomp.map(|json| format!("seccomp={json}"))).collect()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let made = world.engine.api().create_container(None, body).await.expect("creates");
    let mut container = Sandbox::adopt(&world.engine, &made.id).await.expect("adopts");
    container.start().await.expect("starts");
    let ended = container.wait().await.expect("ends");
    container.remove().await.expect("is removed");
    assert_eq!(ended.exit_code, 0);
    let text = std::fs::read_to_string(&out).expect("reads");
    let named = |(number, answer): (String, i32)| Some((Sysno::new(number.parse().ok()?)?, answer));
    numbers(&text).into_iter().filter_map(named).collect()
}

/// EPERM, ENOSYS, EOPNOTSUPP; killed by SIGSYS.
fn refused(answers: &BTreeMap<Sysno, i32>) -> BTreeSet<Sysno> {
    answers
        .iter()
        .filter(|(_, answer)| matches!(**answer, 1 | 38 | 95 | 1031))
        .map(|(call, _)| *call)
        .collect()
}

#[tokio::test]
async fn more_calls_are_refused_than_by_others() {
    let world = World::new().await;
    let open = refused(&answers(&world, Some("unconfined")).await);
    let dockers = refused(&answers(&world, None).await);
    let podmans = refused(&answers(&world, Some(PODMANS)).await);
    // In the very sandbox, with everything else of it.
    let watched = world.spec("./probe numbers >out");
    world.give_probe(&watched);
    assert_eq!(world.run(&watched).await.exit_code, 0);
    let text = std::fs::read_to_string(watched.workspace.join("out")).expect("out");
    let named = |(number, answer): (String, i32)| Some((Sysno::new(number.parse().ok()?)?, answer));
    let all: BTreeMap<Sysno, i32> = numbers(&text).into_iter().filter_map(named).collect();
    let ours = refused(&all);

    let names = |calls: BTreeSet<Sysno>| calls.iter().map(Sysno::name).collect::<Vec<_>>().join(" ");
    let lost = |other: &BTreeSet<Sysno>| names(other.difference(&ours).copied().collect());
    assert_eq!(lost(&open), "", "calls that even a kernel without a filter refuses");
    println!("refused by Docker's default and not by us: {}", lost(&dockers));
    println!("refused by Podman's and not by us: {}", lost(&podmans));
    println!(
        "refused by us and not by Docker's default: {}",
        names(ours.difference(&dockers).copied().collect())
    );
    assert!(ours.len() > dockers.len() + 40 && ours.len() > podmans.len() + 40);

    let table = json!([
        ["no filter", open.len()],
        ["Docker's default", dockers.len()],
        ["Podman's default (0.50.1)", podmans.len()],
        ["ours", ours.len()]
    ]);
    let mut text = format!(
        "Of {} native calls of x86-64 that have a name, tried by number as a user without capabilities:\n\n| | refused |\n| --- | --- |\n",
        all.len()
    );
    for row in table.as_array().expect("rows") {
        text += &format!("| {} | {} |\n", row[0].as_str().expect("a name"), row[1]);
    }
    let mut beside = names(dockers.difference(&ours).copied().collect());
    if beside.is_empty() {
        "none".clone_into(&mut beside);
    }
    text += &format!("\nRefused by Docker's default and not by ours: {beside}.\n");
    generated("calls", &text, Place::of(&world.engine).await);
}
