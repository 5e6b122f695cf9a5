//! Which runtime a run is given: what the task asks for, among what the operator allows. These tests need gVisor's
//! `runsc` in the engine (`scripts/host runsc`); without it they fail.

use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::git;
use crate::support::tasks::{shell, shell_with, string};

/// What tells the two kernels apart, from the inside; and that the walls stand there too.
const PROBE: &str = r#"
cat /proc/version > version
id -u > uid
ls /sys/class/net > interfaces 2>/dev/null || tail -n +3 /proc/net/dev | cut -d: -f1 > interfaces
(: > /etc/written) 2>/dev/null && echo "the root is writable"
(exec 3<>/dev/tcp/1.1.1.1/80) 2>/dev/null && echo "there is a way out"
echo done
"#;

#[tokio::test]
async fn a_task_may_ask_for_a_runtime_that_the_operator_allows() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_RUNTIMES_ALLOWED", "runsc")]).await;
    kage.demo().await;
    let asked = shell_with(PROBE, &json!({ "runtime": "runsc" }));
    let plain = shell(PROBE);
    let (gvisor, plain) = tokio::join!(kage.run(&asked), kage.run(&plain));
    for (task, runtime) in [(&gvisor, "runsc"), (&plain, "runc")] {
        let run = &task["runs"][0];
        assert_eq!(
            (&run["state"], &run["sandbox"]["runtime"]),
            (&json!("succeeded"), &json!(runtime)),
            "{run}"
        );
        let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&task["id"]))).await.text();
        assert_eq!(log, "done\n", "{runtime}");
        let show =
            |file: &str| git(&kage.mirror("demo"), ["show", &format!("{}:{file}", string(&run["branch"]))]);
        assert_eq!(show("uid"), "10001", "{runtime}");
        assert_eq!(show("interfaces").trim(), "lo", "{runtime}");
        let host = std::fs::read_to_string("/proc/version").expect("the host's");
        assert_eq!(show("version").trim() == host.trim(), runtime == "runc", "{runtime}: whose kernel it is");
    }
    let notes = &gvisor["runs"][0]["sandbox"]["notes"];
    assert!(notes.to_string().contains("refused calls are not recorded"), "{notes}");
    assert_eq!(plain["runs"][0]["sandbox"]["notes"], Value::Null);
    let (gvisor, plain) = (&gvisor["runs"][0], &plain["runs"][0]);
    // Not recorded is not the same as none.
    assert_eq!(gvisor["refused_calls"], Value::Null);
    assert_eq!(plain["refused_calls"][0]["form"], "to 1.1.1.1:80", "{plain}");
    assert_eq!(plain["refused_calls_recorded"], "recorded");
    assert!(string(&gvisor["refused_calls_recorded"]).starts_with("not recorded: "), "{gvisor}");
    // What gVisor does not show is not called proved.
    assert_eq!((&gvisor["contained"], &plain["contained"]), (&Value::Null, &json!(true)));
    let proof = &gvisor["containment"];
    assert_eq!(proof["state"], "proved_in_part", "{proof}");
    assert!(proof["not_seen"].to_string().contains("seccomp mode"), "{proof}");
    assert!(proof["checks"].to_string().contains("not_seen"), "{proof}");

    let refused = kage.post("/api/v1/tasks", &shell_with("echo hello", &json!({ "runtime": "kata" }))).await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("cli_assignments[0].runtime") && detail.contains("runc, runsc"), "{detail}");
}

/// Where the API cannot tell, because no runner is there yet, the runner refuses.
#[tokio::test]
async fn what_is_not_allowed_is_not_run() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let first = kage.start("runner").await;
    kage.demo().await;
    let refused = kage.post("/api/v1/tasks", &shell_with("echo hello", &json!({ "runtime": "runsc" }))).await;
    assert_eq!(refused.status, 422, "nothing but the default is allowed: {}", refused.text());
    assert!(kage.process(first).terminate().await.success());
    let done =
        sqlx::query("UPDATE runners SET seen_at = now() - interval '1 hour'").execute(kage.pool()).await;
    assert!(done.expect("the owner may").rows_affected() > 0);
    let task = kage.submit(&shell_with("echo never to be run", &json!({ "runtime": "runsc" }))).await;
    kage.start("runner").await;
    let task = kage.ended(string(&task["id"])).await;
    let run = &task["runs"][0];
    assert_eq!((&run["state"], &run["output_bytes"]), (&json!("sandbox_error"), &json!(0)), "{run}");
    assert!(string(&run["error"]).contains("\"runsc\" is not allowed"), "{run}");
}

/// The limits hold there too; those that gVisor's kernel keeps to itself end the run without their own name.
#[tokio::test]
async fn limits_hold_on_gvisor() {
    let kage = TestKage::serving(&[
        ("KAGE_RUNNER_RUNTIMES_ALLOWED", "runsc"),
        ("KAGE_LIMIT_WORKTREE_BYTES", "33554432"),
        ("KAGE_LIMIT_OUTPUT_BYTES", "1048576"),
        ("KAGE_RUNNER_GRACE_SECS", "1"),
    ])
    .await;
    kage.demo().await;
    let run = async |script: &str| kage.run(&shell_with(script, &json!({ "runtime": "runsc" }))).await;
    let disk = "echo part > part; dd if=/dev/zero of=fill bs=64K; stat -c 'bytes %s' fill; exit 1";
    let (disk, flood) = tokio::join!(run(disk), run("yes | head -c 1G; exit 1"));
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&disk["id"]))).await.text();
    println!("{log}\n{}", disk["runs"][0]);
    assert_eq!(disk["runs"][0]["state"], "disk_limit", "{disk}\n{log}");
    let bytes = log.lines().find_map(|line| line.strip_prefix("bytes ")).expect("the script says it");
    let bytes: u64 = bytes.parse().expect("a number");
    assert!(bytes.abs_diff(33_554_432) * 20 <= 33_554_432, "{bytes}");
    assert_eq!(flood["runs"][0]["state"], "output_limit", "{flood}");
    let heap = run("echo part > part; tail /dev/zero; exit 1").await;
    println!("{}", heap["runs"][0]);
    assert_eq!(heap["runs"][0]["state"], "out_of_memory", "{heap}");
}
