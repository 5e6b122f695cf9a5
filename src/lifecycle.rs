//! How a process ends: a soft token (take no new work), a hard token (stop), a tracker that waits.
//!
//! SIGHUP has secrets read again. The first SIGTERM or SIGINT is soft; the second is hard. A task that ends although nobody asked
//! it to is a fault: everything stops and the exit status says so.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

#[derive(Clone, Default)]
pub struct Lifecycle {
    soft: CancellationToken,
    hard: CancellationToken,
    tracker: TaskTracker,
    faulted: Arc<AtomicBool>,
    /// How often SIGHUP has come.
    reloads: Arc<watch::Sender<u64>>,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self::default()
    }

    /// Take no new work.
    pub fn drain(&self) {
        self.soft.cancel();
    }

    /// Stop.
    pub fn stop(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Stop, since something without which the process is of no use is gone: its exit status says so.
    pub fn fail(&self) {
        self.faulted.store(true, Ordering::SeqCst);
        self.stop();
    }

    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// Changes when what can be read again is to be read again: on SIGHUP.
    pub fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.subscribe()
    }

    /// Starts a task that the process waits for at its end. What it logs belongs to what has started it.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(task.in_current_span());
    }

    /// Starts a loop without which the process is of no use: its end before the soft token ends everything.
    /// The hard token ends it wherever it stands.
    pub fn spawn_essential<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        self.tracker.spawn(async move {
            // Nested, so that a panic is seen as an end too.
            let hard = this.hard.clone();
            let ended = this.tracker.spawn(async move { hard.run_until_cancelled(task).await }).await;
            if ended.is_err() || !this.soft.is_cancelled() {
                tracing::error!(name, "lifecycle.essential_task_ended");
                this.fail();
            }
        });
    }

    /// Turns signals into tokens, for as long as the process lives.
    ///
    /// # Errors
    /// If a signal handler cannot be installed.
    pub fn watch_signals(&self) -> std::io::Result<()> {
        let this = self.clone();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (mut hangup, reloads) = (signal(SignalKind::hangup())?, Arc::clone(&self.reloads));
        // Not tracked: they end with the process.
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                tracing::info!("lifecycle.reload");
                reloads.send_modify(|count| *count += 1);
            }
        });
        tokio::spawn(async move {
            for step in 0.. {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if step == 0 {
                    tracing::info!("lifecycle.draining: no new runs; a second signal stops");
                    this.drain();
                } else {
                    tracing::warn!("lifecycle.stopping");
                    this.stop();
                }
            }
        });
        Ok(())
    }

    /// Waits until all tasks have ended. True if none failed.
    pub async fn wait(&self) -> bool {
        self.tracker.close();
        self.tracker.wait().await;
        !self.faulted.load(Ordering::SeqCst)
    }
}
