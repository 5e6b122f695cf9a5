//! A `kage` process with its log.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::PATIENCE;

pub struct Process {
    pub role: &'static str,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    pub fn spawn(role: &'static str, mut command: Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("a log file");
        command.stdout(file.try_clone().expect("dup")).stderr(file);
        let child = command.spawn().expect("kage starts");
        Self { role, child, log, status: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Whether a message with this text was logged.
    pub fn log_says(&self, text: &str) -> bool {
        self.log().contains(text)
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        // One that has ended by itself and is not waited for yet takes it too.
        kill_process(pid, signal).expect("our own child");
    }

    /// As by the kernel's out-of-memory killer: no warning, nothing tidied up.
    pub fn kill_9(&mut self) {
        self.child.kill().expect("our own child");
        self.status = Some(self.child.wait().expect("our own child"));
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("our own child");
        }
        self.status
    }

    pub async fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} never ends:\n{}", self.role, self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM, then the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait().await
    }

    pub fn assert_alive(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended ({status}):\n{}", self.role, self.log_tail());
        }
    }

    /// Ends it, by force at last; what was wrong with its end.
    pub fn end(&mut self, at_once: bool) -> Vec<String> {
        if self.ended().is_some() {
            return Vec::new();
        }
        self.signal(Signal::TERM);
        if at_once {
            self.signal(Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                let bad = !status.success();
                return bad
                    .then(|| format!("{} ended with {status}:\n{}", self.role, self.log_tail()))
                    .into_iter()
                    .collect();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill_9();
        vec![format!("{} did not end on SIGTERM:\n{}", self.role, self.log_tail())]
    }
}
