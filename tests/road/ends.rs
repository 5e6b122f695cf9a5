//! Every end that a run can come to, each told apart from the others.

use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::git;
use crate::support::tasks::{shell, shell_with, string};

/// The only run of a task that must have ended in this state.
fn ended_as<'a>(task: &'a Value, state: &str) -> &'a Value {
    let run = &task["runs"][0];
    assert_eq!(run["state"], state, "{run}");
    assert!(!run["started_at"].is_null() && !run["finished_at"].is_null(), "{run}");
    run
}

#[tokio::test]
async fn ends_by_the_cli_itself() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let run = async |script: &str| kage.run(&shell(script)).await;
    let (good, failed, nothing, allowed, signal) = tokio::join!(
        run("echo new > new.txt"),
        run("echo half > half.txt; exit 7"),
        run("cat README.md; touch README.md"),
        async { kage.run(&shell_with("cat README.md", &json!({ "allow_no_changes": true }))).await },
        run("kill -KILL $$ # by its own hand"),
    );
    let run = ended_as(&good, "succeeded");
    assert_eq!((run["exit_code"].as_i64(), &run["error"]), (Some(0), &Value::Null));
    assert_eq!((&good["status"], &good["best_cli"]), (&json!("completed"), &json!("shell")));
    assert_eq!(good["cli_results"][0]["status"], "success");

    // A failed run's work is kept too, and its exit status.
    let run = ended_as(&failed, "failed");
    assert_eq!((run["exit_code"].as_i64(), run["files_changed"].as_i64()), (Some(7), Some(1)));
    assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{}:half.txt", string(&run["branch"]))]), "half");
    assert_eq!((&failed["status"], &failed["best_cli"]), (&json!("failed"), &Value::Null));
    assert!(string(&failed["error"]).contains("status 7"), "{failed}");
    assert_eq!(failed["cli_results"][0]["status"], "failure");

    let run = ended_as(&nothing, "no_changes");
    assert_eq!((run["exit_code"].as_i64(), &run["branch"]), (Some(0), &Value::Null));
    assert_eq!(nothing["status"], "failed");

    let run = ended_as(&allowed, "succeeded");
    assert_eq!((&run["branch"], &run["commit_hash"]), (&Value::Null, &Value::Null));
    assert_eq!(allowed["status"], "completed");

    let run = ended_as(&signal, "failed");
    assert_eq!(run["exit_code"], Value::Null);
    assert!(string(&run["error"]).contains("signal 9"), "{run}");
    let branches = git(&kage.mirror("demo"), ["branch", "--list", "task-*", "--format=%(refname:short)"]);
    assert_eq!(branches.lines().count(), 2, "{branches}");
}

const OUTPUT_LIMIT: usize = 70_001;

#[tokio::test]
async fn ends_by_a_limit() {
    let limit = OUTPUT_LIMIT.to_string();
    let settings = [
        ("KAGE_LIMIT_MEMORY_BYTES", "67108864"),
        ("KAGE_LIMIT_OUTPUT_BYTES", limit.as_str()),
        ("KAGE_RUNNER_GRACE_SECS", "1"),
    ];
    let kage = TestKage::serving(&settings).await;
    kage.demo().await;
    let idle = shell_with("echo last words; echo part > part; sleep 600", &json!({ "idle_timeout": 1 }));
    // What waits for the rest of a character, or of what may become a secret, is no sign of life.
    let waiting = shell_with("printf 'x\\xe2'; printf 'a s' >&2; sleep 600", &json!({ "idle_timeout": 1 }));
    let run = async |script: &str| kage.run(&shell(script)).await;
    let (oom, flood, both, idle, waiting) = tokio::join!(
        run("echo part > part; tail /dev/zero; exit 137"),
        run("echo part > part; seq 1 1000000; sleep 600"),
        run("seq 1 10000 >&2; seq 1 1000000"),
        kage.run(&idle),
        kage.run(&waiting),
    );
    let mirror = kage.mirror("demo");
    let kept = |run: &Value| git(&mirror, ["show", &format!("{}:part", string(&run["branch"]))]);

    let run = ended_as(&oom, "out_of_memory");
    assert_eq!(kept(run), "part");
    assert_eq!(oom["cli_results"][0]["status"], "blocked");

    let run = ended_as(&flood, "output_limit");
    assert_eq!((run["output_bytes"].as_u64(), kept(run)), (Some(OUTPUT_LIMIT as u64), "part".to_owned()));
    let expected: String = (1..=1_000_000).map(|line| format!("{line}\n")).collect();
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&flood["id"]))).await;
    assert!(log.body == expected.as_bytes()[..OUTPUT_LIMIT], "{} bytes", log.body.len());
    assert!(string(&run["error"]).contains(&limit), "{run}");

    // Both streams count together.
    let run = ended_as(&both, "output_limit");
    assert_eq!(run["output_bytes"], OUTPUT_LIMIT);
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&both["id"]))).await;
    assert_eq!(log.body.len(), OUTPUT_LIMIT);

    ended_as(&waiting, "idle_timeout");
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&waiting["id"]))).await;
    assert_eq!(log.text().len(), "xa s\u{fffd}".len(), "{}", log.text());
    let run = ended_as(&idle, "idle_timeout");
    assert_eq!(kept(run), "part");
    assert_eq!(idle["cli_results"][0]["status"], "timeout");
    assert_eq!(
        kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&idle["id"]))).await.text(),
        "last words\n"
    );
}

#[tokio::test]
async fn ends_by_the_clock_and_by_the_sandbox() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_RUNNER_GRACE_SECS", "1");
    kage.start("api").await;
    let first = kage.start("runner").await;
    kage.demo().await;
    assert!(kage.process(first).terminate().await.success());

    // What the API would not take (60 s at least) is put into the row before a runner sees it.
    let slow =
        kage.submit(&shell("trap '' TERM; echo part > part; while :; do echo on; sleep 0.2; done")).await;
    let missing = kage.submit(&shell("echo never to be run")).await;
    let broken = kage.submit(&shell("echo never to be run")).await;
    let mut revision = shell("echo never to be run");
    revision["base_revision"] = json!("abcdef0123");
    let revision = kage.submit(&revision).await;
    for (statement, task) in [
        ("UPDATE runs SET timeout_secs = 2 WHERE task_id = $1::uuid", &slow),
        ("UPDATE runs SET image_digest = 'sha256:' || repeat('0', 64) WHERE task_id = $1::uuid", &missing),
        ("UPDATE runs SET manifest = '{}' WHERE task_id = $1::uuid", &broken),
    ] {
        let done = sqlx::query(statement).bind(string(&task["id"])).execute(kage.pool()).await;
        assert_eq!(done.expect("the owner may").rows_affected(), 1);
    }
    kage.start("runner").await;

    let slow = kage.ended(string(&slow["id"])).await;
    let run = ended_as(&slow, "timed_out");
    let branch = string(&run["branch"]);
    assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{branch}:part")]), "part");
    assert_eq!(slow["cli_results"][0]["status"], "timeout");

    let missing = kage.ended(string(&missing["id"])).await;
    let run = ended_as(&missing, "sandbox_error");
    assert!(string(&run["error"]).contains("has no image sha256:0000"), "{run}");
    let broken = kage.ended(string(&broken["id"])).await;
    assert!(string(&ended_as(&broken, "sandbox_error")["error"]).contains("manifest"), "{broken}");
    let revision = kage.ended(string(&revision["id"])).await;
    let run = ended_as(&revision, "failed");
    assert!(
        string(&run["error"]).contains("unknown revision") && string(&run["error"]).contains("abcdef0123"),
        "{run}"
    );
}

/// Fails with words that speak of a fault that passes, until its third attempt; complains when it finds what a
/// former attempt left.
const FLAKY: &str = r##"
[ -e mark ] && { echo "the worktree was not reset"; exit 9; }
[ "$(cat README.md)" = "# demo" ] || { echo "the worktree was not reset"; exit 9; }
[ -z "$(ls -A "$HOME"; ls -A /tmp)" ] || { echo "a former attempt's files"; exit 9; }
echo "attempt $KAGE_ATTEMPT" | tee mark > README.md
git add --all && git commit --quiet -m "attempt $KAGE_ATTEMPT"
echo "attempt $KAGE_ATTEMPT"
if [ "$KAGE_ATTEMPT" -lt 3 ]; then echo "connect: Connection refused" >&2; exit 1; fi
"##;

#[tokio::test]
async fn a_fault_that_passes_is_tried_again_from_the_base() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let mut again = shell(FLAKY);
    again["max_retries"] = json!(3);
    again["retry_delay"] = json!(1);
    let mut too_few = again.clone();
    too_few["max_retries"] = json!(1);
    let mut plain = again.clone();
    let never = shell(FLAKY);
    plain["description"] = json!("echo a bug in the code >&2; exit 1");
    let (again, too_few, never, plain) =
        tokio::join!(kage.run(&again), kage.run(&too_few), kage.run(&never), kage.run(&plain));

    let run = ended_as(&again, "succeeded");
    assert_eq!((run["attempt"].as_i64(), &again["cli_results"][0]["retries"]), (Some(3), &json!(2)));
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&again["id"]))).await.text();
    let refused = "connect: Connection refused\n";
    assert_eq!(log, format!("attempt 1\n{refused}attempt 2\n{refused}attempt 3\n"));
    let (mirror, branch) = (kage.mirror("demo"), string(&run["branch"]));
    assert_eq!(git(&mirror, ["show", &format!("{branch}:mark")]), "attempt 3");
    assert_eq!(git(&mirror, ["rev-list", "--count", branch]), "2");
    let states: Vec<String> = kage
        .events(string(&again["id"]), "")
        .await
        .iter()
        .filter(|event| event.name == "state")
        .map(|event| format!("{} {}", string(&event.data["state"]), event.data["attempt"]))
        .collect();
    let round = |n: u32| ["preparing", "running", "harvesting"].map(|state| format!("{state} {n}")).to_vec();
    let one = |state: &str| vec![state.to_owned()];
    let expected =
        [one("queued 0"), round(1), one("queued 1"), round(2), one("queued 2"), round(3), one("succeeded 3")]
            .concat();
    assert_eq!(states, expected);

    assert_eq!(ended_as(&too_few, "failed")["attempt"], 2);
    assert_eq!(ended_as(&never, "failed")["attempt"], 1);
    assert_eq!(ended_as(&plain, "failed")["attempt"], 1, "a plain failure is final");
    let branches = git(&mirror, ["branch", "--list", "task-*"]);
    assert_eq!(branches.lines().count(), 3, "one branch a run that changed something: {branches}");
}
