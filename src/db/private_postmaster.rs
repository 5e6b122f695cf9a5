//! The first process of a private cluster, seen from outside: whether it still runs, and whether one of another folder thinks
//! that this one is its own.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt as _;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::db::private_leftovers::LOCK;

/// A running postmaster, held by a descriptor: its number may be another's one day, this cannot.
#[derive(Debug, Clone)]
pub struct Postmaster {
    pid: u32,
    /// Readable once it has ended, reaped or not.
    process: Arc<AsyncFd<OwnedFd>>,
}

impl Postmaster {
    /// The one that the cluster's lock names. It must have answered just now.
    ///
    /// # Errors
    /// If there is none.
    #[expect(
        deprecated,
        reason = "its other form is unsafe; the descriptor is owned here for as long as it is watched"
    )]
    pub(super) fn of(data: &Path) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "its lock names no process");
        let pid = named(data).ok_or_else(none)?;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(none)?;
        let process = pidfd_open(raw, PidfdFlags::empty())?;
        Ok(Self { pid, process: Arc::new(AsyncFd::with_interest(process, Interest::READABLE)?) })
    }

    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        // An error only says that the runtime ends.
        if self.process.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether somebody who waited in [`Self::ended`] has seen its end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended().now_or_never().is_some()
    }
}

/// The process that the lock in a data folder names.
fn named(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join(LOCK)).ok()?.lines().next()?.trim().parse().ok()
}

/// A postmaster that was started with this data folder's path and does not work in it under its lock: the folder was moved away
/// from under it, or emptied, and at its end it writes to the path that it knows. Also where nothing is at the path now.
///
/// # Errors
/// If processes cannot be listed.
pub(super) fn stranger(data: &Path) -> io::Result<Option<u32>> {
    let data = std::path::absolute(data)?;
    let own = named(&data);
    let mut started = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) else {
            continue;
        };
        if folder_of(pid).is_some_and(|folder| is_same(pid, &folder, &data)) {
            started.push(pid);
        }
    }
    // A child of one has its words until it has its own.
    let is_child = |pid: u32| parent(pid).is_some_and(|parent| started.contains(&parent));
    let is_ours = |pid: u32| {
        // Who hides where it stands is judged by the lock alone.
        let stands = fs::read_link(format!("/proc/{pid}/cwd")).ok();
        own == Some(pid) && stands.is_none_or(|stands| data.canonicalize().is_ok_and(|data| data == stands))
    };
    Ok(started.iter().copied().find(|pid| !is_child(*pid) && !is_ours(*pid)))
}

/// The data folder that a postmaster's command line names.
fn folder_of(pid: u32) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&str> =
        line.split(|byte| *byte == 0).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let (program, arguments) = words.split_first()?;
    if Path::new(program).file_name()? != "postgres" {
        return None;
    }
    let at = arguments.iter().position(|word| *word == "-D")?;
    arguments.get(at + 1).map(PathBuf::from)
}

/// Whether the path means this folder for that process, which may have another root. Where that cannot be seen, the words count.
fn is_same(pid: u32, folder: &Path, data: &Path) -> bool {
    let below = folder.strip_prefix("/").unwrap_or(folder);
    let seen = fs::metadata(Path::new("/proc").join(pid.to_string()).join("root").join(below));
    match (seen, fs::metadata(data)) {
        (Ok(seen), Ok(ours)) => (seen.dev(), seen.ino()) == (ours.dev(), ours.ino()),
        _ => folder == data,
    }
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// With the command line of a postmaster, standing where one does.
    fn postmaster(data: &Path, stands: &Path) -> Child {
        let words = format!("read wait # postgres -D {}", data.display());
        let mut command = Command::new("/bin/sh");
        command.arg0("postgres").args(["-c", &words, "-D"]).arg(data).current_dir(stands);
        command.stdin(Stdio::piped()).spawn().expect("starts")
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().expect("our child");
    }

    #[test]
    fn one_whose_folder_was_moved_away_is_found_wherever_it_stands() {
        let root = tempfile::tempdir().expect("a folder");
        let (data, old) = (root.path().join("data"), root.path().join("data.old"));
        fs::create_dir(&data).expect("a folder");
        assert_eq!(stranger(&data).expect("lists"), None);
        let running = postmaster(&data, &data);
        fs::write(data.join(LOCK), format!("{}\n", running.id())).expect("writes");
        assert_eq!(stranger(&data).expect("lists"), None, "it is this folder's own");
        fs::rename(&data, &old).expect("moves");
        assert_eq!(stranger(&data).expect("lists"), Some(running.id()), "nothing is there");
        fs::create_dir(&data).expect("a folder");
        assert_eq!(stranger(&data).expect("lists"), Some(running.id()), "another is there");
        fs::copy(old.join(LOCK), data.join(LOCK)).expect("copies");
        assert_eq!(stranger(&data).expect("lists"), Some(running.id()), "a copy of the lock is there");
        assert_eq!(stranger(&old).expect("lists"), None, "it was started with another path");
        end(running);
        assert_eq!(stranger(&data).expect("lists"), None);
    }

    #[tokio::test]
    async fn its_end_is_seen_though_nobody_reaps_it() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(Postmaster::of(root.path()).is_err());
        let mut child = postmaster(root.path(), root.path());
        fs::write(root.path().join(LOCK), format!("{}\n", child.id())).expect("writes");
        let seen = Postmaster::of(root.path()).expect("it runs");
        assert!(!seen.has_ended());
        drop(child.stdin.take());
        seen.ended().await;
        assert!(seen.has_ended());
        child.wait().expect("our child");
    }
}
