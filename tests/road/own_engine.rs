//! A `dockerd` with folders, socket and containerd of its own, for what must not be done to a shared one.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::engine;
use crate::support::leftovers::mounts;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Engine {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl Engine {
    /// With these options beside its own. The image `shell` is in it.
    pub fn start(options: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("kage-engine.").tempdir().expect("a folder");
        Self::start_in(folder, options)
    }

    fn start_in(folder: tempfile::TempDir, options: &[&str]) -> Self {
        fs::write(folder.path().join("daemon.json"), "{}").expect("writes");
        let daemon = spawn(folder.path(), options);
        let this = Self { folder, daemon };
        this.answers();
        let image = std::env::var("KAGE_TEST_IMAGE").expect("./test sets it");
        let mut save =
            docker(&engine()).args(["save", &image]).stdout(Stdio::piped()).spawn().expect("docker");
        let loaded =
            this.docker().arg("load").stdin(save.stdout.take().expect("a pipe")).output().expect("docker");
        assert!(save.wait().expect("ends").success() && loaded.status.success(), "{loaded:?}");
        this
    }

    /// Whose containers' users are others on the host: root is this user, and the others follow. Nothing of this machine
    /// is changed for it: the engine sees other tables of subordinate users.
    pub fn remapped(first: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("kage-engine.").tempdir().expect("a folder");
        fs::write(folder.path().join("sub"), format!("nobody:{first}:65536\n")).expect("writes");
        Self::start_in(folder, &["--userns-remap=nobody:nogroup"])
    }

    /// Whose data is in a file system of so many MiB, which can be full.
    pub fn small(mebibytes: u64, options: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("kage-engine.").tempdir().expect("a folder");
        fs::create_dir(folder.path().join("data")).expect("a folder");
        mount_file(&folder.path().join("disk"), mebibytes, &folder.path().join("data"));
        Self::start_in(folder, options)
    }

    /// By force, whatever it does or does not do.
    pub fn restart(&mut self, options: &[&str]) {
        self.end(Signal::KILL);
        self.begin(options);
        self.answers();
    }

    /// As by the host's power: no process of it or of its containers is left, nothing is mounted, and what is kept in memory
    /// (`/run`) is gone.
    pub fn power_off(&mut self) {
        let inspected = self
            .docker()
            .args(["inspect", "--format", "{{.State.Pid}}"])
            .args(self.containers())
            .output()
            .expect("docker");
        let first = String::from_utf8_lossy(&inspected.stdout).into_owned();
        self.daemon.kill().expect("it is ours");
        self.daemon.wait().expect("ends");
        for pid in self.processes().into_iter().chain(first.lines().filter_map(|pid| pid.parse().ok())) {
            // 0: it has ended.
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while !mounts(self.folder.path()).is_empty() {
            assert!(Instant::now() < deadline, "still mounted: {:?}", mounts(self.folder.path()));
            for mount in mounts(self.folder.path()) {
                let _ = Command::new("umount").arg(mount).stderr(Stdio::null()).status();
            }
        }
        for gone in ["exec", "docker.sock", "pid"] {
            let _ = fs::remove_dir_all(self.path(gone)).or_else(|_| fs::remove_file(self.path(gone)));
        }
    }

    /// After [`Engine::power_off`].
    pub fn power_on(&mut self) {
        self.daemon = spawn(self.folder.path(), &[]);
        self.answers();
    }

    /// containerd and the shims: this engine's folder, which no other has, is among their words.
    fn processes(&self) -> Vec<i32> {
        let folder = self.folder.path().display().to_string();
        let pids = fs::read_dir("/proc").expect("procfs").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            let program = words.split('\0').next().and_then(|path| path.rsplit('/').next());
            program.is_some_and(|name| name.starts_with("containerd")) && words.contains(&folder)
        };
        pids.filter(ours).collect()
    }

    pub fn end(&mut self, signal: Signal) {
        self.signal(signal);
        self.daemon.wait().expect("ends");
    }

    /// After an end; does not wait until it answers.
    pub fn begin(&mut self, options: &[&str]) {
        // Its containerd dies with it; the next waits ten seconds for one that is dead and named here.
        let _ = fs::remove_file(self.path("exec/containerd/containerd.pid"));
        self.daemon = spawn(self.folder.path(), options);
    }

    pub fn answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.docker().args(["version"]).output().is_ok_and(|output| !output.status.success()) {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "it never answers:\n{log}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    pub fn docker(&self) -> Command {
        docker(&self.url())
    }

    pub fn containers(&self) -> Vec<String> {
        let output = self.docker().args(["ps", "--all", "--quiet"]).output().expect("docker");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// The id of a container that is started whenever its engine is.
    pub fn control(&self) -> String {
        let image = std::env::var("KAGE_TEST_IMAGE").expect("./test sets it");
        let output = self
            .docker()
            .args([
                "run",
                "--detach",
                "--restart=always",
                "--network=none",
                "--entrypoint=sleep",
                &image,
                "3600",
            ])
            .output()
            .expect("docker");
        assert!(output.status.success(), "{output:?}");
        // As `docker ps` shows it.
        String::from_utf8_lossy(&output.stdout).chars().take(12).collect()
    }

    pub fn remove(&self, id: &str) {
        let output = self.docker().args(["rm", "--force", id]).output().expect("docker");
        assert!(output.status.success(), "{output:?}");
    }

    /// Ids of those that run.
    pub fn running(&self) -> Vec<String> {
        let output = self.docker().args(["ps", "--quiet"]).output().expect("docker");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    pub fn signal(&self, signal: Signal) {
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
        // One that was ended by force has left its own.
        for mount in mounts(self.folder.path()) {
            let _ = Command::new("umount").arg(mount).status();
        }
    }
}

/// Makes a file with an ext4 of so many MiB and mounts it: a disk that a test can fill.
pub fn mount_file(file: &Path, mebibytes: u64, folder: &Path) {
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(args).output().expect("these tests need it");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    File::create(file).and_then(|made| made.set_len(mebibytes << 20)).expect("a file");
    run("mkfs.ext4", &["-q".as_ref(), "-m".as_ref(), "0".as_ref(), file.as_ref()]);
    run("mount", &["-o".as_ref(), "loop,nosuid,nodev".as_ref(), file.as_ref(), folder.as_ref()]);
    fs::remove_dir(folder.join("lost+found")).expect("is empty");
}

fn docker(url: &str) -> Command {
    let program = Some("/usr/bin/docker").filter(|path| fs::exists(path).unwrap_or(false));
    let mut command = Command::new(program.unwrap_or("docker"));
    command.env("DOCKER_HOST", url).env_remove("DOCKER_CONTEXT").stderr(Stdio::null());
    command
}

fn spawn(folder: &Path, options: &[&str]) -> Child {
    let path = |name: &str| folder.join(name);
    let log = OpenOptions::new().create(true).append(true).open(path("log")).expect("a log");
    let program = Some("/usr/sbin/dockerd").filter(|path| fs::exists(path).unwrap_or(false));
    // In a network of its own: one that is told to have no bridge removes the bridge of every other on the host.
    let mut daemon = Command::new("unshare");
    daemon.arg("--net");
    if fs::exists(path("sub")).unwrap_or(false) {
        const TABLES: &str =
            "for table in /etc/subuid /etc/subgid; do mount --bind \"$0\" $table || exit; done; exec \"$@\"";
        daemon.args(["--mount", "--propagation=slave", "--", "sh", "-c", TABLES]).arg(path("sub"));
    }
    daemon
        .arg(program.unwrap_or("dockerd"))
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
        .args(options)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("the same log"))
        .stderr(log);
    daemon.spawn().expect("these tests need dockerd")
}
