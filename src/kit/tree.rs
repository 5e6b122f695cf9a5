//! Files below a folder that a CLI wrote. No link is followed; the CLI's processes are gone when this is used.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

const MOST_ENTRIES: usize = 20_000;
const MOST_DEPTH: usize = 32;
/// Bytes of one file that are looked at.
const MOST_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As the sandbox sees it.
    pub path: String,
    /// The beginning of a regular file; empty for all else.
    pub bytes: Vec<u8>,
}

/// All files below `folder`, which the sandbox sees at `seen_at`. Folders are not named.
///
/// # Errors
/// The folder itself cannot be listed.
pub fn walk(folder: &Path, seen_at: &str, leave_out: &str) -> std::io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    fs::read_dir(folder)?;
    visit(folder, seen_at, leave_out, 0, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn visit(folder: &Path, seen_at: &str, leave_out: &str, depth: usize, found: &mut Vec<Entry>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if found.len() >= MOST_ENTRIES || depth >= MOST_DEPTH {
            return;
        }
        let name = entry.file_name();
        if !leave_out.is_empty() && name == leave_out {
            continue;
        }
        let path = format!("{seen_at}/{}", name.to_string_lossy());
        // Of the entry itself, not of what it may point to.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => visit(&entry.path(), &path, leave_out, depth + 1, found),
            Ok(kind) if kind.is_file() => found.push(Entry { path, bytes: beginning(&entry.path()) }),
            Ok(_) => found.push(Entry { path, bytes: Vec::new() }),
            Err(_) => {}
        }
    }
}

fn beginning(path: &Path) -> Vec<u8> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut bytes = Vec::new();
    let flags = i32::try_from(flags).unwrap_or_default();
    if let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(path) {
        // What cannot be read is as good as empty.
        let _ = file.take(MOST_BYTES).read_to_end(&mut bytes);
    }
    bytes
}

/// Those of `after` that are not in `before`, or differ.
pub fn changed(before: &[Entry], after: Vec<Entry>) -> Vec<Entry> {
    let known: BTreeMap<&str, &[u8]> =
        before.iter().map(|entry| (entry.path.as_str(), &entry.bytes[..])).collect();
    after.into_iter().filter(|entry| known.get(entry.path.as_str()) != Some(&&entry.bytes[..])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_changed_and_follows_nothing() {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/.git")).expect("mkdir");
        fs::write(at("a/kept"), "1").expect("write");
        fs::write(at("a/edited"), "1").expect("write");
        fs::write(at("a/.git/x"), "1").expect("write");
        let before = walk(folder.path(), "/workspace", ".git").expect("walks");
        assert_eq!(before.len(), 2);
        fs::write(at("a/edited"), "2").expect("write");
        std::os::unix::fs::symlink("/etc", at("link")).expect("symlink");
        let after = walk(folder.path(), "/workspace", ".git").expect("walks");
        let changed: Vec<_> = changed(&before, after).into_iter().map(|entry| entry.path).collect();
        assert_eq!(changed, ["/workspace/a/edited", "/workspace/link"]);
        assert!(walk(&at("none"), "", "").is_err());
    }
}
