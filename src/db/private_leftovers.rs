//! What a private cluster that was killed, or whose host was, has left: files that name a process. After a restart of the host
//! that number may be anybody's, another PostgreSQL server's of the same user too, and a server that starts would wait for it
//! for ever.

use std::fs;
use std::io;
use std::path::Path;

/// With these a server says that it runs.
pub(super) const LOCK: &str = "postmaster.pid";
const SOCKET_LOCK: &str = ".s.PGSQL.5432.lock";

/// Removes them if no process works in the cluster. The caller holds the folder's lock, so none is started meanwhile.
///
/// Whoever is named in them is not asked: a server and all that it has begun stand in its data folder, and only they do. One of
/// them may outlive the first, and holds the shared memory that a second server must not work beside.
///
/// # Errors
/// If processes cannot be listed, or a file cannot be removed.
pub(super) fn remove(data: &Path, socket: &Path) -> io::Result<()> {
    let lock = data.join(LOCK);
    if !lock.exists() || works_in(&data.canonicalize()?)? {
        return Ok(());
    }
    tracing::warn!(path = %lock.display(), "cluster.leftover_lock: nobody works in it, so it is removed");
    // The one that keeps others away goes last.
    for path in [socket.join(SOCKET_LOCK), lock] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a process stands in this folder. Those that hide it are other users', and no server of ours.
fn works_in(folder: &Path) -> io::Result<bool> {
    let stands = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        fs::read_link(entry.path().join("cwd")).ok()
    };
    Ok(fs::read_dir("/proc")?.filter_map(stands).any(|standing| standing == folder))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn they_stay_while_somebody_works_there_whoever_they_name() {
        let root = tempfile::tempdir().unwrap();
        let (data, socket) = (root.path().join("data"), root.path().join("socket"));
        let (lock, other) = (data.join(LOCK), socket.join(SOCKET_LOCK));
        for folder in [&data, &socket] {
            fs::create_dir(folder).unwrap();
        }
        for path in [&lock, &other] {
            // A process that is there for certain.
            fs::write(path, format!("{}\n", std::process::id())).unwrap();
        }
        let mut backend = Command::new("cat").current_dir(&data).stdin(Stdio::piped()).spawn().unwrap();
        remove(&data, &socket).unwrap();
        assert!(lock.exists() && other.exists());
        drop(backend.stdin.take());
        backend.wait().unwrap();
        remove(&data, &socket).unwrap();
        assert!(!lock.exists() && !other.exists());
        remove(&data, &socket).unwrap();
    }
}
