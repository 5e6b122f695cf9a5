//! The engine goes away: a forwarding socket in front of it that can be cut.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::support::engine;
use crate::support::tasks::{shell, string};
use crate::watcher::Watcher;
use crate::world::{apart, assert_result, numbered};

struct Proxy {
    path: PathBuf,
    up: CancellationToken,
}

impl Proxy {
    fn start(path: &Path) -> Self {
        let mut this = Self { path: path.to_owned(), up: CancellationToken::new() };
        this.mend();
        this
    }

    fn url(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Every connection breaks, and none is taken.
    fn cut(&mut self) {
        self.up.cancel();
        let _ = std::fs::remove_file(&self.path);
    }

    fn mend(&mut self) {
        self.up = CancellationToken::new();
        let (listener, up) = (UnixListener::bind(&self.path).expect("binds"), self.up.clone());
        let target = engine().strip_prefix("unix://").expect("a unix:// URL").to_owned();
        tokio::spawn(async move {
            loop {
                let (mut near, _) = tokio::select! {
                    accepted = listener.accept() => accepted.expect("accepts"),
                    () = up.cancelled() => return,
                };
                let (target, up) = (target.clone(), up.clone());
                tokio::spawn(async move {
                    let mut far = UnixStream::connect(target).await.expect("the engine answers");
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = up.cancelled() => {}
                    }
                });
            }
        });
    }
}

fn proxy() -> (tempfile::TempDir, Proxy) {
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = Proxy::start(&folder.path().join("docker.sock"));
    (folder, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_survives_it() {
    let (_folder, mut proxy) = proxy();
    let (mut kage, mut roles) =
        apart(&[("KAGE_RUNNER_DOCKER", &proxy.url()), ("KAGE_RUNNER_LEASE_SECS", "5")]).await;

    // Away in the middle, back before the end.
    let task = kage.submit(&shell(&numbered(5_000, 250))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "line 500\n").await;
    proxy.cut();
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.mend();
    watcher.end().await.assert_lines("shell", 5_000);
    assert_result(&kage, &kage.task(id).await, 5_000);

    // Away when it ends: the container has to wait, and so has the harvest.
    let task = kage.submit(&shell(&numbered(2_000, 250))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "line 1000\n").await;
    proxy.cut();
    kage.reaches(id, 0, "harvesting").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(kage.task(id).await["runs"][0]["state"], "harvesting");
    proxy.mend();
    watcher.end().await.assert_lines("shell", 2_000);
    assert_result(&kage, &kage.task(id).await, 2_000);

    // Away while the runner starts anew: it comes back to it, and the run goes on.
    let task = kage.submit(&shell(&numbered(20_000, 250))).await;
    let id = string(&task["id"]);
    let watcher = Watcher::follow(&kage, id);
    kage.says(id, "shell", "line 500\n").await;
    kage.process(roles.runner).kill_9();
    roles.runner = kage.start("runner").await;
    proxy.cut();
    tokio::time::sleep(Duration::from_secs(3)).await;
    proxy.mend();
    watcher.end().await.assert_lines("shell", 20_000);
    assert_result(&kage, &kage.task(id).await, 20_000);
    kage.process(roles.runner).assert_alive();
}

/// Cut at every moment of a run's preparation: whatever happens, never two containers, and the retries get there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_two_containers_for_a_run() {
    let (_folder, mut proxy) = proxy();
    let (kage, _) = apart(&[("KAGE_RUNNER_DOCKER", &proxy.url()), ("KAGE_RUNNER_LEASE_SECS", "5")]).await;
    for delay in (0..8).map(|step| step * 60) {
        let mut task = shell("echo 4 > result");
        task["max_retries"] = 5.into();
        task["retry_delay"] = 1.into();
        let submitted = kage.submit(&task).await;
        let id = string(&submitted["id"]);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        proxy.cut();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let containers = kage.containers();
        assert!(containers.len() <= 1, "{containers:?}");
        proxy.mend();
        let task = loop {
            let containers = kage.containers();
            assert!(containers.len() <= 1, "{containers:?}");
            let task = kage.task(id).await;
            if !task["completed_at"].is_null() {
                break task;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        };
        println!("cut after {delay} ms: attempt {}", task["runs"][0]["attempt"]);
        assert_result(&kage, &task, 4);
    }
}
