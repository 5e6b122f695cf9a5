//! Programs of others that judge containers, run by hand: they are in no package registry. KAGE_TEST_JUDGES names a folder
//! with `amicontained`, `runtimetest` (both built static), `deepce.sh` and `docker-bench-security/` (docs/security.md says from where):
//!
//! ```text
//! KAGE_TEST_JUDGES=/folder cargo test -p kage --test sandbox -- --ignored --nocapture outside
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

use crate::support::{World, engine_uri, write_program};

fn folder() -> PathBuf {
    std::env::var_os("KAGE_TEST_JUDGES").map(PathBuf::from).expect("KAGE_TEST_JUDGES names a folder")
}

/// A program's output inside a sandbox, without the colours.
async fn inside(world: &World, program: &Path, arguments: &str) -> String {
    let spec = world.spec(&format!("./judge {arguments} >out 2>&1; exit 0"));
    let to = spec.workspace.join("judge");
    std::fs::copy(program, &to).expect("copies");
    std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    world.run(&spec).await;
    let text = String::from_utf8_lossy(&std::fs::read(spec.workspace.join("out")).expect("out")).into_owned();
    let text = Regex::new("\x1b\\[[0-9;]*m").expect("a pattern").replace_all(&text, "").into_owned();
    println!("{text}");
    text
}

#[tokio::test]
#[ignore = "needs programs that are in no package registry"]
async fn outside_amicontained() {
    let world = World::new().await;
    let text = inside(&world, &folder().join("amicontained"), "").await;
    let blocked = text.split_once("Blocked Syscalls (").expect("its own count").1;
    let blocked: u32 = blocked.split_once(')').expect("a number").0.parse().expect("a number");
    assert!(blocked >= 115, "{blocked}");
    assert!(text.contains("Seccomp: filtering"), "{text}");
}

#[tokio::test]
#[ignore = "needs programs that are in no package registry"]
async fn outside_deepce() {
    let world = World::new().await;
    let text = inside(&world, &folder().join("deepce.sh"), "--no-network --no-colors").await;
    let line = |name: &str| {
        let found = text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        found.rsplit("..").next().unwrap_or_default().trim().to_owned()
    };
    assert_eq!(line("Docker Sock"), "Not Found");
    assert_eq!(line("Docker sock mounted"), "No");
    assert_eq!(line("DNS Server(s)"), "Could not find DNS Servers");
    assert_eq!(line("Passwords in common files"), "No");
    assert!(text.contains("CapEff:\t0000000000000000") && text.contains("CapBnd:\t0000000000000000"));
}

#[tokio::test]
#[ignore = "needs programs that are in no package registry"]
async fn outside_docker_bench() {
    let world = World::new().await;
    let spec = world.spec("sleep 300");
    let mut sandbox = world.started(&spec).await;
    let name = spec.container_name();
    // It looks for `docker` in PATH; the distribution's own.
    let bin = world.path("bin");
    std::fs::create_dir(&bin).expect("mkdir");
    write_program(&bin.join("docker"), "#!/bin/sh\nexec /usr/bin/docker \"$@\"\n");
    let output = Command::new("bash")
        .arg("docker-bench-security.sh")
        .args(["-b", "-p", "-c", "container_runtime", "-i", &name, "-l"])
        .arg(world.path("bench.log"))
        .current_dir(folder().join("docker-bench-security"))
        .env("DOCKER_HOST", engine_uri())
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
        .output()
        .expect("bash starts");
    sandbox.remove().await.expect("is removed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    let warned: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("[WARN] "))
        .filter_map(|line| line.split_once(" - "))
        .map(|(number, _)| number.trim())
        .filter(|number| number.starts_with("5."))
        .collect();
    // 5.2: this host may have no AppArmor; 5.27: a health check is not meant (docs/security.md).
    let surprising: Vec<&&str> = warned.iter().filter(|number| !["5.2", "5.27"].contains(number)).collect();
    assert!(surprising.is_empty() && text.contains("[PASS] 5.5"), "{surprising:?}");
}

/// The specification that the engine gave to the runtime.
fn runtimes_specification(id: &str) -> PathBuf {
    let folders = ["/run/docker/containerd/daemon", "/run/docker/containerd", "/run/containerd"];
    let of =
        |folder: &str| PathBuf::from(format!("{folder}/io.containerd.runtime.v2.task/moby/{id}/config.json"));
    folders.into_iter().map(of).find(|path| path.exists()).expect("these tests are root on the engine's host")
}

#[tokio::test]
#[ignore = "needs programs that are in no package registry"]
async fn outside_runtimetest() {
    let world = World::new().await;
    let spec =
        world.spec("until test -e go; do sleep 0.1; done; cd /; /workspace/judge --path /workspace >/workspace/out 2>&1; exit 0");
    let judge = spec.workspace.join("judge");
    std::fs::copy(folder().join("runtimetest"), &judge).expect("copies");
    std::fs::set_permissions(&judge, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let mut sandbox = world.started(&spec).await;
    let config = std::fs::read(runtimes_specification(sandbox.id())).expect("reads");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    // It takes itself for the first process.
    config["process"]["args"] = serde_json::json!(["/workspace/judge", "--path", "/workspace"]);
    std::fs::write(spec.workspace.join("config.json"), config.to_string()).expect("written");
    std::fs::write(spec.workspace.join("go"), "").expect("written");
    sandbox.wait().await.expect("ends");
    sandbox.remove().await.expect("is removed");
    let text = std::fs::read_to_string(spec.workspace.join("out")).expect("out");
    println!("{text}");
    let passed = text.lines().filter(|line| line.starts_with("ok ")).count();
    let failed: Vec<&str> =
        text.lines().filter(|line| line.starts_with("not ok ") && !line.contains("# TODO")).collect();
    println!("{passed} passed, {} did not: {failed:#?}", failed.len());
    assert!(passed > 300 && !text.contains("panic:"), "{text}");
    // docs/security.md says why.
    let declared = ["(/sys/fs/cgroup) found", "net.ipv4.ping_group_range"];
    assert!(failed.iter().all(|line| declared.iter().any(|known| line.contains(known))), "{failed:#?}");
}
