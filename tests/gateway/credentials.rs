//! The operator's credentials are seen by the provider and by nobody else; `kage gateway` and `kage doctor` as processes.

use std::process::{Command, Output, Stdio};

use kage::domain::model::Dialect;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::support::database::stored;
use crate::support::runs::NONE;
use crate::support::{CREDENTIAL, World, eventually, fault, request};

/// `kage` with this world's settings and nothing else of this machine's.
pub fn command(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kage"));
    command.args(args).env_clear().envs(&world.settings).current_dir(world.folder()).stdin(Stdio::null());
    std::fs::write(world.folder().join("kage.toml"), "").unwrap();
    command.env("KAGE_CONFIG", world.folder().join("kage.toml")).env("KAGE_LOG", "trace");
    command
}

pub struct Ended(pub std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_planted_credential_is_found_nowhere_but_at_the_provider() {
    let more = "[[provider]]\nname = \"env\"\ndialect = \"chat\"\nbase_url = \"BASE\"\ncredential = \"env:PLANTED_KEY\"\nfree = true\nallow = [\"*\"]\n[cli.env]\nprovider = \"env\"\n";
    let mut world = World::without_gateway("", &[]).await;
    let file = world.settings["KAGE_GATEWAY_PROVIDERS"].clone();
    let text = std::fs::read_to_string(&file).unwrap() + &more.replace("BASE", &world.provider.url());
    std::fs::write(&file, text).unwrap();
    let log = world.folder().join("log");
    let out = std::fs::File::create(&log).unwrap();
    let mut gateway = command(&world, &["gateway"]);
    gateway.env("PLANTED_KEY", CREDENTIAL).stdout(out.try_clone().unwrap()).stderr(out);
    let gateway = Ended(gateway.spawn().unwrap());
    let mut seen = String::new();
    let env = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&env, "env", "chat", None).await;
    assert!(world.answered(&env).await.is_open());
    let mut runs = vec![(Dialect::Chat, env)];
    for dialect in Dialect::ALL {
        runs.push((dialect, world.open(dialect.as_str(), NONE, NONE).await));
    }
    for (dialect, run) in &runs {
        for kind in ["no-usage", "401", "403", "400", "500", "cut", "garbage", "redirect", "reset"] {
            for stream in [true, false] {
                let answer = world.call(run.id, *dialect, &request(*dialect, &fault(kind), stream)).await;
                seen.push_str(&format!("{answer:?}\n"));
            }
        }
    }
    for (_, run) in &runs {
        world.close(run).await;
    }
    // The process itself tells nobody either.
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", gateway.0.id())).unwrap();
    drop(gateway);
    let config = command(&world, &["config"]).output().unwrap();
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("gateway.started") && log.contains("gateway.credential_refused"), "{log}");
    let provider_saw = format!("{:?}", world.provider.requests());
    assert!(provider_saw.contains(CREDENTIAL), "it was never used");
    for (what, text) in [
        ("answers", seen),
        ("database", stored(world.pool()).await),
        ("log", log),
        ("arguments", arguments),
        ("kage config", format!("{config:?}")),
    ] {
        assert!(!text.is_empty() && !text.contains(CREDENTIAL), "the credential is in the {what}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_credential_is_replaced_without_a_restart() {
    let world = World::new().await;
    let run = world.open("anthropic", NONE, NONE).await;
    let body = request(Dialect::Anthropic, "hello", false);
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
    let key = world.folder().join("key");
    std::fs::write(world.folder().join("new"), "another-credential\n").unwrap();
    std::fs::rename(world.folder().join("new"), &key).unwrap();
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 403);
    assert_eq!(world.provider.requests().last().unwrap().header("x-api-key"), Some("another-credential"));
    std::fs::write(&key, CREDENTIAL).unwrap();
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
    // What cannot be read again leaves the last good one in force, and that is recorded.
    for broken in [None, Some(""), Some("not for\na header")] {
        match broken {
            None => std::fs::remove_file(&key).unwrap(),
            Some(text) => std::fs::write(&key, text).unwrap(),
        }
        assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200, "{broken:?}");
    }
    let audited = async |outcome: &str| -> bool {
        let query =
            "SELECT count(*) > 0 FROM audit_entries WHERE action = 'secret.reload' AND actor_kind = 'gateway'
                     AND object = 'setting:provider.scripted-anthropic.credential' AND outcome = $1";
        sqlx::query_scalar(query).bind(outcome).fetch_one(world.pool()).await.unwrap()
    };
    for outcome in ["done", "failed"] {
        eventually("it is audited", async || audited(outcome).await.then_some(())).await;
    }
}

#[tokio::test]
async fn a_program_gives_the_credential_and_none_at_all_is_told_to_the_run() {
    let more = "[[provider]]\nname = \"asked\"\ndialect = \"chat\"\nbase_url = \"BASE\"\ncredential = \"exec:/bin/cat KEY\"\nfree = true\nallow = [\"*\"]\n[cli.asked]\nprovider = \"asked\"\n";
    let mut world = World::without_gateway("", &[("KAGE_SECRETS_RELOAD_SECS", "1")]).await;
    let (file, key) = (world.settings["KAGE_GATEWAY_PROVIDERS"].clone(), world.folder().join("asked"));
    let more = more.replace("BASE", &world.provider.url()).replace("KEY", key.to_str().unwrap());
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + &more).unwrap();
    world.start().await;
    let body = request(Dialect::Chat, "hello", false);
    std::fs::write(&key, CREDENTIAL).unwrap();
    let run = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&run, "asked", "chat", None).await;
    assert!(world.answered(&run).await.is_open());
    assert_eq!(world.call(run.id, Dialect::Chat, &body).await.status, 200);
    std::fs::write(&key, "another-credential\n").unwrap();
    let seen = || world.provider.requests().last().unwrap().header("authorization").map(str::to_owned);
    eventually("it is asked again", async || {
        world.call(run.id, Dialect::Chat, &body).await;
        seen().filter(|shown| shown == "Bearer another-credential")
    })
    .await;
}

#[tokio::test]
async fn the_gateway_is_a_process_that_can_be_killed() {
    let world = World::without_gateway("", &[]).await;
    let start =
        || Ended(command(&world, &["gateway"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let gateway = start();
    let run = world.open("anthropic", NONE, NONE).await;
    let stall = request(Dialect::Anthropic, &fault("stall"), true);
    let mut answer = world.client(run.id).post("http://any/v1/messages").json(&stall).send().await.unwrap();
    assert!(answer.chunk().await.unwrap().is_some());
    let (_, held) = world.budgets(&run).await;
    assert!(held.reserved_micros > 0);
    // SIGKILL.
    drop(gateway);
    let mut gateway = start();
    let calls = world.calls(&run).await;
    assert_eq!((calls[0].outcome.as_str(), calls[0].cost_micros), ("lost", held.reserved_micros));
    eventually("the socket is back", async || UnixStream::connect(world.socket(run.id)).await.ok()).await;
    let body = request(Dialect::Anthropic, "hello", false);
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
    // SIGTERM: in order, and soon.
    let pid = rustix::process::Pid::from_child(&gateway.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = tokio::task::spawn_blocking(move || gateway.0.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(!world.socket(run.id).exists());
}

async fn doctor(world: &World, args: &[&str]) -> (Output, Value) {
    let mut all = vec!["doctor", "--json"];
    all.extend(args);
    let mut command = command(world, &all);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let json = serde_json::from_str(&text).unwrap_or(Value::Null);
    (output, json)
}

#[tokio::test]
async fn the_doctor_finds_what_is_broken_and_spends_nothing() {
    let more = "[[provider]]\nname = \"away\"\ndialect = \"chat\"\nbase_url = \"http://127.0.0.1:1\"\nfree = true\nallow = [\"*\"]\n";
    let world = World::without_gateway(more, &[]).await;
    let good = [
        "scripted-anthropic",
        "scripted-responses",
        "scripted-chat",
        "scripted-gemini",
        "scripted-ollama",
        "database",
    ];
    let (output, lines) = doctor(&world, &good).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lines.as_array().unwrap().len(), 6, "{lines}");
    assert!(lines.as_array().unwrap().iter().all(|line| line["ok"] == true), "{lines}");
    assert!(lines[1]["text"].as_str().unwrap().contains("credential accepted"), "{lines}");
    assert!(world.provider.requests().iter().all(|request| request.method == "GET"));
    std::fs::write(world.folder().join("key"), "wrong").unwrap();
    let (output, lines) = doctor(&world, &["scripted-gemini", "away"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(lines[0]["text"].as_str().unwrap().contains("credential refused"), "{lines}");
    assert!(lines[1]["text"].as_str().unwrap().contains("unreachable"), "{lines}");
    std::fs::remove_file(world.folder().join("key")).unwrap();
    let (output, lines) = doctor(&world, &["scripted-gemini"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(lines[0]["text"].as_str().unwrap().contains("no credential"), "{lines}");
    // A variable's value may be in a file, as Compose hands secrets over.
    let base = world.provider.url();
    let text = format!(
        "[[provider]]\nname = \"env\"\ndialect = \"chat\"\nbase_url = \"{base}\"\ncredential = \"env:PLANTED\"\nfree = true\nallow = [\"*\"]\n"
    );
    std::fs::write(&world.settings["KAGE_GATEWAY_PROVIDERS"], text).unwrap();
    std::fs::write(world.folder().join("secret"), format!("{CREDENTIAL}\n")).unwrap();
    for (file, code) in [("secret", 0), ("missing", 1)] {
        let mut command = command(&world, &["doctor", "env"]);
        command.env("PLANTED_FILE", world.folder().join(file));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
    let (output, _) = doctor(&world, &["nobody"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
