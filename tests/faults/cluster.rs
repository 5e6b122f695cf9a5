//! A Postgres cluster of a test's own, for what must not be done to a shared one.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::succeeded;

pub struct Cluster {
    pub folder: PathBuf,
}

impl Cluster {
    /// Made by `scripts/cluster`, then started so that a commit is on disk when it is answered.
    pub fn start() -> Self {
        let name = format!("kage-faults-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let this = Self { folder: Path::new("/tmp").join(name) };
        this.script("start");
        this.stop("fast");
        this.begin();
        this
    }

    fn script(&self, action: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cluster");
        let output = Command::new(script).arg(action).arg(&self.folder).output();
        succeeded(&["scripts/cluster", action], &output.expect("runs"));
    }

    fn pg_ctl(&self, args: &[&str]) {
        let bin =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/host")).arg("pg-bin").output();
        let bin = succeeded(&["scripts/host pg-bin"], &bin.expect("runs"));
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", &format!("{}/pg_ctl", bin.trim()), "--wait", "--pgdata"]);
        command.arg(self.folder.join("data")).args(args).current_dir("/");
        // To no pipe: the server would keep it open.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        assert!(command.status().expect("runs").success(), "pg_ctl {args:?}");
    }

    pub fn stop(&self, mode: &str) {
        self.pg_ctl(&["--mode", mode, "stop"]);
    }

    pub fn begin(&self) {
        let options = format!("-c listen_addresses='' -c unix_socket_directories={}", self.folder.display());
        let log = self.folder.join("log").display().to_string();
        self.pg_ctl(&["--log", &log, "--options", &options, "start"]);
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@localhost/postgres?host={}", self.folder.display())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.script("stop");
    }
}
