//! A world for one test: an instance of its own, its folders, and what it made removed at the end.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptionsBuilder};
use kage::domain::limits::{Enforcement, Limits};
use kage::sandbox::container::{Ended, Inspected, Sandbox, list};
use kage::sandbox::engine::Engine;
use kage::sandbox::image_check::inspect_image;
use kage::sandbox::refusals::lane::Pace;
use kage::sandbox::refusals::listener::{Refusals, Watched};
use kage::sandbox::refusals::tally::Refused;
use kage::sandbox::seccomp::table::Told;
use kage::sandbox::shim_listener::ShimListener;
use kage::sandbox::spec::{ImageDigest, SandboxUser, Spec};
use tempfile::TempDir;
use uuid::Uuid;

pub const LABEL: &str = "kage.test";
pub const LABEL_VALUE: &str = "sandbox-room";
pub const UID: u32 = 10001;

pub fn engine_uri() -> String {
    std::env::var("KAGE_TEST_ENGINE").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned())
}

/// An image with a shell, coreutils and perl: Debian's base.
pub fn image_name() -> String {
    std::env::var("KAGE_TEST_BASE_IMAGE").unwrap_or_else(|_| "kage-base:trixie".to_owned())
}

pub struct World {
    pub engine: Engine,
    pub instance: String,
    pub image: ImageDigest,
    pub folder: TempDir,
    pub refusals: Refusals,
    /// By the run's id.
    watched: Mutex<HashMap<Uuid, Arc<Watched>>>,
}

impl World {
    pub async fn new() -> Self {
        Self::of(&image_name()).await
    }

    /// With another image.
    pub async fn of(image: &str) -> Self {
        Self::at(image, Pace::default()).await
    }

    /// With answers to refused calls at another pace.
    pub async fn at(image: &str, pace: Pace) -> Self {
        let engine = Engine::connect(&engine_uri()).await.expect("these tests need a Docker Engine");
        let image = inspect_image(&engine, image).await.expect("the engine answers");
        let image = image.expect("these tests need a Debian base image (KAGE_TEST_BASE_IMAGE)").digest;
        let folder = tempfile::Builder::new().prefix("kage-sandbox-").tempdir().expect("a folder");
        let instance = format!("test-{}", Uuid::new_v4().simple());
        let refusals = Refusals::listen_at(&folder.path().join("l"), pace).expect("listens");
        Self { engine, instance, image, folder, refusals, watched: Mutex::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A specification whose PID 1 is this script. It runs in `/workspace`.
    pub fn spec(&self, script: &str) -> Spec {
        let run_id = Uuid::new_v4();
        let shim = self.path(&format!("{}.sh", run_id.simple()));
        write_program(&shim, &format!("#!/bin/bash\ncd /workspace\n{script}\n"));
        let workspace = self.path(&format!("{}.w", run_id.simple()));
        fs::create_dir(&workspace).expect("mkdir");
        chown(&workspace, Some(UID), Some(UID)).expect("these tests need to be root");
        let io_dir = self.path(&format!("{}.r", run_id.simple()));
        let user = SandboxUser::new(UID, UID).expect("not root");
        // Prepares the folder; nobody is awaited.
        drop(ShimListener::bind(&io_dir, user).expect("binds"));
        Spec {
            instance: self.instance.clone(),
            run_id,
            attempt: 1,
            image: self.image.clone(),
            user,
            limits: Limits { memory_bytes: 256 << 20, pids: 64, tmp_bytes: 8 << 20, ..Limits::default() },
            worktree_held: Enforcement::Soft,
            workspace,
            model_dir: None,
            io_dir,
            shim,
            writable: Vec::new(),
            runtime: None,
            log_copy_bytes: None,
        }
    }

    pub async fn create(&self, spec: &Spec) -> Sandbox {
        let watched = Arc::new(self.refusals.expect());
        self.watched.lock().expect("not poisoned").insert(spec.run_id, Arc::clone(&watched));
        Sandbox::create(&self.engine, spec, &watched.profile(Told::RefusedAndAddresses))
            .await
            .expect("creates")
    }

    pub async fn started(&self, spec: &Spec) -> Sandbox {
        let sandbox = self.create(spec).await;
        sandbox.start().await.expect("starts");
        sandbox
    }

    /// What was counted of a sandbox that was made here.
    pub fn watched(&self, spec: &Spec) -> Arc<Watched> {
        Arc::clone(&self.watched.lock().expect("not poisoned")[&spec.run_id])
    }

    /// What it was refused, as `call form` with the count.
    pub fn refused(&self, spec: &Spec) -> BTreeMap<String, u64> {
        let tally = self.watched(spec);
        tally.tally().renew();
        let line = |one: Refused| (format!("{} {}", one.call, one.form).trim().to_owned(), one.count);
        tally.tally().take_news().unwrap_or_default().into_iter().map(line).collect()
    }

    /// Runs a specification to its end and removes it.
    pub async fn run(&self, spec: &Spec) -> Ended {
        let mut sandbox = self.started(spec).await;
        let ended = tokio::time::timeout(Duration::from_secs(120), sandbox.wait()).await;
        let ended = ended.expect("ends in time").expect("is waited for");
        sandbox.remove().await.expect("is removed");
        ended
    }

    /// Runs a script in a sandbox and returns what it wrote to `/workspace/out`.
    pub async fn output(&self, script: &str) -> String {
        let spec = self.spec(&format!("exec >/workspace/out 2>/workspace/err\n{script}"));
        let ended = self.run(&spec).await;
        let read = |name: &str| fs::read_to_string(spec.workspace.join(name)).unwrap_or_default();
        assert_eq!(ended.exit_code, 0, "{script}\n{}\n{}", read("out"), read("err"));
        read("out")
    }

    /// The same in a container without our walls: Docker's defaults, or none at all.
    pub async fn plain_output(&self, walls: Walls, script: &str) -> String {
        let spec = self.spec(&format!("exec >/workspace/out 2>/workspace/err\n{script}"));
        let bind = |host: &Path, inside: &str| format!("{}:{inside}", host.display());
        let security = |options: &[&str]| Some(options.iter().map(|option| (*option).to_owned()).collect());
        let body = ContainerCreateBody {
            image: Some(spec.image.to_string()),
            entrypoint: Some(vec!["/run/kage-shim".to_owned()]),
            user: (walls == Walls::DockersUser).then(|| format!("{UID}:{UID}")),
            labels: Some(HashMap::from([(LABEL.to_owned(), LABEL_VALUE.to_owned())])),
            host_config: Some(HostConfig {
                binds: Some(vec![bind(&spec.workspace, "/workspace"), bind(&spec.shim, "/run/kage-shim")]),
                privileged: Some(walls == Walls::None),
                security_opt: (walls == Walls::None).then(|| security(&["seccomp=unconfined"])).flatten(),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let api = self.engine.api();
        let made = api.create_container(None::<CreateContainerOptions>, body).await.expect("creates");
        let mut container = Sandbox::adopt(&self.engine, &made.id).await.expect("adopts");
        container.start().await.expect("starts");
        let ended = container.wait().await.expect("ends");
        container.remove().await.expect("is removed");
        let read = |name: &str| fs::read_to_string(spec.workspace.join(name)).unwrap_or_default();
        assert_eq!(ended.exit_code, 0, "{script}\n{}\n{}", read("out"), read("err"));
        read("out")
    }

    /// The probe, where a script finds it as `./probe`.
    pub fn give_probe(&self, spec: &Spec) {
        let to = spec.workspace.join("probe");
        fs::copy(probe(), &to).expect("copies");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
}

impl Drop for World {
    /// Removes what a failed test has left; and fails one that did not fail but left something.
    fn drop(&mut self) {
        let (instance, failed) = (self.instance.clone(), std::thread::panicking());
        let clean = move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let engine = Engine::connect(&engine_uri()).await.expect("connects");
                let left = list(&engine, &instance).await.expect("lists");
                for found in &left {
                    remove_raw(&engine, &found.id).await;
                }
                left.len()
            })
        };
        let left = std::thread::spawn(clean).join().expect("cleans up");
        assert!(failed || left == 0, "{left} containers were left");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Walls {
    /// What `docker run` gives by default.
    Dockers,
    /// The same, as the sandbox's user.
    DockersUser,
    /// `--privileged --security-opt seccomp=unconfined`.
    None,
}

pub fn write_program(path: &Path, text: &str) {
    fs::write(path, text).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// The compiled probe: static, so that it runs in any image.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sandbox/probe.c");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sandbox-probe");
        let made =
            Command::new("cc").args(["-static", "-O1", "-pthread", "-o"]).arg(&program).arg(&source).status();
        assert!(made.expect("these tests need a C compiler").success(), "the probe does not compile");
        program
    })
}

/// `name number` lines.
pub fn numbers(text: &str) -> HashMap<String, i32> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, number)| (name.to_owned(), number.parse().expect("a number")))
        .collect()
}

/// Removes by force what a test made without a [`Sandbox`].
pub async fn remove_raw(engine: &Engine, id: &str) {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    engine.api().remove_container(id, Some(options)).await.expect("is removed");
}

/// Waits until a condition holds, for at most a minute.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

pub const fn is_running(inspected: &Inspected) -> bool {
    matches!(inspected.state, kage::sandbox::container::ContainerState::Running)
}
