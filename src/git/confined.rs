//! A git process that faces hostile input: another user than ours, no capabilities, none to be gained, and limits.

use std::{fs, os::unix::fs::chown, path::Path, process::Command, time::Duration};

use crate::git::error::GitError;

/// Bytes of heap; what git maps of packs is not counted.
const HEAP: u64 = 4 << 30;
const OPEN_FILES: u64 = 4096;
/// Threads of git that may work side by side.
const CPUS: u64 = 4;

/// Whom a process runs as, and within which limits.
#[derive(Clone, Debug)]
pub(crate) struct Confined {
    /// User and group; `None`: our own, who are not root then.
    pub user: Option<(u32, u32)>,
    /// Bytes of one file that it writes.
    pub file_bytes: u64,
    /// Wall-clock time, as somebody else watches it; here for the CPU's.
    pub time: Duration,
    pub network: Network,
}

/// The one host that it may speak to, and where that is: nobody looks the name up again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    /// `http.curloptResolve`.
    pub resolve: Option<String>,
    /// Options of ssh.
    pub ssh: Option<String>,
}

impl Confined {
    /// The command that becomes `git` in the end: `prlimit` and `setpriv` (util-linux) do what needs privileges,
    /// each and then is no more.
    pub fn command(&self) -> Command {
        let mut command = Command::new("prlimit");
        let cpu = self.time.as_secs().saturating_mul(CPUS).max(1);
        command.arg("--core=0").arg(format!("--nofile={OPEN_FILES}")).arg(format!("--data={HEAP}"));
        command.arg(format!("--fsize={}", self.file_bytes)).arg(format!("--cpu={cpu}"));
        command.args(["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"]);
        if let Some((uid, gid)) = self.user {
            command.arg("--bounding-set=-all").arg("--clear-groups");
            command.arg(format!("--regid={gid}")).arg(format!("--reuid={uid}"));
        }
        command.arg("git");
        command
    }

    /// Gives a file or folder of ours to the process.
    pub fn give(&self, path: &Path) -> Result<(), GitError> {
        let Some((uid, gid)) = self.user else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(GitError::io("give away", path))
    }

    /// Whether the process can come to a folder of ours at all; else git's own words would say nothing.
    pub fn reaches(&self, folder: &Path) -> Result<(), GitError> {
        if self.user.is_none() {
            return Ok(());
        }
        for above in folder.ancestors().skip(1) {
            let stat = fs::metadata(above).map_err(GitError::io("stat", above))?;
            if std::os::unix::fs::PermissionsExt::mode(&stat.permissions()) & 0o001 == 0 {
                let reason = "users without privileges cannot pass through it (chmod o+x)";
                return Err(GitError::Staging { path: above.to_owned(), reason });
            }
        }
        Ok(())
    }
}
