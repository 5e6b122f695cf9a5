//! Secrets that a run writes are kept out of what is stored; those of the configuration are read again when they change.

use kage::config::database::DatabaseConfig;
use kage::config::settings::Settings;
use rustix::process::Signal;

use crate::support::database::stored;
use crate::support::planted::assert_absent;
use crate::support::sse::{assert_contiguous, output};
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

/// A database's password, which the test's cluster does not ask for.
const PASSWORD: &str = "plänted \"pass/word\"+4711";
/// A vendor's key that nobody configured.
const VENDOR: &str = "sk-ant-api03-plantedplantedplanted-0815AA";

async fn audited(kage: &TestKage, action: &str) -> i64 {
    let query = "SELECT count(*) FROM audit_entries WHERE action = $1";
    sqlx::query_scalar(query).bind(action).fetch_one(kage.pool()).await.expect("a count")
}

#[tokio::test]
async fn what_a_run_writes_of_secrets_is_stars_and_the_rest_is_exact() {
    let kage = TestKage::serving(&[("KAGE_DATABASE_PASSWORD", PASSWORD)]).await;
    kage.demo().await;
    // Spelled so that the prompt, which is the user's own, does not hold them; over pieces that come apart.
    let hex = |text: &str| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let halves = |text: &str| {
        let middle = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).expect("0 is one");
        (hex(&text[..middle]), hex(&text[middle..]))
    };
    let ((p1, p2), (v1, v2), (k1, k2)) = (halves(PASSWORD), halves(VENDOR), halves(&kage.key));
    let script = format!(
        "printf 'a {p1}'; sleep 0.4; printf '{p2} b\\xff\\n'; printf 'c={v1}'; sleep 0.4; printf '{v2}'; sleep 0.4; printf ' d\\n'
         printf '[{k1}' >&2; sleep 0.4; printf '{k2}]\\n' >&2; printf '{p1}{p2}' | base64 -w0; printf '\\n\\xe4 s'
         printf 'x={v1}{v2}\\n' > notes.txt; echo plain > other.txt"
    );
    let ended = kage.run(&shell(&script)).await;
    let (id, run) = (string(&ended["id"]), &ended["runs"][0]);
    assert_eq!(run["state"], "succeeded", "{ended}");
    let events = kage.events(id, "").await;
    assert_contiguous(&events, 1);
    let out = |stream: &str| output(&events, "shell", stream);
    let stars = |text: &str| "*".repeat(text.len());
    let stdout = out("stdout");
    let expected = [
        format!("a {} b", stars(PASSWORD)).as_bytes(),
        b"\xff\n",
        format!("c={} d\n", stars(VENDOR)).as_bytes(),
    ]
    .concat();
    assert_eq!(stdout[..expected.len()], expected, "{}", String::from_utf8_lossy(&stdout));
    assert!(stdout.ends_with(b"\n\xe4 s"), "what waited comes at the end");
    let encoded = stdout[expected.len()..].iter().filter(|byte| **byte == b'*').count();
    assert!(encoded >= PASSWORD.len() * 4 / 3 - 3, "{}", String::from_utf8_lossy(&stdout));
    assert_eq!(out("stderr"), format!("[{}]\n", stars(&kage.key)).as_bytes());
    // Said once a run, recorded, and nowhere in plain.
    let told: Vec<_> = events.iter().filter(|event| event.data["call"] == "run.redact").collect();
    assert!(told.len() == 1 && told[0].name == "security", "{told:?}");
    assert_eq!((audited(&kage, "run.redact").await, audited(&kage, "result.secret").await), (1, 1));
    let result = events.iter().find(|event| event.name == "result").expect("a result");
    let warnings = result.data["warnings"].to_string();
    assert!(warnings.contains("Secret ") && warnings.contains("notes.txt"), "{warnings}");
    assert!(!warnings.contains("other.txt"), "{warnings}");
    // The patch is the branch's: the user's own data.
    sqlx::query("UPDATE run_results SET patch = ''").execute(kage.pool()).await.expect("the owner may");
    assert_absent("database", &stored(kage.pool()).await, &[PASSWORD, VENDOR, &kage.key]);
}

#[tokio::test]
async fn a_secret_that_changes_counts_without_a_restart_and_never_falls_to_nothing() {
    let mut kage = TestKage::new().await;
    let (file, counter) = (kage.folder.join("password"), kage.folder.join("counter"));
    std::fs::write(&file, "planted-first\n").expect("write");
    let kind = format!("file:{}", file.display());
    kage.set("KAGE_DATABASE_PASSWORD", &kind);
    kage.start("api").await;
    let reloads = async |outcome: &str| -> i64 {
        let query = "SELECT count(*) FROM audit_entries WHERE action = 'secret.reload' AND outcome = $1
                     AND object = 'setting:KAGE_DATABASE_PASSWORD'";
        sqlx::query_scalar(query).bind(outcome).fetch_one(kage.pool()).await.expect("a count")
    };
    std::fs::write(kage.folder.join("new"), "planted-second\n").expect("write");
    std::fs::rename(kage.folder.join("new"), &file).expect("rename");
    eventually("the new one is heard of", async || (reloads("done").await == 1).then_some(())).await;
    std::fs::write(&file, "").expect("write");
    eventually("an empty one is refused", async || (reloads("failed").await == 1).then_some(())).await;
    std::fs::write(&file, "planted-second\n").expect("write");
    let log = kage.process(0).log();
    assert!(log.contains("secret.reloaded") && log.contains("secret.not_reloaded"), "{log}");
    assert_absent("log", &log, &["planted-first", "planted-second"]);
    kage.process(0).terminate().await;

    // A program is asked again when the role is told to.
    std::fs::write(&counter, "planted-third").expect("write");
    kage.set("KAGE_DATABASE_PASSWORD", &format!("exec:/bin/cat {}", counter.display()));
    let api = kage.start("api").await;
    std::fs::write(&counter, "planted-fourth").expect("write");
    kage.process(api).signal(Signal::HUP);
    let reloads = async || -> i64 {
        let query = "SELECT count(*) FROM audit_entries WHERE action = 'secret.reload' AND outcome = 'done'";
        sqlx::query_scalar(query).fetch_one(kage.pool()).await.expect("a count")
    };
    eventually("the program is asked", async || (reloads().await == 2).then_some(())).await;
    let rows = stored(kage.pool()).await;
    assert_absent("database", &rows, &["planted-first", "planted-second", "planted-third", "planted-fourth"]);
}

#[tokio::test]
async fn a_role_does_not_start_without_its_secret_and_says_where_it_looked() {
    let kage = TestKage::bare().await;
    for (value, says) in [
        ("env:PLANTED_NOWHERE", "PLANTED_NOWHERE"),
        ("file:/nowhere/hush", "/nowhere/hush"),
        ("file:hush", "absolute path"),
        ("exec:/bin/sh -c 'echo planted-hush; exit 7'", "exec:/bin/sh: ended with exit status: 7"),
        ("vault:kv/db#password", "KAGE_VAULT_ADDRESS is not set"),
        ("vault:hush", "mount/path#field"),
    ] {
        let output =
            kage.server_command(&["api"]).env("KAGE_DATABASE_PASSWORD", value).output().expect("starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{value}: {said}");
        assert!(said.contains("KAGE_DATABASE_PASSWORD") && said.contains(says), "{value}: {said}");
        assert!(!said.contains("planted-hush"), "{said}");
    }
    // References are shown without what may be secret in them; a value that looks like one can be given.
    for (value, shown) in [
        ("exec:/bin/echo planted-hush", "KAGE_DATABASE_PASSWORD=********  # exec:/bin/echo (environment)"),
        ("literal:env:planted-hush", "KAGE_DATABASE_PASSWORD=********  # environment"),
    ] {
        let mut command = kage.server_command(&["config"]);
        command.env("KAGE_DATABASE_URL", "exec:/bin/echo postgres://u:planted-hush@h/d");
        let output = command.env("KAGE_DATABASE_PASSWORD", value).output().expect("starts");
        let url = "KAGE_DATABASE_URL=postgres://u:********@h/d  # exec:/bin/echo (environment)";
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.lines().any(|line| line == shown), "{text}");
        assert!(text.lines().any(|line| line == url), "{text}");
        assert!(!text.contains("planted-hush"), "{text}");
    }
}

/// A server that asks for the password in plain and refuses it; what it was shown.
async fn shown(listener: &tokio::net::TcpListener) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        // A message without a tag is one of the first: a wish for TLS, which is declined, or the start.
        let length = stream.read_u32().await.expect("a length") as usize;
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await.expect("a message");
        if body.starts_with(&80_877_103u32.to_be_bytes()) {
            stream.write_all(b"N").await.expect("is read");
            let length = stream.read_u32().await.expect("a length") as usize;
            body = vec![0; length - 4];
            stream.read_exact(&mut body).await.expect("a message");
        }
        stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).await.expect("is read");
        if stream.read_u8().await.ok() == Some(b'p') {
            let length = stream.read_u32().await.expect("a length") as usize;
            let mut password = vec![0; length - 4];
            stream.read_exact(&mut password).await.expect("a password");
            return String::from_utf8(password).expect("UTF-8").trim_end_matches('\0').to_owned();
        }
    }
}

#[tokio::test]
async fn new_connections_log_in_with_the_new_password() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, "planted-first\n").expect("write");
    let given = [
        ("KAGE_DATABASE_URL", format!("postgres://kage@127.0.0.1:{port}/kage")),
        ("KAGE_DATABASE_PASSWORD_FILE", file.display().to_string()),
        ("KAGE_DATABASE_ACQUIRE_SECS", "1".to_owned()),
    ];
    let given = given.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let mut settings = Settings::from_parts(given, None).expect("settings");
    let config = DatabaseConfig::from_settings(&mut settings).expect("settings");
    let pool = kage::db::connect(&config, kage::db::Zone::Api).await.expect("a pool");
    let login = async || {
        let (_, password) = tokio::join!(pool.acquire(), shown(&listener));
        password
    };
    assert_eq!(login().await, "planted-first");
    std::fs::write(&file, "planted-second\n").expect("write");
    let password = config.password.as_ref().expect("one is given");
    assert!(password.read().await.expect("it is there"));
    kage::db::renew(&pool, &config).expect("it is good");
    assert_eq!(login().await, "planted-second");
    assert!(!format!("{config:?} {settings:?} {pool:?}").contains("planted-"));
}
