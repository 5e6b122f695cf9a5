//! The API as schemathesis finds it: every operation of the OpenAPI document, with data that fits the document and data
//! that does not, alone and one after the other. `./test` runs this as a step of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::access::{Ids, inhabited};
use crate::support::tasks::string;
use crate::support::{PATIENCE, TestKage};

/// Its haste is what other tests are about.
const NO_LIMITS: [&str; 3] = ["KAGE_API_RATE_ADDRESS", "KAGE_API_RATE_KEY", "KAGE_API_RATE_FAILURES"];
/// What the task of the world has written, which is in its description, its log, its patch and its file.
const WRITTEN: &str = "secret of the tenant";
/// Answers that are right to a request as the document has it, where the document cannot say all that is asked.
const POSITIVE: &str = r#"["2xx", "401", "403", "404", "409", "422"]"#;

/// Operations that do not do here what they are for, and why.
const UNREACHED: [(&str, &str); 6] = [
    ("GET /ready", "no runner is there"),
    ("GET /auth/oidc/login", "no provider is set"),
    ("GET /auth/oidc/callback", "no provider is set"),
    ("POST /auth/logout", "a key asks, and it is for sessions"),
    ("GET /api/v1/session", "a key asks, and it is for sessions"),
    ("DELETE /api/v1/sessions/{id}", "nobody has signed in"),
];

/// One run of schemathesis.
struct Fuzz<'a> {
    name: &'a str,
    /// The id of the key, and the key.
    key: Option<(&'a str, &'a str)>,
    phases: &'a str,
    /// For each operation, in each of the phases that make data up.
    examples: u32,
    /// Texts that no answer may hold, one a line.
    secrets: &'a str,
    /// Only this operation.
    operation: Option<&'a str>,
}

/// How often each operation gave each status.
type Seen = BTreeMap<String, BTreeMap<u16, u64>>;

fn program() -> PathBuf {
    let path = std::env::var_os("KAGE_TEST_SCHEMATHESIS").expect("./test sets KAGE_TEST_SCHEMATHESIS");
    path.into()
}

fn fixed(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/road/fuzz").join(file)
}

impl Fuzz<'_> {
    fn configuration(&self, ids: &Ids, digest: &str) -> String {
        let auth =
            self.key.map_or_else(String::new, |(_, key)| format!("[auth.openapi.key]\napi_key = \"{key}\""));
        // More of them for a longer look by hand.
        let times = std::env::var("KAGE_TEST_FUZZ_TIMES").map_or(1, |times| times.parse().expect("a number"));
        let hooks = fixed("hooks.py").display().to_string();
        let examples = (self.examples * times).to_string();
        let template = std::fs::read_to_string(fixed("schemathesis.toml")).expect("it is in the repository");
        [
            ("HOOKS", hooks.as_str()),
            ("EXAMPLES", &examples),
            ("AUTH", &auth),
            ("TASK", &ids.task),
            ("REPOSITORY", &ids.repository),
            ("APPROVAL", &ids.approval),
            ("VICTIM", &ids.key),
            ("DIGEST", digest),
            ("POSITIVE", POSITIVE),
        ]
        .into_iter()
        .fold(template, |text, (name, value)| text.replace(&format!("@{name}@"), value))
    }

    /// Whether it found nothing, and what it saw.
    async fn run(&self, kage: &TestKage, ids: &Ids, digest: &str) -> (bool, Seen) {
        let file = |end: &str| kage.folder.join(format!("{}.{end}", self.name));
        std::fs::write(file("toml"), self.configuration(ids, digest)).expect("a file");
        let mut command = tokio::process::Command::new(program());
        command.arg("--config-file").arg(file("toml")).arg("run");
        command.arg(format!("{}/openapi.json", kage.url)).args(["--no-color", "--phases", self.phases]);
        if let Some(operation) = self.operation {
            command.args(["--include-operation-id", operation]);
        }
        command.env("KAGE_FUZZ_OWN_KEY_ID", self.key.map_or("", |(id, _)| id));
        command.env("KAGE_FUZZ_NO_KEY", self.key.is_none().to_string());
        command.env("KAGE_FUZZ_SECRETS", self.secrets).env("KAGE_FUZZ_SEEN", file("seen"));
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("NO_PROXY", "*").env("COLUMNS", "120");
        command.current_dir(&kage.folder).stdin(Stdio::null());
        println!("---- schemathesis: {}", self.name);
        // Far more than it takes: one that hangs must not take the whole run along.
        let status = tokio::time::timeout(PATIENCE * 5, command.kill_on_drop(true).status()).await;
        let status = status.expect("schemathesis comes to an end").expect("schemathesis starts");
        let mut seen = Seen::new();
        for line in std::fs::read_to_string(file("seen")).expect("written by the hooks").lines() {
            let (status, operation) = line.split_once(' ').expect("two columns");
            let status = status.parse().expect("a status");
            *seen.entry(operation.to_owned()).or_default().entry(status).or_default() += 1;
        }
        (status.success(), seen)
    }

    /// It finds nothing, and no answer is a server's fault but that of a role that is not ready.
    async fn finds_nothing(&self, kage: &TestKage, ids: &Ids, digest: &str) -> Seen {
        let (success, seen) = self.run(kage, ids, digest).await;
        for (operation, statuses) in &seen {
            println!("{operation}: {statuses:?}");
            let faults = statuses.keys().any(|status| *status >= 500) && operation != "GET /ready";
            assert!(!faults, "{operation} fails: {statuses:?}");
        }
        assert!(success, "schemathesis has found what it says above ({})", self.name);
        seen
    }
}

/// The ids of the world's objects, and the digest of what is approved in its repository.
async fn world(kage: &mut TestKage) -> (Ids, String) {
    for name in NO_LIMITS {
        kage.set(name, "1000000");
    }
    let serve = kage.start("serve").await;
    let ids = inhabited(kage).await;
    for name in ["spare", "other"] {
        let folder = kage.make_repository(name, &[("README.md", b"x\n")]);
        kage.register(name, &folder).await;
    }
    let found = kage.get("/api/v1/repositories/demo/configuration").await.json();
    let digest = string(&found["configuration"][0]["digest"]).to_owned();
    kage.process(serve).terminate().await;
    // Alone: what is asked for is written down and not done, so that every run of this meets the same.
    kage.start("api").await;
    (ids, digest)
}

#[tokio::test]
#[ignore = "a step of its own in ./test, which installs schemathesis"]
async fn schemathesis_finds_nothing() {
    let mut kage = TestKage::new().await;
    let (ids, digest) = world(&mut kage).await;
    let (key_id, key) = kage.key_with(&json!({ "scopes": ["admin"] })).await;
    let (narrow_id, narrow) =
        kage.key_with(&json!({ "scopes": ["admin"], "repositories": ["other"], "clis": ["codex"] })).await;
    let secrets = format!("{WRITTEN}\n{}\n{digest}", kage.sources.join("demo").display());
    let nobody = Fuzz {
        name: "without-a-key",
        key: None,
        phases: "coverage,fuzzing",
        examples: 3,
        secrets: &secrets,
        operation: None,
    };
    nobody.finds_nothing(&kage, &ids, &digest).await;
    let limited = Fuzz {
        name: "limited",
        key: Some((&narrow_id, &narrow)),
        phases: "coverage,fuzzing",
        examples: 8,
        ..nobody
    };
    let seen = limited.finds_nothing(&kage, &ids, &digest).await;
    assert!(seen["GET /api/v1/tasks/{id}"].keys().all(|status| [404, 405].contains(status)), "{seen:?}");
    // The same look finds them with a key that may see them: else it would say nothing.
    let control =
        Fuzz { name: "control", key: Some((&key_id, &key)), operation: Some("get_task"), ..limited };
    println!("---- the next one must find something");
    assert!(!control.run(&kage, &ids, &digest).await.0, "the check for others' things sees nothing");

    let whole = Fuzz {
        name: "admin",
        key: Some((&key_id, &key)),
        phases: "examples,coverage,fuzzing,stateful",
        examples: 60,
        secrets: "",
        operation: None,
    };
    let seen = whole.finds_nothing(&kage, &ids, &digest).await;
    each_was_reached(&kage, &seen).await;
    assert_eq!(kage.get_as("/api/v1/keys/self", &key).await.json()["revoked_at"], Value::Null);
    kage.process(1).assert_alive();
    no_fault_was_logged(&kage.process(1).log());
}

/// Every operation has done what it is for at least once.
async fn each_was_reached(kage: &TestKage, seen: &Seen) {
    let document = kage.get("/openapi.json").await.json();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, _) in operations.as_object().expect("operations") {
            let name = format!("{} {path}", method.to_uppercase());
            let reached = seen[&name].keys().any(|status| (200..300).contains(status));
            assert!(
                reached || UNREACHED.iter().any(|(operation, _)| *operation == name),
                "{name} was never answered with what it is for: {:?}",
                seen[&name]
            );
        }
    }
}

fn no_fault_was_logged(log: &str) {
    let failures: Vec<&str> = log.lines().filter(|line| is_fault(line)).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

fn is_fault(line: &str) -> bool {
    ["api.panicked", "api.internal_error", "panicked at"].iter().any(|text| line.contains(text))
}
