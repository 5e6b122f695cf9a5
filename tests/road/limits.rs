//! Everything that a run can drive up ends at its limit, as that limit and no other; and its neighbours do not feel it.

use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::git;
use crate::support::tasks::{shell, string};

const WORKTREE: u64 = 32 << 20;
const TMP: u64 = 16 << 20;

async fn small_world() -> TestKage {
    let kage = TestKage::serving(&[
        ("KAGE_LIMIT_WORKTREE_BYTES", &WORKTREE.to_string()),
        ("KAGE_LIMIT_WORKTREE_INODES", "2000"),
        ("KAGE_LIMIT_TMP_BYTES", &TMP.to_string()),
        ("KAGE_LIMIT_PIDS", "64"),
        ("KAGE_LIMIT_OUTPUT_BYTES", "1048576"),
        ("KAGE_RUNNER_GRACE_SECS", "1"),
    ])
    .await;
    kage.demo().await;
    kage
}

fn ended_as<'a>(task: &'a Value, state: &str) -> &'a Value {
    let run = &task["runs"][0];
    assert_eq!(run["state"], state, "{run}");
    assert_eq!(task["cli_results"][0]["status"], "blocked", "{task}");
    run
}

async fn log(kage: &TestKage, task: &Value) -> String {
    kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&task["id"]))).await.text()
}

/// Devices that are still bound to a file of this world.
fn loops_of(kage: &TestKage) -> Vec<String> {
    let data = kage.mirror("x").to_string_lossy().into_owned();
    let world = data.split("/repos/").next().expect("a path").to_owned();
    let output = std::process::Command::new("losetup").arg("--all").output().expect("losetup");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.contains(&world)).map(str::to_owned).collect()
}

/// Fills the place until there is no room, says how much went in, and tidies up before it fails: the peak counts, if it
/// lasts longer than the shim looks away (`shim/src/room.rs`).
fn fill(place: &str) -> String {
    format!(
        "echo part > part; dd if=/dev/zero of={place}/fill bs=64K; stat -c 'bytes %s' {place}/fill; sleep 1; rm {place}/fill; exit 1"
    )
}

#[tokio::test]
async fn every_writable_place_is_full_at_its_limit() {
    let kage = small_world().await;
    let run = async |script: String| kage.run(&shell(&script)).await;
    let (worktree, tmp, home) =
        tokio::join!(run(fill("/workspace")), run(fill("/tmp")), run(fill("/home/agent")));
    for (task, place, limit) in
        [(&worktree, "/workspace", WORKTREE), (&tmp, "/tmp", TMP), (&home, "/home/agent", TMP)]
    {
        let run = ended_as(task, "disk_limit");
        assert!(string(&run["error"]).contains(place), "{run}");
        let log = log(&kage, task).await;
        assert!(log.contains("No space left on device"), "{log}");
        let bytes = log.lines().find_map(|line| line.strip_prefix("bytes ")).expect("the script says it");
        let bytes: u64 = bytes.parse().expect("a number");
        assert!(bytes.abs_diff(limit) * 20 <= limit, "{place}: {bytes} of {limit}");
        let branch = string(&run["branch"]);
        assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{branch}:part")]), "part");
        let limits = &run["sandbox"]["limits"];
        assert_eq!(limits["worktree_bytes"], json!({ "value": WORKTREE, "held": "hard" }), "{run}");
        for name in ["wall_secs", "idle_secs", "output_bytes", "line_bytes"] {
            assert!(limits[name]["value"].as_u64().is_some_and(|value| value > 0), "{name}: {run}");
        }
        assert!(string(&run["decided_by"]).starts_with("disk limit (exit status "), "{run}");
        assert_eq!((&limits["tmp_bytes"]["held"], &limits["pids"]["held"]), (&json!("hard"), &json!("hard")));
    }
    assert_eq!(loops_of(&kage), Vec::<String>::new());
}

#[tokio::test]
async fn inodes_have_a_limit_everywhere() {
    let kage = small_world().await;
    let bomb = |place: &str| {
        format!(
            "mkdir {place}/d; i=0; while : > {place}/d/$i; do i=$((i+1)); done 2>/dev/null; echo files $i; exit 1"
        )
    };
    let run = async |script: String| kage.run(&shell(&script)).await;
    let (worktree, tmp) = tokio::join!(run(bomb("/workspace")), run(bomb("/tmp")));
    for (task, limit) in [(&worktree, 2000), (&tmp, TMP / 4096)] {
        ended_as(task, "disk_limit");
        let log = log(&kage, task).await;
        let files: u64 = log.trim().strip_prefix("files ").and_then(|n| n.parse().ok()).expect("said");
        assert!(files.abs_diff(limit) * 20 <= limit, "{files} of {limit}");
    }
    let branch = string(&worktree["runs"][0]["branch"]);
    let names = git(&kage.mirror("demo"), ["ls-tree", "-r", "--name-only", branch]);
    assert!(names.lines().count() > 1900, "what was made before the limit is kept");
}

#[tokio::test]
async fn too_many_processes_too_large_a_file_and_too_much_output() {
    let kage = small_world().await;
    kage_file_limit().await;
    let run = async |script: String| kage.run(&shell(&script)).await;
    let (forks, bomb, flood) = tokio::join!(
        run("echo part > part; exec sh -c 'while :; do sleep 600 & done'".to_owned()),
        run("echo part > part; bomb() { bomb | bomb & }; bomb; sleep 1; exit 1".to_owned()),
        run("echo part > part; yes | head -c 1G; exit 1".to_owned()),
    );
    for task in [&forks, &bomb] {
        let run = ended_as(task, "process_limit");
        assert!(string(&run["error"]).contains("process limit"), "{run}");
    }
    let run = ended_as(&flood, "output_limit");
    assert_eq!(run["output_bytes"], 1 << 20);
    for task in [&forks, &bomb, &flood] {
        let branch = string(&task["runs"][0]["branch"]);
        assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{branch}:part")]), "part");
    }
}

/// A limit of a whole file is the kernel's, and it says so with a signal, to the CLI or to a shell.
async fn kage_file_limit() {
    let kage = TestKage::serving(&[("KAGE_LIMIT_FILE_BYTES", "1048576")]).await;
    kage.demo().await;
    let run = async |script: String| kage.run(&shell(&script)).await;
    let (direct, shell) = tokio::join!(
        run("echo part > part; exec dd if=/dev/zero of=big bs=64K count=64".to_owned()),
        run("echo part > part; dd if=/dev/zero of=big bs=64K count=64".to_owned())
    );
    for task in [&direct, &shell] {
        let run = ended_as(task, "file_limit");
        let branch = string(&run["branch"]);
        let size = git(&kage.mirror("demo"), ["cat-file", "-s", &format!("{branch}:big")]);
        assert_eq!(size, "1048576", "no byte beyond it");
    }
}

/// The neighbour works on while the others fill, fork and flood, and comes to the right end with the right output.
#[tokio::test]
async fn a_neighbour_does_not_feel_it() {
    let kage = small_world().await;
    let run = async |script: String| kage.run(&shell(&script)).await;
    let work = "for i in $(seq 1 300); do echo $i > /tmp/x; cat /tmp/x >> out; cat /tmp/x; done; cp out $HOME/copy; wc -l < $HOME/copy";
    let (neighbour, disk, forks, heap, flood) = tokio::join!(
        run(work.to_owned()),
        run(fill("/workspace")),
        run("exec sh -c 'while :; do sleep 600 & done'".to_owned()),
        run("tail /dev/zero; exit 1".to_owned()),
        run("yes | head -c 1G; exit 1".to_owned()),
    );
    ended_as(&disk, "disk_limit");
    ended_as(&forks, "process_limit");
    ended_as(&heap, "out_of_memory");
    ended_as(&flood, "output_limit");
    let run = &neighbour["runs"][0];
    assert_eq!((&run["state"], &run["attempt"]), (&json!("succeeded"), &json!(1)), "{neighbour}");
    let numbers: String = (1..=300).map(|i| format!("{i}\n")).collect();
    assert_eq!(log(&kage, &neighbour).await, format!("{numbers}300\n"));
    let branch = string(&run["branch"]);
    assert_eq!(format!("{}\n", git(&kage.mirror("demo"), ["show", &format!("{branch}:out")])), numbers);
}

/// Where no file system of its own can be made: the runner looks, and the record says that it is not the same.
#[tokio::test]
async fn a_watcher_ends_what_the_kernel_does_not_hold() {
    let kage = TestKage::serving(&[
        ("KAGE_RUNNER_DISK", "watch"),
        ("KAGE_LIMIT_WORKTREE_BYTES", &WORKTREE.to_string()),
        ("KAGE_LIMIT_WORKTREE_INODES", "2000"),
        ("KAGE_RUNNER_GRACE_SECS", "1"),
    ])
    .await;
    kage.demo().await;
    let run = async |script: String| kage.run(&shell(&script)).await;
    let (bytes, inodes, quick) = tokio::join!(
        run("echo part > part; head -c 64M /dev/zero > fill; sleep 600".to_owned()),
        run("echo part > part; mkdir d; for i in $(seq 1 3000); do : > d/$i; done; sleep 600".to_owned()),
        run("echo part > part; head -c 64M /dev/zero > fill".to_owned()),
    );
    for task in [&bytes, &inodes, &quick] {
        let run = ended_as(task, "disk_limit");
        assert_eq!(run["sandbox"]["limits"]["worktree_bytes"]["held"], "soft", "{run}");
        assert_eq!(run["sandbox"]["limits"]["tmp_bytes"]["held"], "hard", "{run}");
        let branch = string(&run["branch"]);
        assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{branch}:part")]), "part");
    }
}
