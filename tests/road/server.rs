//! The server's commands: how they start, what they refuse to start with, and what they say.

use std::process::Output;

use serde_json::Value;

use crate::support::tasks::{shell, string};
use crate::support::{TestKage, leftovers};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn serve_needs_no_database_of_ones_own() {
    let mut kage = TestKage::bare().await;
    // What needs a database says so before there is one.
    let output = kage.server_command(&["key", "list"]).output().expect("starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("KAGE_DATABASE_URL"), "{}", stderr(&output));

    let first = kage.start("serve").await;
    kage.equip();
    kage.demo().await;
    let task = kage.run(&shell("echo one > one")).await;
    assert_eq!(task["status"], "completed", "{task}");
    // Reached through a socket in a folder that nobody else enters, and by no port.
    let pid = std::fs::read_to_string(kage.data.join("postgres/data/postmaster.pid")).expect("it runs");
    let lines: Vec<&str> = pid.lines().collect();
    assert_eq!(lines[5].trim(), "", "it listens nowhere: {pid}");
    let status = kage.process(first).terminate().await;
    assert!(status.success(), "{status}");
    assert!(!kage.data.join("postgres/data/postmaster.pid").exists(), "it ends with its server");

    // The next one finds all that was stored.
    let second = kage.start("serve").await;
    assert_eq!(kage.task(string(&task["id"])).await, task);
    assert_eq!(kage.run(&shell("echo two > two")).await["status"], "completed");
    // Two on one folder would harm each other; the first is not disturbed.
    for listen in [kage.settings["KAGE_API_LISTEN"].as_str(), "127.0.0.1:0"] {
        let output = kage.server_command(&["serve"]).env("KAGE_API_LISTEN", listen).output().expect("starts");
        assert!(
            !output.status.success() && stderr(&output).contains("another `kage serve` works in"),
            "{output:?}"
        );
    }
    kage.process(second).assert_alive();
    assert_eq!(kage.run(&shell("echo three > three")).await["status"], "completed");
}

#[tokio::test]
async fn without_an_engine_it_says_what_to_do() {
    let mut kage = TestKage::new().await;
    let socket = kage.folder.join("no-engine.sock").display().to_string();
    kage.set("KAGE_RUNNER_DOCKER", &format!("unix://{socket}"));
    for role in ["runner", "serve"] {
        let output = kage.server_command(&[role]).output().expect("starts");
        assert_eq!(output.status.code(), Some(1), "{role}: {}", stderr(&output));
        let said = stderr(&output);
        let last = said.lines().last().expect("a line");
        assert!(last.starts_with("kage: runner: no Docker Engine answers at"), "{role}: {said}");
        assert!(last.contains(&socket) && last.contains("./quickstart"), "{role}: {said}");
    }
    // Something that answers and is no engine.
    let listener = tokio::net::UnixListener::bind(&socket).expect("binds");
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let mut command = kage.server_command(&["runner"]);
    let output =
        tokio::task::spawn_blocking(move || command.output().expect("starts")).await.expect("no panic");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).lines().last().is_some_and(|line| line.starts_with("kage: runner: ")));
    assert_eq!(leftovers::run_folders(&kage.folder), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn other_things_that_are_missing_are_named() {
    let kage = TestKage::new().await;
    let missing = kage.folder.join("missing").display().to_string();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let busy = busy.local_addr().expect("an address").to_string();
    for (role, name, value, says) in [
        ("runner", "KAGE_RUNNER_SHIM", missing.as_str(), "no shim at"),
        ("api", "KAGE_API_LISTEN", busy.as_str(), "KAGE_API_LISTEN"),
    ] {
        let _held = std::net::TcpListener::bind(&busy);
        let output = kage.server_command(&[role]).env(name, value).output().expect("starts");
        assert_eq!(output.status.code(), Some(1), "{name}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(
            said.lines().last().is_some_and(|line| line.contains(says) && line.contains(value)),
            "{said}"
        );
    }
}

/// For each setting a value that it cannot have.
const BAD: [(&str, &str); 68] = [
    ("KAGE_DATABASE_URL", "mysql://x/y"),
    ("KAGE_DATABASE_URL", "nonsense"),
    ("KAGE_DATABASE_CONNECTIONS", "1"),
    ("KAGE_DATABASE_CONNECTIONS", "many"),
    ("KAGE_DATABASE_ACQUIRE_SECS", "0"),
    ("KAGE_DATABASE_PASSWORD_FILE", "/nonexistent/file"),
    ("KAGE_API_LISTEN", "8787"),
    ("KAGE_API_LISTEN", "localhost:8787"),
    ("KAGE_API_LISTEN", "0.0.0.0:8787"),
    ("KAGE_API_LISTEN", "[::]:8787"),
    ("KAGE_API_ALLOW_PLAIN_HTTP", "yes"),
    ("KAGE_API_TLS_CLIENT_AUTH", "maybe"),
    ("KAGE_API_TLS_KEY_FILE", "/nonexistent/key.pem"),
    ("KAGE_API_TRUSTED_PROXIES", "0.0.0.0/0"),
    ("KAGE_API_RATE_FAILURES", "0"),
    ("KAGE_API_CORS_ORIGINS", "*"),
    ("KAGE_API_BODY_BYTES", "1"),
    ("KAGE_API_BODY_BYTES", "-1"),
    ("KAGE_API_BODIES_BYTES", "67108863"),
    ("KAGE_API_STREAMS", "0"),
    ("KAGE_API_STREAMS_KEY", "0"),
    ("KAGE_API_QUEUE_RUNS", "0"),
    ("KAGE_API_QUEUE_RUNS_KEY", "-1"),
    ("KAGE_API_STALL_SECS", "0"),
    ("KAGE_API_IDLE_SECS", "15"),
    ("KAGE_API_CONNECTIONS", "0"),
    ("KAGE_DATA_DIR", "relative"),
    ("KAGE_DATA_DIR", "/with space"),
    ("KAGE_DATA_DIR", "/with:colon,comma"),
    ("KAGE_INSTANCE", "Not A Name"),
    ("KAGE_RUNNER_CONCURRENCY", "0"),
    ("KAGE_RUNNER_REPOSITORY_CONCURRENCY", "-1"),
    ("KAGE_RUNNER_DOCKER", "tcp://127.0.0.1:2375"),
    ("KAGE_RUNNER_DOCKER", "/var/run/docker.sock"),
    ("KAGE_RUNNER_UID", "0"),
    ("KAGE_RUNNER_UID", "root"),
    ("KAGE_RUNNER_WORKTREE", "clone"),
    ("KAGE_RUNNER_HISTORY", "-1"),
    ("KAGE_RUNNER_BASE_BYTES", "1"),
    ("KAGE_RUNNER_BASE_FILE_BYTES", "0"),
    ("KAGE_RUNNER_BASE_FILES", "0"),
    ("KAGE_RUNNER_BASES_BYTES", "0"),
    ("KAGE_RUNNER_BASES_FILES", "0"),
    ("KAGE_RUNNER_BASES_IDLE_SECS", "0"),
    ("KAGE_RUNNER_RESERVE_BYTES", "-1"),
    ("KAGE_RUNNER_DISK_SOFT_PERCENT", "100"),
    ("KAGE_RUNNER_DISK_HARD_PERCENT", "11"),
    ("KAGE_RETENTION_LOG_DAYS", "0"),
    ("KAGE_RETENTION_RESULTS_BYTES", "1GB"),
    ("KAGE_RETENTION_POLL_SECS", "0"),
    ("KAGE_RUNNER_LOG_COPY_BYTES", "1TB"),
    ("KAGE_RUNNER_GRACE_SECS", "301"),
    ("KAGE_RUNNER_ORPHAN_SECS", "9"),
    ("KAGE_RUNNER_LEASE_SECS", "4"),
    ("KAGE_RUNNER_DRAIN_SECS", "x"),
    ("KAGE_LIMIT_MEMORY_BYTES", "1"),
    ("KAGE_LIMIT_MEMORY_BYTES", "2GB"),
    ("KAGE_LIMIT_CPU_MILLIS", "9"),
    ("KAGE_LIMIT_PIDS", "7"),
    ("KAGE_LIMIT_OPEN_FILES", "63"),
    ("KAGE_LIMIT_FILE_BYTES", "1"),
    ("KAGE_LIMIT_TMP_BYTES", "1"),
    ("KAGE_LIMIT_IDLE_SECS", "0"),
    ("KAGE_LIMIT_OUTPUT_BYTES", "1023"),
    ("KAGE_LIMIT_RESULT_FILES", "0"),
    ("KAGE_LIMIT_RESULT_BYTES", "1"),
    ("KAGE_LIMIT_RESULT_FILE_BYTES", "1"),
    ("KAGE_CONFIG", "/nonexistent/kage.toml"),
];

#[tokio::test]
async fn a_wrong_setting_is_refused_by_name() {
    let kage = TestKage::bare().await;
    let config =
        |name: &str, value: &str| kage.server_command(&["config"]).env(name, value).output().expect("starts");
    for (name, value) in BAD {
        let output = config(name, value);
        assert_eq!(output.status.code(), Some(2), "{name}={value}");
        let said = stderr(&output);
        assert!(
            said.starts_with("kage: ") && said.contains(name) && said.lines().count() == 1,
            "{name}={value}: {said}"
        );
        assert!(output.stdout.is_empty());
    }
    // A misspelt limit must not go unnoticed; nor a form that nobody reads.
    for (name, meant) in [
        ("KAGE_LIMIT_MEMORY_BYTE", "KAGE_LIMIT_MEMORY_BYTES"),
        ("KAGE_RUNER_UID", "KAGE_RUNNER_UID"),
        ("KAGE_DATABASE_URL_FILE", "KAGE_DATABASE_URL"),
        ("KAGE_LIMIT_PIDS_FILE", "KAGE_LIMIT_PIDS"),
    ] {
        let output = config(name, "/etc/hostname");
        assert_eq!(output.status.code(), Some(2), "{name}: {output:?}");
        let said = stderr(&output);
        assert!(said.contains(&format!("unknown setting {name} ")) && said.contains(meant), "{said}");
    }
    // Every role refuses as the command does, before it does anything.
    for role in ["serve", "api", "runner", "migrate"] {
        let output = kage.server_command(&[role]).env("KAGE_LIMIT_PIDS", "7").output().expect("starts");
        assert_eq!(output.status.code(), Some(2), "{role}: {}", stderr(&output));
    }
    assert!(!kage.data.join("postgres").exists());
}

#[tokio::test]
async fn config_shows_what_is_in_force_and_no_secret() {
    let kage = TestKage::bare().await;
    let file = kage.folder.join("other.toml");
    let toml = "instance = \"from-file\"\n[limit]\npids = 99\n[repositories]\nallow = [\"/srv/a\", \"https://h/b\"]\n\
                [database]\npassword = \"hush-in-the-file\"\n";
    std::fs::write(&file, toml).expect("write");
    let secret = kage.folder.join("password");
    std::fs::write(&secret, "hush-in-a-file\n").expect("write");
    let url = "postgres://user:hush-in-the-url@db.example/kage?sslmode=require";
    let query = "postgres://user@db.example/kage?password=hush-in-the-query&sslmode=require";
    let shown = |args: &[&str], set: &[(&str, &str)]| {
        let mut command = kage.server_command(args);
        for name in ["KAGE_INSTANCE", "KAGE_REPOSITORIES_ALLOW"] {
            command.env_remove(name);
        }
        let output = command.envs(set.iter().copied()).output().expect("starts");
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(!text.contains("hush"), "{text}");
        text
    };
    let path = file.to_str().expect("UTF-8");
    let text = shown(&["config"], &[("KAGE_CONFIG", path), ("KAGE_DATABASE_URL", url)]);
    for line in [
        format!("KAGE_INSTANCE=from-file  # {path}"),
        format!("KAGE_LIMIT_PIDS=99  # {path}"),
        format!("KAGE_REPOSITORIES_ALLOW=/srv/a,https://h/b  # {path}"),
        format!("KAGE_DATABASE_PASSWORD=********  # {path}"),
        "KAGE_DATABASE_URL=postgres://user:********@db.example/kage?sslmode=require  # environment"
            .to_owned(),
        "KAGE_LIMIT_CPU_MILLIS=2000  # default".to_owned(),
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line:?} is not in\n{text}");
    }
    // The environment goes before the file; an empty variable is none.
    let set = [("KAGE_CONFIG", path), ("KAGE_LIMIT_PIDS", "77"), ("KAGE_INSTANCE", "")];
    let text = shown(&["config"], &set);
    assert!(
        text.contains("KAGE_LIMIT_PIDS=77  # environment") && text.contains("KAGE_INSTANCE=from-file"),
        "{text}"
    );
    let secret = secret.to_str().expect("UTF-8");
    let set = [("KAGE_DATABASE_URL", query), ("KAGE_DATABASE_PASSWORD_FILE", secret)];
    let json: Value = serde_json::from_str(&shown(&["config", "--json"], &set)).expect("JSON");
    let names: Vec<&str> = json.as_array().expect("a list").iter().map(|row| string(&row["name"])).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names, sorted);
    assert!(names.len() >= 36, "{names:?}");
    // Both forms of one secret contradict each other.
    let mut both = kage.server_command(&["config"]);
    both.env("KAGE_DATABASE_PASSWORD", "hush").env("KAGE_DATABASE_PASSWORD_FILE", secret);
    let output = both.output().expect("starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(!stderr(&output).contains("hush") && stderr(&output).contains("not both"), "{}", stderr(&output));
    for (text, says) in [
        ("[limit\n", "kage.toml"),
        ("[limit]\npid = 5\n", "KAGE_LIMIT_PID"),
        ("[limit]\npids = 1.5\n", "pids"),
    ] {
        let broken = kage.folder.join("broken-kage.toml");
        std::fs::write(&broken, text).expect("write");
        let output = kage.server_command(&["config"]).env("KAGE_CONFIG", &broken).output().expect("starts");
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(stderr(&output).contains(says), "{text}: {}", stderr(&output));
    }
}
