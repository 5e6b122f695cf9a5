//! What is mounted here, which devices there are, and which sockets.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use kage_shim::containment::Mount;
use rustix::fs::Access;

use crate::proof::text;

/// Sockets come into a sandbox with what is mounted here; an image's own have nobody behind them.
const SOCKET_FOLDERS: [&str; 4] = ["/run", "/run/kage", "/run/model", "/tmp"];

pub fn mounts() -> Vec<Mount> {
    match text("/proc/self/mountinfo") {
        Ok(table) => table.lines().map(|line| parse(line).unwrap_or_else(|| unreadable(line))).collect(),
        Err(error) => vec![unreadable(&error)],
    }
}

/// A line that makes no sense must not go unseen.
fn unreadable(line: &str) -> Mount {
    Mount { at: format!("unreadable: {line}"), ..Mount::default() }
}

/// `id parent device root mountpoint options [tags] - type source super-options` (proc_pid_mountinfo(5)).
fn parse(line: &str) -> Option<Mount> {
    let (of_mount, of_system) = line.split_once(" - ")?;
    let mut fields = of_mount.split(' ').skip(4);
    let (at, options) = (fields.next()?.to_owned(), fields.next()?);
    let mut fields = of_system.split(' ');
    let (kind, system_options) = (fields.next()?.to_owned(), fields.nth(1)?);
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let is_size = |option: &String| option.starts_with("size=") || option.starts_with("nr_inodes=");
    let size =
        if kind == "tmpfs" { list(system_options).into_iter().filter(is_size).collect() } else { vec![] };
    let writable = rustix::fs::access(&at, Access::WRITE_OK).is_ok();
    Some(Mount { at, kind, options: list(options), size, writable })
}

pub fn devices() -> BTreeMap<String, String> {
    let Ok(entries) = std::fs::read_dir("/dev") else {
        return BTreeMap::from([("/dev".to_owned(), "unreadable".to_owned())]);
    };
    let kind = |entry: &std::fs::DirEntry| match kind_of(entry) {
        Ok(kind) if kind.is_char_device() => "character",
        Ok(kind) if kind.is_block_device() => "block",
        Ok(kind) if kind.is_symlink() => "link",
        Ok(kind) if kind.is_dir() => "folder",
        _ => "other",
    };
    let named = |entry: std::fs::DirEntry| {
        (entry.file_name().to_string_lossy().into_owned(), kind(&entry).to_owned())
    };
    entries.flatten().map(named).collect()
}

pub fn sockets() -> Vec<String> {
    let mut found: Vec<String> =
        SOCKET_FOLDERS.iter().flat_map(|folder| in_folder(Path::new(folder))).collect();
    match text("/proc/net/unix") {
        // The eighth field is its name, if it has one.
        Ok(table) => found.extend(
            table
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(7).map(|name| format!("listening: {name}"))),
        ),
        Err(error) => found.push(error),
    }
    found
}

/// Of what is mounted there; the entry itself may be a file that was only made to be mounted on.
fn kind_of(entry: &std::fs::DirEntry) -> std::io::Result<std::fs::FileType> {
    Ok(std::fs::symlink_metadata(entry.path())?.file_type())
}

fn in_folder(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_socket = |entry: &std::fs::DirEntry| kind_of(entry).is_ok_and(|kind| kind.is_socket());
    entries.flatten().filter(is_socket).map(|entry| entry.path().display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_and_without_tags() {
        let line = "712 700 0:83 / /tmp rw,nosuid,nodev,relatime shared:4 master:2 - tmpfs tmpfs rw,size=8192k,nr_inodes=2k,mode=1777";
        let mount = parse(line).expect("a whole line");
        assert_eq!((mount.at.as_str(), mount.kind.as_str()), ("/tmp", "tmpfs"));
        assert_eq!(mount.options, ["rw", "nosuid", "nodev", "relatime"]);
        assert_eq!(mount.size, ["size=8192k", "nr_inodes=2k"]);
        let line = "1 0 0:1 / / ro - overlay overlay rw,lowerdir=/var/lib/secret:/x";
        let mount = parse(line).expect("a whole line");
        assert_eq!((mount.at.as_str(), mount.size.len()), ("/", 0));
        assert!(!format!("{mount:?}").contains("secret"), "nothing of the host");
        for broken in ["", "1 2 3", "1 0 0:1 / / ro - overlay"] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }
}
