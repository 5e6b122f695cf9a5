//! The keeper of refused calls, and whoever dies beside it: what is refused stays refused, and what is counted arrives
//! once.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::leftovers;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, docker, eventually};
use crate::world::{apart, assert_result};

/// bpf(2), by its number.
#[cfg(target_arch = "x86_64")]
pub const BPF: &str = "syscall(321, 5, 0, 0)";
#[cfg(target_arch = "aarch64")]
pub const BPF: &str = "syscall(280, 5, 0, 0)";

/// What bpf(2) fails with while somebody answers, and when nobody does.
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// Until the call fails with ENOSYS, which nobody but the kernel answers.
fn until_nobody_answers() -> String {
    format!("until perl -e '{BPF}; exit($! != {ENOSYS})'; do sleep 0.1; done")
}

/// As `call form`, with the counts.
fn refused(run: &Value) -> Vec<(String, u64)> {
    let calls = run["refused_calls"].as_array().cloned().unwrap_or_default();
    let one = |call: &Value| {
        let form = call["form"].as_str().unwrap_or_default();
        (
            format!("{} {form}", string(&call["call"])).trim().to_owned(),
            call["count"].as_u64().expect("a count"),
        )
    };
    calls.iter().filter(|call| call["expected"] == json!(false)).map(one).collect()
}

async fn warnings(kage: &TestKage, id: &str) -> Vec<String> {
    let events = kage.events(id, "").await;
    let warnings = events.iter().filter(|event| event.name == "warning");
    let told = warnings.map(|event| string(&event.data["message"]).to_owned());
    told.filter(|message| message.contains("no longer recorded")).collect()
}

async fn is_counted(kage: &TestKage, id: &str) {
    eventually("the first are counted", async || {
        let counted = refused(&kage.task(id).await["runs"][0]);
        counted.iter().any(|(kind, _)| kind == "bpf").then_some(())
    })
    .await;
}

fn keeper(kage: &TestKage) -> Pid {
    leftovers::keeper(&kage.data).expect("a keeper runs")
}

/// Killed while the run goes on, and again until it has long ended: what was tried in between is counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_and_connections_outlive_the_runner() {
    const ROUNDS: u64 = 40;
    let (mut kage, mut roles) = apart(&[]).await;
    let script = format!(
        "check() {{ grep -q \"$1\" || echo \"$1\" >>wrong; }}; echo begun
         for i in $(seq 1 {ROUNDS}); do
           perl -e '{BPF}; exit($! != {EPERM})' || echo bpf >>wrong
           (exec 3<>/dev/tcp/1.1.1.1/443) 2>&1 | check unreachable
           (exec 3<>/dev/tcp/127.0.0.1/9) 2>&1 | check refused
           echo \"round $i.\"; sleep 0.1
         done; cat wrong 2>&1; [ -e wrong ] || echo {ROUNDS} > result"
    );
    let task = kage.submit(&shell(&script)).await;
    let id = string(&task["id"]).to_owned();
    kage.says(&id, "shell", "round 3.").await;
    is_counted(&kage, &id).await;
    let same = keeper(&kage);
    kage.process(roles.runner).kill_9();
    // Some rounds with nobody there.
    tokio::time::sleep(Duration::from_secs(2)).await;
    roles.runner = kage.start("runner").await;
    kage.says(&id, "shell", "round 15.").await;
    kage.process(roles.runner).kill_9();
    // The rest of them.
    tokio::time::sleep(Duration::from_secs(8)).await;
    kage.start("runner").await;
    let ended = kage.ended(&id).await;
    assert_result(&kage, &ended, ROUNDS as usize);
    let expected = [("bpf".to_owned(), ROUNDS), ("connect to 1.1.1.1:443".to_owned(), ROUNDS)];
    assert_eq!(refused(&ended["runs"][0]), expected);
    assert_eq!(warnings(&kage, &id).await, Vec::<String>::new());
    let events = kage.events(&id, "").await;
    assert_eq!(events.iter().filter(|event| event.name == "security").count(), 2, "one event a kind");
    let entries: i64 =
        sqlx::query_scalar("SELECT count(*) FROM audit_entries WHERE action = 'sandbox.refuse'")
            .fetch_one(kage.pool())
            .await
            .expect("a count");
    assert_eq!(entries, 2);
    assert_eq!(keeper(&kage), same, "it has outlived both");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_keeper_dies_calls_stay_refused_and_the_next_run_has_another() {
    let (kage, _) = apart(&[]).await;
    // A new connection is a call that nobody answers, too.
    let script = format!(
        "echo begun; {}; (exec 3<>/dev/tcp/127.0.0.1/9) 2>&1 | grep -q 'not implemented' && echo 1 > result",
        until_nobody_answers()
    );
    let task = kage.submit(&shell(&script)).await;
    let id = string(&task["id"]);
    is_counted(&kage, id).await;
    let first = keeper(&kage);
    kill_process(first, Signal::KILL).expect("this world's keeper");
    let ended = kage.ended(id).await;
    assert_result(&kage, &ended, 1);
    let told = warnings(&kage, id).await;
    assert!(told.len() == 1 && told[0].contains("no new network connection"), "{told:#?}");
    // It stays with the run, when the event is long past.
    let recorded = string(&ended["runs"][0]["refused_calls_recorded"]);
    assert!(recorded.starts_with("interrupted: ") && recorded.contains("no longer recorded"), "{recorded}");
    let told = kage.get(&format!("/api/v1/security-events?task={id}")).await.json();
    let told: Vec<&str> =
        told["events"].as_array().expect("a list").iter().map(|event| string(&event["kind"])).collect();
    assert_eq!(told, ["sandbox.refusals_interrupted"]);

    let done = kage.run(&shell(&format!("perl -e '{BPF}'; echo x > x"))).await;
    assert_eq!(refused(&done["runs"][0]), [("bpf".to_owned(), 1)]);
    assert_ne!(keeper(&kage), first);
}

/// The runner dies with its keeper: the one that takes up says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_both_die_the_run_says_that_nobody_counts() {
    let (mut kage, roles) = apart(&[]).await;
    let task = kage.submit(&shell(&format!("echo begun; {}; echo 1 > result", until_nobody_answers()))).await;
    let id = string(&task["id"]);
    is_counted(&kage, id).await;
    kill_process(keeper(&kage), Signal::KILL).expect("this world's keeper");
    kage.process(roles.runner).kill_9();
    kage.start("runner").await;
    let ended = kage.ended(id).await;
    assert_result(&kage, &ended, 1);
    let counted = refused(&ended["runs"][0]);
    assert!(counted[0].1 >= 1, "what was written stays: {counted:?}");
    assert_eq!(warnings(&kage, id).await.len(), 1);
    let recorded = string(&ended["runs"][0]["refused_calls_recorded"]);
    assert!(recorded.starts_with("interrupted: "), "{recorded}");
}

/// No listener, no start; as in Compose, where the keeper is a service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_keeper_a_runner_starts_no_run() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_RUNNER_KEEPER", "external");
    let service = kage.spawn_with("keeper", &[]);
    kage.start("api").await;
    kage.start("runner").await;
    kage.demo().await;
    let (mut task, sound) = (shell("echo begun; echo x > x"), kage.run(&shell("echo x > x")).await);
    assert_eq!(sound["runs"][0]["state"], "succeeded", "{sound:#}");
    // Nothing is held: it ends at once.
    assert!(kage.process(service).terminate().await.success());
    let doctor = kage.server_command(&["doctor", "--json", "keeper"]).output().expect("kage starts");
    assert!(!doctor.status.success() && String::from_utf8_lossy(&doctor.stdout).contains("does not answer"));
    task["max_retries"] = 0.into();
    let failed = kage.run(&task).await;
    let run = &failed["runs"][0];
    assert_eq!(run["state"], "sandbox_error", "{failed:#}");
    assert!(string(&run["error"]).contains("the keeper of refused calls does not answer"), "{failed:#}");
    assert_eq!(run["output_bytes"], 0, "it began all the same");

    let service = kage.spawn_with("keeper", &[]);
    while !kage.process(service).log_says("keeper.started") {
        kage.process(service).assert_alive();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let doctor = kage.host(&["doctor", "--json", "keeper"]);
    assert!(doctor.contains("reads addresses"), "{doctor}");
    let done = kage.run(&task).await;
    assert_eq!(done["runs"][0]["state"], "succeeded", "{done:#}");
    // Of root's rights it has one.
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", kage.process(service).pid())).expect("procfs");
    let line = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).expect("a line").trim().to_owned()
    };
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(line(set), "0000000000080000", "{set}");
    }
    assert_eq!(line("NoNewPrivs:"), "1");
}

/// SIGTERM while it holds a sandbox: it goes on until that has ended, and takes nothing new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_that_is_to_end_stays_with_its_sandboxes() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_RUNNER_KEEPER", "external");
    let service = kage.spawn_with("keeper", &[]);
    kage.start("api").await;
    kage.start("runner").await;
    kage.demo().await;
    let script = format!("echo begun; sleep 3; perl -e '{BPF}; exit($! != {EPERM})' && echo 1 > result");
    let task = kage.submit(&shell(&script)).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    kage.process(service).signal(Signal::TERM);
    let refused_one = kage.run(&shell("echo x > x")).await;
    assert!(string(&refused_one["runs"][0]["error"]).contains("it is ending"), "{refused_one:#}");
    assert_result(&kage, &kage.ended(id).await, 1);
    assert!(kage.process(service).wait().await.success());
}

/// After kill -9 of everything it is found again; and with nothing to hold it ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_found_again_and_ends_when_nobody_needs_it() {
    let mut kage = TestKage::new().await;
    let serve = kage.start("serve").await;
    let first = keeper(&kage);
    kage.process(serve).kill_9();
    let serve = kage.start("serve").await;
    assert_eq!(keeper(&kage), first);
    kage.process(serve).kill_9();
    eventually("it ends", async || leftovers::keeper(&kage.data).is_none().then_some(())).await;
    let serve = kage.start("serve").await;
    assert!(leftovers::keeper(&kage.data).is_some());
    // In order, it is told.
    assert!(kage.process(serve).terminate().await.success());
    eventually("it ends", async || leftovers::keeper(&kage.data).is_none().then_some(())).await;
}

/// Asks as another user: what it got for an answer.
fn ask_as(uid: u32, socket: &str) -> String {
    let script = r#"use Socket; $SIG{PIPE} = "IGNORE"; socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un($ARGV[0])) or (print("closed"), exit);
        my $text = '{"ask":"hello"}'; syswrite(S, pack('N', length($text)) . $text); sysread(S, my $answer, 4096);
        print(length($answer) ? "answered" : "hung up")"#;
    let output = Command::new("perl")
        .args(["-e", script, socket])
        .uid(uid)
        .gid(uid)
        .current_dir("/")
        .output()
        .expect("perl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_stranger_nor_a_sandbox_nor_a_forged_word_gets_anywhere() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let folder = kage.data.join("refusals");
    let socket = folder.join("keeper.sock").display().to_string();
    assert_eq!((ask_as(0, &socket).as_str(), ask_as(10_001, &socket).as_str()), ("answered", "closed"));
    // Without the folder's and the socket's walls it still asks the kernel who it is.
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("our own");
    };
    open(&folder, 0o711);
    open(&folder.join("keeper.sock"), 0o666);
    assert_eq!(ask_as(10_001, &socket), "hung up");
    open(&folder, 0o700);

    let script = "find / \\( -name 'keeper*' -o -name 'refusals*' \\) -not -path '/proc/*' 2>/dev/null >found; \
                  ! grep . found && echo 1 > result";
    assert_result(&kage, &kage.run(&shell(script)).await, 1);

    // A container with a word that the keeper was not told: it is refused by the kernel, and counted nowhere.
    use kage::sandbox::seccomp::{SeccompProfile, table::Told};
    let task = kage.submit(&shell("echo begun; sleep 1000")).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    let profile = SeccompProfile::reporting(Told::Refused, &folder.join("refusals.sock"), &"f".repeat(32));
    let file = kage.folder.join("forged.json");
    std::fs::write(&file, profile.json()).expect("a file");
    let seccomp = format!("seccomp={}", file.display());
    let label = format!("kage.test={}", kage.name);
    let image = std::env::var("KAGE_TEST_IMAGE").expect("./test sets it");
    let call = format!("{BPF}; print($! + 0)");
    let answer = docker(&[
        "run",
        "--rm",
        "--label",
        &label,
        "--network",
        "none",
        "--user",
        "10001",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--security-opt",
        &seccomp,
        "--entrypoint",
        "perl",
        &image,
        "-e",
        &call,
    ]);
    assert_eq!(answer.trim(), ENOSYS.to_string());
    kage.delete(&format!("/api/v1/tasks/{id}")).await;
    let ended = kage.ended(id).await;
    assert_eq!(refused(&ended["runs"][0]), []);
    let log = std::fs::read_to_string(folder.join("keeper.log")).expect("a log");
    assert!(log.contains("refusals.unknown_sandbox") && log.contains("user 10001"), "{log}");
}
