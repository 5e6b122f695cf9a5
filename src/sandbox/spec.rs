//! What a sandbox is made from. Its types cannot express a root user or an image by tag.

use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::limits::{Enforcement, Limits};
use crate::sandbox::remap::Users;

/// User and group inside the sandbox, which own the worktree. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SandboxUser {
    pub uid: NonZeroU32,
    pub gid: NonZeroU32,
    /// Who they are on the host.
    #[serde(skip)]
    on_host: (u32, u32),
}

impl SandboxUser {
    /// `None` for root, for the group of root, and for numbers that the engine does not take (over `i32::MAX`).
    pub fn new(uid: u32, gid: u32) -> Option<Self> {
        let usable = |id: u32| i32::try_from(id).ok().and_then(|_| NonZeroU32::new(id));
        Some(Self { uid: usable(uid)?, gid: usable(gid)?, on_host: (uid, gid) })
    }

    /// The same user, of an engine that does this with users. `None`: who it is on the host is not known, or it would
    /// be root there.
    pub fn of_engine(self, users: Users) -> Option<Self> {
        let on_host = users.on_host(self.uid.get(), self.gid.get())?;
        (on_host.0 != 0 && on_host.1 != 0).then_some(Self { on_host, ..self })
    }

    /// User and group as the host knows them: to whom its files are to be given there.
    pub const fn on_host(self) -> (u32, u32) {
        self.on_host
    }
}

/// An image by its content: `sha256:` and 64 hexadecimal digits. A tag can be moved; this cannot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageDigest(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an image digest (sha256: and 64 hexadecimal digits)")]
pub struct InvalidDigest(String);

impl ImageDigest {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageDigest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        match text.strip_prefix("sha256:") {
            Some(digits) if digits.len() == 64 && digits.bytes().all(hex) => Ok(Self(text.to_owned())),
            _ => Err(InvalidDigest(text.chars().take(100).collect())),
        }
    }
}

impl TryFrom<String> for ImageDigest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<ImageDigest> for String {
    fn from(digest: ImageDigest) -> Self {
        digest.0
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything that differs between two sandboxes. All else is the same for all of them ([`crate::sandbox::profile`]).
#[derive(Debug, Clone)]
pub struct Spec {
    /// Which installation this belongs to: two on one engine leave each other's containers alone.
    pub instance: String,
    pub run_id: Uuid,
    /// From 1.
    pub attempt: u32,
    pub image: ImageDigest,
    pub user: SandboxUser,
    pub limits: Limits,
    /// How the limits of the worktree are held; all others are hard.
    pub worktree_held: Enforcement,
    /// The run's worktree on the host; the only host files that the sandbox may change.
    pub workspace: PathBuf,
    /// The run's own folder on the host, with its sockets ([`crate::sandbox::shim_link`] prepares it). Read-only inside.
    pub io_dir: PathBuf,
    /// The folder on the host in which the gateway opens this run's socket, if it asks a model. Read-only inside.
    pub model_dir: Option<PathBuf>,
    /// The shim's program on the host.
    pub shim: PathBuf,
    /// Further paths inside that shall be writable, each an empty tmpfs of [`Limits::tmp_bytes`].
    pub writable: Vec<String>,
    /// Another OCI runtime (`runsc`, `kata`); from the operator's configuration only.
    pub runtime: Option<String>,
    /// Bytes of PID 1's own output that the engine keeps for `docker logs`; none by default.
    pub log_copy_bytes: Option<u64>,
}

/// Why a specification is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    #[error("{what} {path:?} is not an absolute UTF-8 path without `.` and `..`")]
    Path { what: &'static str, path: PathBuf },
    #[error("{0}")]
    Writable(#[from] InvalidWritable),
    #[error("limit {name} is {value}: it must be from {least} to {most}")]
    Limit { name: &'static str, value: u64, least: u64, most: u64 },
    #[error("instance label {0:?} is not a name")]
    Instance(String),
}

impl Spec {
    /// The container's name: short, and nothing in it tells a neighbour what runs.
    pub fn container_name(&self) -> String {
        let id = self.run_id.simple().to_string();
        // A version 7 id begins with the time; its end is random.
        format!("kage-{}-{}", &id[20..], self.attempt)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`InvalidSpec`] names the field.
    pub fn check(&self) -> Result<(), InvalidSpec> {
        let model = self.model_dir.as_ref().map(|path| ("model folder", path));
        for (what, path) in
            [("workspace", &self.workspace), ("run folder", &self.io_dir), ("shim", &self.shim)]
                .into_iter()
                .chain(model)
        {
            if !is_plain(path) {
                return Err(InvalidSpec::Path { what, path: path.clone() });
            }
        }
        for path in &self.writable {
            check_writable(path)?;
        }
        if self.instance.parse::<crate::domain::name::Name>().is_err() {
            return Err(InvalidSpec::Instance(self.instance.clone()));
        }
        let limits = &self.limits;
        let most = 1 << 50;
        for (name, value, least) in [
            ("memory_bytes", limits.memory_bytes, 16 << 20),
            ("cpu_millis", limits.cpu_millis, 10),
            ("pids", u64::from(limits.pids), 4),
            ("open_files", u64::from(limits.open_files), 16),
            ("file_bytes", limits.file_bytes, 4096),
            ("worktree_bytes", limits.worktree_bytes, 4096),
            ("worktree_inodes", limits.worktree_inodes, 16),
            ("tmp_bytes", limits.tmp_bytes, 4096),
        ] {
            // 0 means "no limit" to the engine, so there must be a least one.
            if value < least || value > most {
                return Err(InvalidSpec::Limit { name, value, least, most });
            }
        }
        Ok(())
    }
}

fn is_plain(path: &Path) -> bool {
    use std::path::Component;
    path.to_str().is_some_and(|text| !text.contains('\0'))
        && path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Why a writable path is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be a writable path: {reason}")]
pub struct InvalidWritable {
    pub path: String,
    pub reason: &'static str,
}

/// Where everything of the sandbox's own is mounted; none of it may be covered by a tmpfs.
const RESERVED: [&str; 9] =
    ["/proc", "/sys", "/dev", "/run", "/workspace", "/etc", "/tmp", "/home/agent", "/boot"];

/// Checks a path that shall be a writable tmpfs inside. `/dev/shm` is the one exception below
/// `/dev`: there is none unless asked for (Python's semaphores and Chromium want one).
///
/// # Errors
/// [`InvalidWritable`] says why.
pub fn check_writable(path: &str) -> Result<(), InvalidWritable> {
    let refuse = |reason| Err(InvalidWritable { path: path.to_owned(), reason });
    if path == "/dev/shm" {
        return Ok(());
    }
    let Some(rest) = path.strip_prefix('/') else { return refuse("it is not absolute") };
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+'))
    };
    if !rest.split('/').all(plain) {
        return refuse("it may have letters, digits and . _ - + only, no empty part, no . or ..");
    }
    let below =
        |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
    // Below HOME and /tmp all is writable already; another mount there would only hide it.
    if RESERVED.iter().any(|reserved| path == *reserved || below(path, reserved) || below(reserved, path)) {
        return refuse("it is at, above or below a path that the sandbox mounts itself");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cannot_express_root_or_a_tag() {
        for (uid, gid) in [(0, 0), (0, 1), (1, 0), (u32::MAX, 1), (1, u32::MAX), (1 << 31, 1)] {
            assert_eq!(SandboxUser::new(uid, gid), None, "{uid}:{gid}");
        }
        assert!(SandboxUser::new(10001, 10001).is_some());
        let digest = format!("sha256:{}", "a0".repeat(32));
        assert_eq!(digest.parse::<ImageDigest>().map(String::from), Ok(digest.clone()));
        for bad in [
            "",
            "debian",
            "debian:trixie",
            "sha256:abc",
            &digest[7..],
            &digest.to_uppercase(),
            &format!("{digest}0"),
        ] {
            assert!(bad.parse::<ImageDigest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_writable_path_cannot_cover_a_mount_of_the_sandbox() {
        for good in ["/var/tmp", "/opt/cli/cache", "/root", "/dev/shm", "/var/lib/x_y-1.2+3"] {
            assert_eq!(check_writable(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/",
            "var",
            "/run",
            "/run/kage",
            "/proc/sys",
            "/sys",
            "/dev",
            "/dev/mqueue",
            "/workspace",
            "/workspace/x",
            "/home",
            "/home/agent",
            "/etc",
            "/tmp/x",
            "/var/../etc",
            "/var//x",
            "/var/",
            "/a,b",
            "/a:b",
            "/a b",
            "/a\n",
            "/var/./x",
        ] {
            assert!(check_writable(bad).is_err(), "{bad:?}");
        }
    }
}
