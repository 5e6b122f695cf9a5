//! A world for one test: a database, a data folder, an instance label and real `kage` processes of its own.
//! What the test leaves behind makes it fail.
//!
//! `./test` sets what it needs: `DATABASE_URL`, `KAGE_TEST_SHIM`, `KAGE_TEST_IMAGE`, `KAGE_TEST_DATA_DIR`.

pub mod browser;
pub mod database;
pub mod git;
pub mod http;
pub mod keys;
pub mod leftovers;
pub mod planted;
pub mod process;
pub mod provider;
pub mod receiver;
pub mod released;
pub mod sign_in;
pub mod sse;
pub mod tasks;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use self::database::Database;
use self::process::Process;

/// How long a test waits for anything. It says that something never comes, not how fast it is.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Worlds at once: they wait for containers and leases more than they compute, so a machine with two cores runs four of them well.
static WORLDS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(4)));

pub struct TestKage {
    /// Also the instance label of its containers.
    pub name: String,
    pub folder: PathBuf,
    /// `KAGE_DATA_DIR`.
    pub data: PathBuf,
    /// The folder that `KAGE_REPOSITORIES_ALLOW` names.
    pub sources: PathBuf,
    /// Of a server that may not be up yet.
    pub url: String,
    /// A valid API key.
    pub key: String,
    /// What every server process of this world gets.
    pub settings: BTreeMap<String, String>,
    pub(crate) http: reqwest::Client,
    database: Option<Database>,
    processes: Vec<Process>,
    _permit: OwnedSemaphorePermit,
}

impl TestKage {
    /// Everything but a running server: migrated database, key, CLI image `shell`.
    pub async fn new() -> Self {
        let mut this = Self::unmigrated().await;
        this.host(&["migrate"]);
        this.equip();
        this
    }

    /// With an empty database: no schema, no key, no image.
    pub async fn unmigrated() -> Self {
        let mut this = Self::bare().await;
        let database = Database::create(&this.name).await;
        this.set("KAGE_DATABASE_URL", &database.url);
        this.database = Some(database);
        this
    }

    /// As [`TestKage::new`], with `kage serve` and these settings.
    pub async fn serving(settings: &[(&str, &str)]) -> Self {
        let mut this = Self::new().await;
        for (name, value) in settings {
            this.set(name, value);
        }
        this.start("serve").await;
        this
    }

    /// Folders and settings alone: no database is named.
    pub async fn bare() -> Self {
        let permit = Arc::clone(&WORLDS).acquire_owned().await.expect("the semaphore is never closed");
        let name = format!("t{}", &Uuid::new_v4().simple().to_string()[..12]);
        let folder = parent().join(&name);
        let (data, sources) = (folder.join("data"), folder.join("src"));
        let make = |path: &Path| {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path);
            made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        make(&data);
        make(&sources);
        // The machine's own configuration is not ours.
        std::fs::write(folder.join("kage.toml"), "").expect("an empty file");
        let port = free_port();
        let mut this = Self {
            url: format!("http://127.0.0.1:{port}"),
            key: String::new(),
            settings: BTreeMap::new(),
            http: http::client(),
            database: None,
            processes: Vec::new(),
            _permit: permit,
            name,
            folder,
            data,
            sources,
        };
        for (name, value) in [
            ("KAGE_CONFIG", this.folder.join("kage.toml").display().to_string()),
            ("KAGE_DATA_DIR", this.data.display().to_string()),
            ("KAGE_INSTANCE", this.name.clone()),
            ("KAGE_API_LISTEN", format!("127.0.0.1:{port}")),
            ("KAGE_REPOSITORIES_ALLOW", this.sources.display().to_string()),
            ("KAGE_RUNNER_SHIM", required("KAGE_TEST_SHIM")),
            ("KAGE_RUNNER_DOCKER", engine()),
            ("KAGE_RUNNER_DRAIN_SECS", "20".to_owned()),
            ("KAGE_LIMIT_MEMORY_BYTES", (256u64 << 20).to_string()),
            ("KAGE_LIMIT_IDLE_SECS", "120".to_owned()),
        ] {
            this.set(name, &value);
        }
        this
    }

    /// Makes a key and registers the CLI image `shell` in whatever database the settings lead to.
    pub fn equip(&mut self) {
        let made = self.host(&["key", "create", "--admin", "--json", "--name", "test"]);
        let made: serde_json::Value = serde_json::from_str(&made).expect("kage key create --json");
        self.key = made["key"].as_str().expect("a key").to_owned();
        let shell = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/shell");
        let shell = shell.to_str().expect("UTF-8");
        self.host(&["image", "build", shell, "--existing", &required("KAGE_TEST_IMAGE")]);
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    /// The owner's connection to this world's database.
    pub fn pool(&self) -> &PgPool {
        &self.database.as_ref().expect("this world has no database of its own").pool
    }

    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        self.settings["KAGE_API_LISTEN"].parse().expect("an address")
    }

    /// The repository's mirror: what the runner writes branches to.
    pub fn mirror(&self, repository: &str) -> PathBuf {
        self.data.join("repos").join(format!("{repository}.git"))
    }

    /// Starts `kage ROLE` and waits until it is ready. The index names it later.
    pub async fn start(&mut self, role: &'static str) -> usize {
        self.start_with(role, &[]).await
    }

    /// As [`TestKage::start`], with settings of this process alone.
    pub async fn start_with(&mut self, role: &'static str, settings: &[(&str, &str)]) -> usize {
        let index = self.spawn_with(role, settings);
        self.ready(index).await;
        index
    }

    /// Starts `kage ROLE` without waiting.
    pub fn spawn_with(&mut self, role: &'static str, settings: &[(&str, &str)]) -> usize {
        let mut command = self.server_command(&[role]);
        command.envs(settings.iter().copied());
        let log = self.folder.join(format!("{role}-{}.log", self.processes.len()));
        self.processes.push(Process::spawn(role, command, log));
        self.processes.len() - 1
    }

    pub fn process(&mut self, index: usize) -> &mut Process {
        &mut self.processes[index]
    }

    /// Waits until a process has begun its work.
    pub async fn ready(&mut self, index: usize) {
        let (deadline, ready) = (Instant::now() + PATIENCE, format!("{}/ready", self.url));
        loop {
            let process = &mut self.processes[index];
            process.assert_alive();
            let role = process.role;
            // A runner's row outlives it for a while: its own log says whether it is this one that works.
            let begun = (role == "api" || process.log_says("runner.started"))
                && (role == "runner" || process.log_says("api.listening"));
            if begun && role == "runner" {
                return;
            }
            if begun && let Ok(answer) = self.http.get(&ready).send().await {
                let all = answer.status().is_success();
                let value: serde_json::Value = answer.json().await.expect("/ready speaks JSON");
                if all || (role == "api" && value["dependencies"]["database"]["ok"] == true) {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "{role} is never ready:\n{}", self.processes[index].log());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// `kage` with the server's settings and nothing else of this machine's.
    pub fn server_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.envs(&self.settings);
        command
    }

    /// `kage` as a client with this world's key.
    pub fn client_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.env("KAGE_URL", &self.url).env("KAGE_API_KEY", &self.key);
        command
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kage"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.args(args).env_clear().env("PATH", path).env("HOME", &self.folder);
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Runs a command on the server's side that must succeed; its standard output.
    pub fn host(&self, args: &[&str]) -> String {
        let output = self.server_command(args).output().expect("kage starts");
        succeeded(args, &output)
    }

    /// Runs a client's command in a thread of its own.
    pub async fn client(&self, args: &[&str]) -> Output {
        let mut command = self.client_command(args);
        let run = tokio::task::spawn_blocking(move || command.output().expect("kage starts"));
        run.await.expect("no panic")
    }

    /// `docker` on the engine that the runner uses.
    pub fn docker(&self, args: &[&str]) -> String {
        docker(args)
    }

    /// Ids of this world's containers.
    pub fn containers(&self) -> Vec<String> {
        leftovers::containers(&self.name)
    }
}

impl Drop for TestKage {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let mut found = Vec::new();
        for process in &mut self.processes {
            if failed {
                eprintln!("---- {}\n{}", process.role, process.log_tail());
            }
            found.extend(process.end(failed));
        }
        found.extend(leftovers::take(&self.name, &self.folder));
        if let Some(database) = self.database.take() {
            found.extend(database.destroy());
        }
        assert!(failed || found.is_empty(), "left over: {found:#?}");
    }
}

/// Waits until a condition gives a value.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The standard output of a command that must have succeeded.
pub fn succeeded(args: &[&str], output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// The engine's socket, as a `unix://` URL.
pub fn engine() -> String {
    std::env::var("KAGE_TEST_ENGINE").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned())
}

/// Runs `docker` on the test's engine; it must succeed.
pub fn docker(args: &[&str]) -> String {
    // The distribution's own, where something else of that name comes first in PATH.
    let program = Some("/usr/bin/docker").filter(|path| Path::new(path).exists()).unwrap_or("docker");
    let output = Command::new(program).args(args).env("DOCKER_HOST", engine()).output();
    succeeded(args, &output.expect("these tests need the docker command"))
}

fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: ./test --test road sets it"))
}

/// Where worlds are made. Overlays reach a sandbox only from below a shared mount.
fn parent() -> PathBuf {
    std::env::var_os("KAGE_TEST_DATA_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}

/// A port that nobody has, outside the range from which the kernel takes ports of its own accord: a server that
/// starts anew finds it free again.
pub fn free_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let ephemeral: u16 = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32768);
    let range = if ephemeral > 20_000 { 10_000..ephemeral } else { 61_000..65_000 };
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| rand::random_range(range.clone()));
    ports.find(free).expect("some port is free")
}
