//! `docker run` with the flags of our own sandboxes, read from the profile that the runner uses: what the engine's
//! own client does with the same walls.
//!
//! Two things it has no flag for: it cannot leave the network out, only choose `none` (which is slower), and it masks
//! the engine's own list of paths instead of ours.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bollard::models::{ContainerCreateBody, HostConfig};
use kage::domain::limits::Limits;
use kage::sandbox::profile::container_body;
use kage::sandbox::seccomp::SeccompProfile;
use kage::sandbox::spec::{SandboxUser, Spec};

use crate::stack::{IMAGE, Stack};

const UID: u32 = 10_001;

pub struct Peer {
    flags: Vec<String>,
    image: String,
}

impl Peer {
    pub fn new(stack: &Stack) -> Result<Self> {
        let folder = stack.folder.join("peer");
        let (workspace, io_dir) = (folder.join("workspace"), folder.join("io"));
        for path in [&folder, &workspace, &io_dir] {
            fs::create_dir(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o755))?;
        }
        chown(&workspace, Some(UID), Some(UID))?;
        for name in ["hosts", "resolv.conf"] {
            fs::write(io_dir.join(name), "")?;
        }
        let spec = Spec {
            instance: "bench".to_owned(),
            run_id: uuid::Uuid::nil(),
            attempt: 1,
            image: docker(&["image", "inspect", "--format", "{{.Id}}", IMAGE])?.trim().parse()?,
            user: SandboxUser::new(UID, UID).context("not root")?,
            limits: Limits::default(),
            worktree_held: kage::domain::limits::Enforcement::Soft,
            workspace,
            io_dir,
            model_dir: None,
            shim: stack.shim.clone(),
            writable: Vec::new(),
            runtime: None,
            log_copy_bytes: None,
        };
        let seccomp = SeccompProfile::built_in();
        let file = folder.join("seccomp.json");
        fs::write(&file, seccomp.json())?;
        Ok(Self { flags: flags(&container_body(&spec, &seccomp), &file)?, image: spec.image.to_string() })
    }

    /// `docker run` with these further flags, and a script for bash.
    pub fn run(&self, more: &[&str], script: &str) -> Command {
        let mut command = client();
        command.arg("run").args(&self.flags).args(more);
        command.args([&self.image, "/bin/bash", "-c", script]);
        command
    }
}

/// All of the profile that the client has a flag for. The log driver is the caller's.
fn flags(body: &ContainerCreateBody, seccomp: &Path) -> Result<Vec<String>> {
    let host = body.host_config.as_ref().context("a host configuration")?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut flags = vec![
        "--network=none".to_owned(),
        "--read-only".to_owned(),
        "--entrypoint=".to_owned(),
        "--no-healthcheck".to_owned(),
        format!("--user={}", text(&body.user)),
        format!("--hostname={}", text(&body.hostname)),
        format!("--workdir={}", text(&body.working_dir)),
        format!("--ipc={}", text(&host.ipc_mode)),
        "--cgroupns=private".to_owned(),
        "--security-opt=no-new-privileges:true".to_owned(),
        format!("--security-opt=seccomp={}", seccomp.display()),
    ];
    flags.extend(host.cap_drop.iter().flatten().map(|name| format!("--cap-drop={name}")));
    flags.extend(limits(host)?);
    for (path, options) in host.tmpfs.iter().flatten() {
        flags.push(format!("--tmpfs={path}:{options}"));
    }
    for mount in host.mounts.iter().flatten() {
        let read_only = if mount.read_only == Some(true) { ",readonly" } else { "" };
        let (source, target) = (text(&mount.source), text(&mount.target));
        flags.push(format!(
            "--mount=type=bind,source={source},target={target},bind-propagation=rprivate{read_only}"
        ));
    }
    Ok(flags)
}

fn limits(host: &HostConfig) -> Result<Vec<String>> {
    let mut flags = vec![
        format!("--memory={}", host.memory.context("a memory limit")?),
        format!("--memory-swap={}", host.memory_swap.context("a swap limit")?),
        format!("--pids-limit={}", host.pids_limit.context("a process limit")?),
        format!("--cpus={}", host.nano_cpus.context("a processor limit")? as f64 / 1e9),
        format!("--oom-score-adj={}", host.oom_score_adj.context("an OOM score")?),
    ];
    for limit in host.ulimits.iter().flatten() {
        let (name, soft, hard) = (limit.name.as_deref(), limit.soft, limit.hard);
        let (name, soft, hard) = (name.context("a name")?, soft.context("soft")?, hard.context("hard")?);
        flags.push(format!("--ulimit={name}={soft}:{hard}"));
    }
    Ok(flags)
}

/// The distribution's client where there is one: another on the path may have no engine behind it.
pub fn client() -> Command {
    let packaged = Path::new("/usr/bin/docker");
    let mut command = Command::new(if packaged.exists() { packaged } else { Path::new("docker") });
    command.env("DOCKER_HOST", "unix:///var/run/docker.sock").env_remove("DOCKER_CONTEXT");
    command
}

pub fn docker(args: &[&str]) -> Result<String> {
    let output = client().args(args).output().context("docker")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker {}: {}", args.join(" "), error.trim());
    Ok(String::from_utf8(output.stdout)?)
}
