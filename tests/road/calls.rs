//! The probes of docs/security.md that concern system calls and rights, as runs through the public API: the repository
//! brings a program that tries them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::support::TestKage;
use crate::support::tasks::{shell, string};

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// tests/sandbox/probe.c, compiled for any image.
fn probe() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("probe");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sandbox/probe.c");
    let made =
        Command::new("cc").args(["-static", "-O1", "-pthread", "-o"]).arg(&program).arg(source).status();
    assert!(made.expect("these tests need a C compiler").success(), "the probe does not compile");
    std::fs::read(program).expect("reads")
}

/// `name number` lines.
fn answers(text: &str) -> BTreeMap<String, i32> {
    let line = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

async fn output(kage: &TestKage, script: &str) -> String {
    let script = format!(
        "cp probe /tmp/probe && chmod 755 /tmp/probe && mkdir d && cd d\n{script}\ncd ..; echo x >done"
    );
    let done = kage.run(&shell(&script)).await;
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&done["id"]))).await.text();
    assert_eq!(done["runs"][0]["state"], "succeeded", "{log}\n{done:#}");
    log
}

#[tokio::test]
async fn probes_2_to_18_no_forbidden_call_socket_mode_or_right() {
    let kage = TestKage::serving(&[]).await;
    let folder = kage.make_repository("demo", &[("probe", &probe())]);
    assert_eq!(kage.register("demo", &folder).await["state"], "ready");

    // 2, 3 (by `clone`), 8, 9, 11.
    let calls =
        answers(&output(&kage, "/tmp/probe calls; find /workspace /tmp /home/agent -perm /6000").await);
    assert!(calls.len() >= 115, "{} calls were tried", calls.len());
    let through: Vec<_> = calls.iter().filter(|(_, answer)| !matches!(**answer, EPERM | ENOSYS)).collect();
    assert!(through.is_empty(), "{through:?}");
    assert_eq!(calls["clone3"], ENOSYS, "so that threads start in another way");

    // 3: and they do; what programs need still works.
    let needed = answers(&output(&kage, "/tmp/probe needed").await);
    for name in ["thread", "chmod", "mkfifo", "open_create", "memfd_create", "socketpair"] {
        assert_eq!(needed[name], 0, "{name}");
    }

    // 4, 6.
    let sockets: BTreeSet<String> = answers(&output(&kage, "/tmp/probe sockets").await).into_keys().collect();
    let inet =
        ["2_1_0", "2_1_6", "2_2_0", "2_2_17", "10_1_0", "10_1_6", "10_2_0", "10_2_17", "16_2_0", "16_3_0"];
    let allowed = |name: &str| {
        name.starts_with("socket_1_") || inet.iter().any(|rest| name == format!("socket_{rest}"))
    };
    let surprising: Vec<_> = sockets.iter().filter(|name| !allowed(name)).collect();
    assert!(surprising.is_empty() && sockets.contains("socket_2_1_0"), "{surprising:?}");

    // 10: another architecture's entry kills.
    if cfg!(target_arch = "x86_64") {
        let killed = answers(&output(&kage, "/tmp/probe architecture").await);
        assert_eq!((killed["int80"], killed["x32"]), (31, 31));
    }

    // 18: no program of the image's changes who runs it, and none can be made.
    let look = "find / -xdev -type f -perm /6000 2>/dev/null; for p in su mount ping; do command -v $p >/dev/null && $p -c id root </dev/null 2>&1 | grep -c 'uid=0'; done; /tmp/probe euid";
    let seen = output(&kage, look).await;
    assert!(seen.ends_with("euid 10001\n") && !seen.contains('/'), "{seen}");
    assert!(seen.lines().all(|line| line == "0" || line == "euid 10001"), "{seen}");
}
