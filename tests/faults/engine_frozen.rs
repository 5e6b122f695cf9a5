//! The engine stands still: it takes calls and answers none. An engine of the test's own, that can be stopped.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::engine;
use crate::support::sse::output;
use crate::support::tasks::{shell, string};
use crate::world::{apart, assert_result, numbered};

const PATIENCE: Duration = Duration::from_secs(60);

/// A `dockerd` with folders, socket and containerd of its own, and the image `shell` in it.
struct Engine {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl Engine {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("kage-engine.").tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let log = File::create(path("log")).expect("a log");
        let program = Some("/usr/sbin/dockerd").filter(|path| fs::exists(path).unwrap_or(false));
        // In a network of its own: one that is told to have no bridge removes the bridge of every other on the host.
        let mut daemon = Command::new("unshare");
        daemon
            .args(["--net", "--", program.unwrap_or("dockerd")])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--config-file"])
            .arg(path("daemon.json"))
            .args(["--host", &format!("unix://{}", path("docker.sock").display())])
            .args([
                "--data-root".into(),
                path("data"),
                "--exec-root".into(),
                path("exec"),
                "--pidfile".into(),
                path("pid"),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the same log"))
            .stderr(log);
        fs::write(path("daemon.json"), "{}").expect("writes");
        let daemon = daemon.spawn().expect("these tests need dockerd");
        let this = Self { folder, daemon };
        let deadline = Instant::now() + PATIENCE;
        while this.docker().args(["version"]).output().is_ok_and(|output| !output.status.success()) {
            let log = fs::read_to_string(this.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "it never answers:\n{log}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let image = std::env::var("KAGE_TEST_IMAGE").expect("./test sets it");
        let mut save =
            docker(&engine()).args(["save", &image]).stdout(Stdio::piped()).spawn().expect("docker");
        let loaded =
            this.docker().arg("load").stdin(save.stdout.take().expect("a pipe")).output().expect("docker");
        assert!(save.wait().expect("ends").success() && loaded.status.success(), "{loaded:?}");
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    fn docker(&self) -> Command {
        docker(&self.url())
    }

    fn containers(&self) -> Vec<String> {
        let output = self.docker().args(["ps", "--all", "--quiet"]).output().expect("docker");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.daemon);
        kill_process(pid, signal).expect("it is ours");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        for id in self.containers() {
            let _ = self.docker().args(["rm", "--force", &id]).output();
        }
        self.signal(Signal::TERM);
        let _ = self.daemon.wait();
    }
}

fn docker(url: &str) -> Command {
    let program = Some("/usr/bin/docker").filter(|path| fs::exists(path).unwrap_or(false));
    let mut command = Command::new(program.unwrap_or("docker"));
    command.env("DOCKER_HOST", url).env_remove("DOCKER_CONTEXT").stderr(Stdio::null());
    command
}

/// Whatever stands still, a run's output is taken, its CLI is ended at its limit, its work is kept, and its end is told;
/// what the engine will not give up is swept once it answers again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_holds_up_no_run() {
    let own = tokio::task::spawn_blocking(Engine::start).await.expect("starts");
    let settings = [("KAGE_RUNNER_DOCKER", own.url()), ("KAGE_RUNNER_GRACE_SECS", "1".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (kage, _) = apart(&settings).await;

    // Two at work when it stops: one that ends well, and one that ends at no signal.
    let good = kage.submit(&shell(&numbered(2_000, 250))).await;
    let mut stubborn = shell("echo part > part; trap '' TERM; echo begun; while :; do sleep 1000; done");
    stubborn["cli_assignments"][0]["idle_timeout"] = 5.into();
    let stubborn = kage.submit(&stubborn).await;
    kage.says(string(&good["id"]), "shell", "line 250\n").await;
    kage.says(string(&stubborn["id"]), "shell", "begun").await;
    own.signal(Signal::STOP);

    let good = kage.ended(string(&good["id"])).await;
    assert_result(&kage, &good, 2_000);
    let said = output(&kage.events(string(&good["id"]), "").await, "shell", "stdout");
    assert_eq!(said.iter().filter(|byte| **byte == b'\n').count(), 2_000);
    let stubborn = kage.ended(string(&stubborn["id"])).await;
    assert_eq!(stubborn["runs"][0]["state"], "idle_timeout", "{stubborn}");
    assert!(!stubborn["runs"][0]["branch"].is_null(), "what it had done is kept: {stubborn}");
    for task in [&good, &stubborn] {
        let events = kage.events(string(&task["id"]), "").await;
        let told = events.iter().any(|event| event.data["message"].to_string().contains("left to the sweep"));
        assert!(told, "{events:#?}");
    }

    // One that is to begin now waits or fails, and gets there once the engine answers.
    let mut waiting = shell("echo 4 > result");
    waiting["max_retries"] = 5.into();
    waiting["retry_delay"] = 1.into();
    let waiting = kage.submit(&waiting).await;
    kage.reaches(string(&waiting["id"]), 0, "preparing").await;
    own.signal(Signal::CONT);
    assert_result(&kage, &kage.ended(string(&waiting["id"])).await, 4);
    let deadline = Instant::now() + PATIENCE * 2;
    while !own.containers().is_empty() {
        assert!(Instant::now() < deadline, "never swept: {:?}", own.containers());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
