//! What `compose.yaml` promises of a host that goes down and comes back.

use std::process::Command;

use serde_json::Value;

/// The services as Compose itself reads them, with every profile.
fn services(files: &[&str]) -> serde_json::Map<String, Value> {
    let mut command = Command::new("docker");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("compose");
    for file in files {
        command.args(["--file", file]);
    }
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KAGE_")) {
        command.env_remove(name);
    }
    // What the files insist on; none of it is looked at.
    for name in ["KAGE_OIDC_ISSUER", "KAGE_OIDC_CLIENT_ID", "KAGE_OIDC_PUBLIC_URL"] {
        command.env(name, "https://kage.example");
    }
    let output =
        command.args(["--profile", "*", "config", "--format", "json"]).output().expect("docker compose");
    assert!(output.status.success(), "{files:?}: {}", String::from_utf8_lossy(&output.stderr));
    let mut read: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    serde_json::from_value(read["services"].take()).expect("services")
}

/// The engine starts services by their policies alone, in any order: each comes back, also one that ended because another was not
/// there yet. What is done once, and is over then, does not.
#[test]
fn every_service_comes_back_by_itself() {
    let overlays = ["compose.fetch.yaml", "compose.oidc.yaml", "compose.tls.yaml", "compose.watch.yaml"];
    let combinations =
        std::iter::once(vec!["compose.yaml"]).chain(overlays.map(|overlay| vec!["compose.yaml", overlay]));
    for files in combinations {
        let services = services(&files);
        assert!(services.len() >= 9, "{files:?}: {:?}", services.keys());
        for (name, service) in &services {
            let wanted = if ["migrate", "backup", "restore"].contains(&name.as_str()) {
                "no"
            } else {
                "unless-stopped"
            };
            assert_eq!(service["restart"], wanted, "{files:?}: {name}");
        }
        // What must be there already is a folder of the host's, never one that the engine would make empty in its place.
        for (name, service) in &services {
            let volumes = service["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
            for bound in volumes
                .iter()
                .filter(|volume| volume["type"] == "bind" && volume["target"] != "/var/run/docker.sock")
            {
                assert_ne!(bound["bind"]["create_host_path"], true, "{files:?}: {name}: {bound}");
            }
        }
    }
}

/// What is missing in the script's list is never begun by it: so it was with retention, and months came without tables.
#[test]
fn quickstart_begins_every_service_that_no_profile_keeps_back() {
    let script = include_str!("../quickstart");
    let list = script.lines().find_map(|line| line.strip_prefix("readonly SERVICES=(")?.strip_suffix(')'));
    let mut begun: Vec<&str> = list.expect("a list of services").split(' ').collect();
    begun.sort_unstable();
    let services = services(&["compose.yaml"]);
    let mut wanted: Vec<&str> = services
        .iter()
        .filter(|(_, service)| service["profiles"].as_array().is_none_or(Vec::is_empty))
        // They come with those that wait for them.
        .filter_map(|(name, _)| (!["db", "migrate"].contains(&name.as_str())).then_some(name.as_str()))
        .collect();
    wanted.sort_unstable();
    assert_eq!(begun, wanted);
    // Out of the box nothing goes: it makes the tables of the months to come.
    let retention = services["retention"]["environment"].as_object().expect("variables");
    let is_rule = |name: &str| name.starts_with("KAGE_RETENTION_") && name != "KAGE_RETENTION_POLL_SECS";
    let rules: Vec<_> = retention.iter().filter(|(name, _)| is_rule(name)).collect();
    assert!(rules.len() == 6 && rules.iter().all(|(_, value)| *value == ""), "{rules:?}");
}
