//! Everything that the engine says of a sandbox, against a snapshot that is checked in: a field that is new, or that is
//! not as it was, fails. Asked with one API version, so that another engine says the same.

use kage::sandbox::container::Sandbox;
use kage::sandbox::seccomp::table::Told;
use regex::Regex;
use serde_json::Value;

use crate::support::{World, engine_uri};

/// Of engine 26.1, the oldest of those that are supported today.
const API: &str = "v1.45";

/// The engine's own words: a client's types would drop the fields that they do not know.
pub async fn inspect(id: &str) -> Value {
    // The client wants one, though nothing here is encrypted; one of another test does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let path = engine_uri().trim_start_matches("unix://").to_owned();
    let client = reqwest::Client::builder().unix_socket(path).build().expect("a client");
    let url = format!("http://engine/{API}/containers/{id}/json");
    let answer = client.get(url).send().await.expect("the engine answers");
    assert!(answer.status().is_success(), "{answer:?}");
    answer.json().await.expect("JSON")
}

/// What differs from run to run, by what it is; nothing else.
fn general(value: &mut Value, replace: &[(Regex, &str)]) {
    match value {
        Value::String(text) => {
            for (pattern, word) in replace {
                *text = pattern.replace_all(text, *word).into_owned();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| general(value, replace)),
        Value::Object(fields) => fields.values_mut().for_each(|value| general(value, replace)),
        _ => {}
    }
}

/// Makes what an engine says of a sandbox comparable. `folder`: where the test has its files.
pub fn redact(inspected: &mut Value, folder: &str, seccomp: &str) {
    let options = inspected["HostConfig"]["SecurityOpt"].as_array_mut().expect("options");
    let profile =
        options.iter_mut().find(|option| option.as_str().is_some_and(|text| text.starts_with("seccomp=")));
    let profile = profile.expect("a profile");
    assert_eq!(profile.as_str().and_then(|text| text.strip_prefix("seccomp=")), Some(seccomp));
    *profile = "seccomp=(the whole profile of this run)".into();
    let pid = &mut inspected["State"]["Pid"];
    assert!(pid.as_u64().is_some_and(|pid| pid > 1));
    *pid = "(a process)".into();
    let pattern = |text: &str| Regex::new(text).expect("a pattern");
    let replace = [
        (pattern(&regex::escape(folder)), "(folder)"),
        (pattern("[0-9a-f]{64}"), "(digest)"),
        (pattern("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "(id)"),
        (pattern("[0-9a-f]{32}"), "(id)"),
        (pattern("kage-[0-9a-f]{12}-"), "kage-(id)-"),
        (pattern(r"/docker/netns/[0-9a-f]{12}"), "/docker/netns/(id)"),
        // Layers of this engine's storage.
        (pattern(r"(/l/[A-Z0-9]{26}|overlay2/\(digest\)(-init)?/diff)(:[^:]*overlay2/[^:]*)*"), "(layers)"),
        (pattern(r"\d{4}-\d\d-\d\dT[0-9:.]+Z"), "(time)"),
    ];
    general(inspected, &replace);
    inspected.sort_all_objects();
}

async fn snapshot(world: &World, sandbox: &Sandbox, seccomp: &str) -> Value {
    let mut inspected = inspect(sandbox.id()).await;
    redact(&mut inspected, world.folder.path().to_str().expect("UTF-8"), seccomp);
    // Lists of the engine's without an order.
    for list in ["Mounts", "HostConfig.Mounts"] {
        let list = list.split('.').fold(&mut inspected, |value, name| &mut value[name]);
        let by_target =
            |one: &Value| one["Destination"].as_str().or(one["Target"].as_str()).map(str::to_owned);
        list.as_array_mut().expect("a list").sort_by_key(by_target);
    }
    inspected
}

#[tokio::test]
async fn all_that_the_engine_says_of_a_sandbox_is_as_it_was() {
    let world = World::new().await;
    let mut spec = world.spec("sleep 100");
    let model = world.path("model");
    std::fs::create_dir(&model).expect("mkdir");
    spec.model_dir = Some(model);
    let mut sandbox = world.started(&spec).await;
    let inspected =
        snapshot(&world, &sandbox, world.watched(&spec).profile(Told::RefusedAndAddresses).json()).await;
    sandbox.remove().await.expect("is removed");
    insta::assert_json_snapshot!("inspect", inspected);
}

/// The snapshot would tell: a field that nobody set before, and a default that is no longer one.
#[tokio::test]
async fn a_field_that_is_new_or_changed_is_told() {
    let world = World::new().await;
    let spec = world.spec("sleep 100");
    let mut seen = Vec::new();
    for change in [false, true] {
        let watched = world.refusals.expect();
        let mut body =
            kage::sandbox::profile::container_body(&spec, &watched.profile(Told::RefusedAndAddresses));
        if change {
            let host = body.host_config.as_mut().expect("set");
            host.cpu_shares = Some(512);
            host.sysctls = Some([("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into());
            host.volumes_from = Some(Vec::new());
            host.shm_size = Some(1 << 20);
        }
        let made = world.engine.api().create_container(None, body).await.expect("creates");
        seen.push(inspect(&made.id).await["HostConfig"].clone());
        crate::support::remove_raw(&world.engine, &made.id).await;
    }
    let fields = |value: &Value| value.as_object().expect("fields").clone();
    let (plain, changed) = (fields(&seen[0]), fields(&seen[1]));
    let differ: Vec<&String> = changed
        .iter()
        .filter(|(name, value)| plain.get(*name) != Some(value))
        .map(|(name, _)| name)
        .collect();
    for name in ["CpuShares", "Sysctls", "ShmSize"] {
        assert!(differ.iter().any(|one| *one == name), "{name} in {differ:?}");
    }
}
