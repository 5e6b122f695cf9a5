//! A server of its own for one bench: a database cluster, the roles as processes, a key, a small repository and
//! the CLI image `shell`. Everything is in one folder, which goes when the bench ends.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kage::db::private::Cluster;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::http::Api;

pub const IMAGE: &str = "kage-cli-shell:dev";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const KAGE: &str = env!("CARGO_BIN_EXE_kage");
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

pub struct Stack {
    pub folder: PathBuf,
    pub api: Api,
    /// The shim's program.
    pub shim: PathBuf,
    environment: BTreeMap<&'static str, String>,
    roles: Vec<(String, Child)>,
    runtime: tokio::runtime::Runtime,
    cluster: Option<Cluster>,
}

impl Stack {
    /// Starts the roles (`serve`, or `api` and `runner`) and sets up what a task needs.
    pub fn start(roles: &[&str]) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "run it as root: it mounts overlays");
        script("scripts/host", &["check", "docker", "base", "postgres"])?;
        script("scripts/image", &["shell"])?;
        let shim = PathBuf::from(script("scripts/build", &["shim"])?.trim());
        let parent = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let folder = tempfile::Builder::new().prefix("kage-bench-").tempdir_in(parent)?.keep();
        // The database's user and the sandboxes' go through it.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let data = folder.join("data");
        script("scripts/host", &["data", data.to_str().context("a plain path")?])?;

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let cluster = runtime.block_on(Cluster::start(&data)).context("the database")?;
        let environment = BTreeMap::from([
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("KAGE_DATABASE_URL", cluster.url().expose_secret().to_owned()),
            ("KAGE_DATA_DIR", data.display().to_string()),
            ("KAGE_INSTANCE", format!("bench-{}", std::process::id())),
            ("KAGE_REPOSITORIES_ALLOW", folder.join("repositories").display().to_string()),
            ("KAGE_API_LISTEN", address.to_string()),
            ("KAGE_RUNNER_SHIM", shim.display().to_string()),
            ("KAGE_URL", format!("http://{address}")),
            ("KAGE_LOG", "warn".to_owned()),
        ]);
        let mut stack = Self {
            folder,
            api: Api { address, key: String::new() },
            shim,
            environment,
            roles: Vec::new(),
            runtime,
            cluster: Some(cluster),
        };
        for role in roles {
            stack.spawn(role)?;
        }
        stack.furnish()?;
        Ok(stack)
    }

    fn spawn(&mut self, role: &str) -> Result<()> {
        let child = self.kage(&[role]).stdin(Stdio::null()).spawn()?;
        self.roles.push((role.to_owned(), child));
        Ok(())
    }

    fn furnish(&mut self) -> Result<()> {
        self.wait_until("ready", |stack| stack.api.call("GET", "/ready", "").is_ok())?;
        let key = self.output(&["key", "create", "--admin", "--name", "bench", "--json"])?;
        let key: Value = serde_json::from_str(&key)?;
        self.api.key = key["key"].as_str().context("a key")?.to_owned();
        self.environment.insert("KAGE_API_KEY", self.api.key.clone());
        self.output(&["image", "build", &format!("{ROOT}/images/shell"), "--existing", IMAGE])?;
        let source = self.folder.join("repositories/small");
        small_repository(&source)?;
        self.output(&["repo", "add", "small", source.to_str().context("a plain path")?])?;
        Ok(())
    }

    /// The program under test, with this stack's settings and nothing else of the environment.
    pub fn kage(&self, args: &[&str]) -> Command {
        let mut command = Command::new(KAGE);
        command.args(args).env_clear().envs(&self.environment).current_dir("/");
        command
    }

    fn output(&self, args: &[&str]) -> Result<String> {
        let output = self.kage(args).output()?;
        said(&format!("kage {}", args.join(" ")), output)
    }

    /// Submits a script as a task with one run; returns the task's id.
    pub fn submit(&self, script: &str) -> Result<String> {
        let body = json!({
            "description": script,
            "repository": "small",
            "max_retries": 0,
            "cli_assignments": [{ "cli_name": "shell", "timeout": 600, "allow_no_changes": true }],
        });
        let task: Value =
            serde_json::from_slice(&self.api.call("POST", "/api/v1/tasks", &body.to_string())?)?;
        Ok(task["id"].as_str().context("a task's id")?.to_owned())
    }

    pub fn pid(&self, role: &str) -> Result<u32> {
        let found = self.roles.iter().find(|(name, _)| name == role);
        found.map(|(_, child)| child.id()).with_context(|| format!("no role {role}"))
    }

    /// Ends a role in order.
    pub fn stop(&mut self, role: &str) -> Result<()> {
        let Some(index) = self.roles.iter().position(|(name, _)| name == role) else { return Ok(()) };
        let (_, mut child) = self.roles.remove(index);
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let began = Instant::now();
        while child.try_wait()?.is_none() {
            if began.elapsed() > STOPPED_WITHIN {
                child.kill()?;
                child.wait()?;
                bail!("{role} did not stop within {STOPPED_WITHIN:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn wait_until(&mut self, what: &str, mut there: impl FnMut(&Self) -> bool) -> Result<()> {
        let began = Instant::now();
        while !there(self) {
            for (role, child) in &mut self.roles {
                if let Some(status) = child.try_wait()? {
                    bail!("kage {role} ended: {status}");
                }
            }
            ensure!(began.elapsed() < READY_WITHIN, "not {what} within {READY_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let roles: Vec<String> = self.roles.iter().map(|(role, _)| role.clone()).collect();
        for role in roles {
            if let Err(error) = self.stop(&role) {
                eprintln!("{role}: {error:#}");
            }
        }
        if let Some(cluster) = self.cluster.take()
            && let Err(error) = self.runtime.block_on(cluster.stop())
        {
            eprintln!("the database: {error}");
        }
        unmount_below(&self.folder);
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("left {}: {error}", self.folder.display());
        }
    }
}

/// The data folder is a mount of its own, and a run that was cut off may have left its overlay.
fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut inside: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|mount| Path::new(mount).starts_with(folder))
        .collect();
    inside.sort_unstable_by_key(|mount| std::cmp::Reverse(mount.len()));
    for mount in inside {
        let _ = Command::new("umount").arg(mount).status();
    }
}

fn small_repository(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("README"), "a small repository\n")?;
    for args in [
        &["init", "-q", "-b", "main"][..],
        &["add", "-A"],
        &["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "a commit"],
    ] {
        let output = Command::new("git").args(args).current_dir(folder).output()?;
        said(&format!("git {}", args.join(" ")), output)?;
    }
    Ok(())
}

/// One of the project's scripts; its words go to the terminal, its result comes back.
fn script(path: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(Path::new(ROOT).join(path));
    let output = command.args(args).current_dir(ROOT).stderr(Stdio::inherit()).output();
    said(path, output.with_context(|| path.to_owned())?)
}

fn said(what: &str, output: Output) -> Result<String> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {} {}", output.status, error.trim());
    Ok(String::from_utf8(output.stdout)?)
}
