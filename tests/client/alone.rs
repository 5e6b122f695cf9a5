//! Commands that need neither a server nor a database.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn kage(home: &Path, args: &[&str], more: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kage"));
    command.args(args).env_clear().env("HOME", home).env("KAGE_DATA_DIR", home).current_dir(home);
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    command.envs(more.iter().copied()).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn keys_are_made_and_json_is_json() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| kage(home.path(), args, &[]);
    let made = run(&["key", "generate"]);
    let text = String::from_utf8(made.stdout.clone()).unwrap();
    let key = kage::domain::api_key::parse(text.trim()).unwrap_or_else(|| panic!("no key: {made:?}"));
    let other = json(&run(&["key", "generate", "--json"]));
    let other = kage::domain::api_key::parse(other["key"].as_str().unwrap()).unwrap();
    assert_ne!(key.id, other.id);

    let secret = json(&run(&["webhook", "keygen", "--json"]));
    assert!(secret["secret"].as_str().unwrap().starts_with("whsec_"), "{secret}");
    let made = json(&run(&["audit", "keygen", "--json", "--name", "log.example", "--out", "log-key"]));
    let public = made["public_key"].as_str().unwrap();
    assert!(public.starts_with("log.example+") && home.path().join("log-key").is_file(), "{made}");
    let known = kage(home.path(), &["audit", "key", "--json"], &[("KAGE_AUDIT_KEY", public)]);
    assert_eq!(json(&known)["keys"], serde_json::json!([public]));
    // That key is a log's: as a witness it is refused, at every start.
    let refused = kage(home.path(), &["config"], &[("KAGE_AUDIT_WITNESSES", public)]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("without --witness"), "{said}");
}

#[test]
fn a_hook_is_not_looked_for_where_no_file_is_set() {
    let home = tempfile::tempdir().unwrap();
    let output = kage(home.path(), &["webhook", "test", "ops"], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("KAGE_WEBHOOKS_FILE is not set"), "{said}");
}

#[test]
fn the_doctor_tells_what_is_not_set_up_from_what_is_broken() {
    let home = tempfile::tempdir().unwrap();
    let providers = |args: &[&str], more: &[(&str, &str)]| -> Vec<Value> {
        let lines = json(&kage(home.path(), &[&["doctor", "--json"], args].concat(), more));
        let lines = lines.as_array().unwrap().iter();
        lines.filter(|line| line["kind"] == "provider" && line["name"] != "ollama").cloned().collect()
    };
    let fresh = providers(&[], &[]);
    assert_eq!(fresh.len(), 5, "{fresh:#?}");
    assert!(fresh.iter().all(|line| line["ok"] == true && line["not_configured"] == true), "{fresh:#?}");
    assert!(fresh[0]["text"].as_str().unwrap().contains("ANTHROPIC_API_KEY"), "{fresh:#?}");
    // Asked for by name, or named by a table of the operator's own, it is to work.
    assert_eq!(providers(&["anthropic"], &[])[0]["ok"], false);
    let own = home.path().join("own.toml");
    let table = "[[provider]]\nname = \"mine\"\ndialect = \"chat\"\nbase_url = \"http://127.0.0.1:1\"\ncredential = \"env:MINE\"\nfree = true\nallow = [\"*\"]\n";
    std::fs::write(&own, table).unwrap();
    assert_eq!(providers(&[], &[("KAGE_GATEWAY_PROVIDERS", own.to_str().unwrap())])[0]["ok"], false);
    // A credential that is set and cannot be read is broken too.
    let set = providers(&[], &[("ANTHROPIC_API_KEY_FILE", "/nowhere/at/all")]);
    assert_eq!(set[0]["ok"], false, "{set:#?}");
}
