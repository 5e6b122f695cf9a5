//! What can be found out about the host beneath the sandboxes: from the engine, and from this kernel's own files.
//! It reads, and changes nothing.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bollard::models::SystemVersionComponents;

use crate::sandbox::engine::Engine;
use crate::sandbox::error::SandboxError;
use crate::sandbox::remap::{self, Users};

/// Mode bits and owner of the engine's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketFacts {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// The mount that a folder is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFacts {
    pub at: String,
    pub kind: String,
    /// Those of the mount itself, separated by commas.
    pub options: String,
}

/// Everything that [`crate::sandbox::host_check::judge`] looks at. A text that is not known is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    pub engine: String,
    /// Docker's API, spoken by Podman.
    pub is_podman: bool,
    pub containerd: String,
    pub containerd_revision: String,
    pub runc: String,
    /// A distributor's revision, where it is a distributor's.
    pub runc_revision: String,
    /// Release (`uname -r`).
    pub kernel: String,
    /// Build (`uname -v`), where distributors say which one theirs is.
    pub kernel_build: String,
    /// With which sandboxes are made.
    pub runtime: String,
    /// Such as `name=seccomp,profile=builtin`.
    pub security_options: Vec<String>,
    /// What the engine does with the users of its containers.
    pub users: Users,
    /// Whether this process is root, and so may give files away.
    pub is_root: bool,
    pub cgroup_version: String,
    /// What sandboxes are limited in, and whether the engine can.
    pub limits: Vec<(&'static str, bool)>,
    pub live_restore: bool,
    pub authorization_plugins: Vec<String>,
    pub socket: Option<SocketFacts>,
    pub core_pattern: String,
    pub data: Option<MountFacts>,
}

impl HostFacts {
    pub fn is_rootless(&self) -> bool {
        self.security_options.iter().any(|option| option.starts_with("name=rootless"))
    }

    /// Asks the engine, and looks at this host. `runtime`: the operator's choice, if he made one.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn gather(engine: &Engine, runtime: Option<&str>, data: &Path) -> Result<Self, SandboxError> {
        let within = engine.deadlines().ask;
        let info = engine.call("info", within, engine.api().info()).await?;
        let version = engine.call("version", within, engine.api().version()).await?;
        let components = version.components.unwrap_or_default();
        let (containerd, containerd_revision) = component(&components, "containerd");
        let (runc, runc_revision) = component(&components, "runc");
        let system = rustix::system::uname();
        let limits = [
            ("memory", info.memory_limit),
            ("swap", info.swap_limit),
            ("CPU time", info.cpu_cfs_quota),
            ("processes", info.pids_limit),
        ];
        let security_options = info.security_options.unwrap_or_default();
        let root_dir = info.docker_root_dir.unwrap_or_default();
        Ok(Self {
            users: Users::of(&security_options, &root_dir, remap::sees_all()),
            is_root: rustix::process::geteuid().is_root(),
            is_podman: components.iter().any(|one| one.name.starts_with("Podman")),
            engine: version.version.unwrap_or_default(),
            containerd,
            containerd_revision,
            runc,
            runc_revision,
            kernel: info.kernel_version.unwrap_or_default(),
            kernel_build: system.version().to_string_lossy().into_owned(),
            runtime: runtime.map(str::to_owned).or(info.default_runtime).unwrap_or_default(),
            security_options,
            cgroup_version: info.cgroup_version.map(|version| version.to_string()).unwrap_or_default(),
            limits: limits.map(|(name, has)| (name, has == Some(true))).into(),
            live_restore: info.live_restore_enabled.unwrap_or_default(),
            authorization_plugins: info.plugins.and_then(|plugins| plugins.authorization).unwrap_or_default(),
            socket: socket(engine.uri()),
            core_pattern: first_line("/proc/sys/kernel/core_pattern"),
            data: fs::read_to_string("/proc/self/mountinfo").ok().and_then(|table| mount_of(&table, data)),
        })
    }
}

/// Version and revision of a part of the engine.
fn component(components: &[SystemVersionComponents], name: &str) -> (String, String) {
    let Some(found) = components.iter().find(|one| one.name == name) else { return Default::default() };
    let details = serde_json::to_value(&found.details).unwrap_or_default();
    let revision = details["GitCommit"].as_str().unwrap_or_default();
    (found.version.clone(), revision.to_owned())
}

fn socket(uri: &str) -> Option<SocketFacts> {
    let path = uri.strip_prefix("unix://").unwrap_or(uri);
    let found = fs::metadata(path).ok()?;
    Some(SocketFacts { mode: found.mode() & 0o7777, uid: found.uid(), gid: found.gid() })
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// The mount that a path is on, by a `mountinfo` (proc(5)): the longest mount point above it, of those the last.
fn mount_of(table: &str, path: &Path) -> Option<MountFacts> {
    // A folder that is to be made is on the mount of what is there already.
    let path = path.ancestors().find_map(|folder| fs::canonicalize(folder).ok())?;
    let mounts = table.lines().filter_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let (at, options) = (unescape(fields.get(4)?), (*fields.get(5)?).to_owned());
        path.starts_with(&at).then(|| MountFacts {
            at,
            kind: rest.split(' ').next().unwrap_or_default().to_owned(),
            options,
        })
    });
    mounts.max_by_key(|mount| mount.at.len())
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_on_the_nearest_mount_above_it() {
        let table = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
                     23 22 0:5 / /usr rw,nosuid,nodev - tmpfs none rw\n\
                     24 22 0:6 / /us rw,noexec - tmpfs none rw\n";
        let found = mount_of(table, Path::new("/usr/lib/not/there/yet")).expect("found");
        assert_eq!((&*found.at, &*found.kind, &*found.options), ("/usr", "tmpfs", "rw,nosuid,nodev"));
        let found = mount_of(table, Path::new("/etc")).expect("found");
        assert_eq!((&*found.at, &*found.kind), ("/", "ext4"));
        assert_eq!(mount_of("", Path::new("/etc")), None);
    }
}
