//! The container of a live run, as its runner made it, against the snapshot of tests/sandbox and the benchmark's section.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::bench::{Live, Verdict, section_5};
use crate::containment::{end, living, processes, status};
use crate::support::tasks::string;
use crate::support::{TestKage, docker, engine};

/// What the engine says, in its own words.
async fn inspect(id: &str) -> Value {
    let path = engine().trim_start_matches("unix://").to_owned();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().unix_socket(path).build().expect("a client");
    let answer =
        client.get(format!("http://engine/v1.45/containers/{id}/json")).send().await.expect("answers");
    answer.json().await.expect("JSON")
}

#[tokio::test]
async fn probes_39_and_40_a_live_runs_container_is_the_golden_one_and_passes_the_benchmark() {
    let limits = [
        ("KAGE_LIMIT_PIDS", "64"),
        ("KAGE_LIMIT_TMP_BYTES", "8388608"),
        ("KAGE_LIMIT_MEMORY_BYTES", "268435456"),
    ];
    let kage = TestKage::serving(&limits).await;
    kage.demo().await;
    let (id, pid) = living(&kage, "").await;
    let live = inspect(&kage.containers()[0]).await;

    // The snapshot is of a sandbox that a test made; a runner's may differ in nothing but what is named here.
    let snapshot = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/sandbox/snapshots/sandbox__golden__inspect.snap"
    ));
    let snapshot = snapshot.expect("reads");
    let golden: Value =
        serde_json::from_str(snapshot.splitn(3, "---").nth(2).expect("a body")).expect("JSON");
    let host = |value: &Value| {
        let mut fields = value["HostConfig"].as_object().expect("fields").clone();
        let mounts = fields.remove("Mounts").expect("mounts");
        fields.remove("SecurityOpt").expect("options");
        (fields.into_iter().collect::<BTreeMap<_, _>>(), mounts)
    };
    let ((ours, mounts), (expected, golden_mounts)) = (host(&live), host(&golden));
    for (name, value) in &ours {
        assert_eq!(Some(value), expected.get(name), "HostConfig.{name}");
    }
    assert_eq!(ours.len(), expected.len());
    // Without a model there is one mount less; each of the others is bound in the same way.
    let shape = |mounts: &Value| -> BTreeMap<String, String> {
        let all = mounts.as_array().expect("a list").iter();
        let one = |mount: &Value| {
            let mut mount = mount.clone();
            mount.as_object_mut().expect("fields").remove("Source");
            mount.sort_all_objects();
            (string(&mount["Target"]).to_owned(), mount.to_string())
        };
        all.map(one).filter(|(target, _)| target != "/run/model").collect()
    };
    assert_eq!(shape(&mounts), shape(&golden_mounts));
    let options: Vec<&str> =
        live["HostConfig"]["SecurityOpt"].as_array().expect("a list").iter().map(string).collect();
    assert!(
        options.len() == 2 && options[0] == "no-new-privileges:true" && options[1].starts_with("seccomp={")
    );

    let names: Vec<String> =
        processes(pid).into_iter().filter_map(|pid| status(pid).remove("Name")).collect();
    let shares = |kind: &str| {
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).expect("a namespace");
        link(&pid.to_string()) == link("self")
    };
    let info: Value = serde_json::from_str(&docker(&["info", "--format", "{{json .}}"])).expect("JSON");
    let checks =
        section_5(&Live { inspect: &live, info: &info, processes: &names, shares_namespace: &shares });
    let warned: Vec<String> = checks
        .iter()
        .filter(|check| check.verdict == Verdict::Warn)
        .map(|check| format!("{} {}", check.number, check.title))
        .collect();
    assert_eq!(warned, [] as [&str; 0]);
    assert!(names.iter().any(|name| name == "sleep") && checks.len() == 32);
    end(&kage, &id).await;
}
