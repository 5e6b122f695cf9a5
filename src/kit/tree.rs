//! Files below a folder that a CLI wrote. Both the CLI and its image are hostile: every step names one entry beneath
//! an open folder and follows no link. The CLI's processes are gone when this is used.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Dir, FileType, FsWord, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const MOST_ENTRIES: usize = 20_000;
const MOST_DEPTH: usize = 32;
/// Bytes of one file that are looked at.
const MOST_BYTES: u64 = 1 << 20;
/// Bytes of all files of a folder that are looked at.
const MOST_IN_ALL: u64 = 256 << 20;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Without waiting for a FIFO's writer.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// Nothing above the folder, no links of any kind, no other mounts.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// The kernel's `TMPFS_MAGIC`.
const TMPFS: FsWord = 0x0102_1994;

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
pub fn walk(folder: &Path, seen_at: &str, leave_out: &str) -> io::Result<Vec<Entry>> {
    let root = fs::open(folder, FOLDER, Mode::empty())?;
    Walk::new(leave_out).run(&root, seen_at)
}

/// All files of the tmpfs that a sandbox has at `path`; `pid` is its first process.
///
/// The image decides what lies on the way: an absolute link in it leads to the place in the sandbox that it leads to
/// there, and never to one of the host. What is no tmpfs at its end is not what the profile mounts, and is not read.
///
/// # Errors
/// It cannot be listed, or is no tmpfs.
pub fn walk_tmpfs(pid: u32, path: &str) -> io::Result<Vec<Entry>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The kernel's own link, which only the root folder of that process can be behind.
    let root = fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())?;
    let folder = open_in(root.as_fd(), path)?;
    if fs::fstatfs(&folder)?.f_type != TMPFS {
        return Err(io::Error::other(format!("{path} is no tmpfs")));
    }
    Walk::new("").run(&folder, path)
}

/// Opens a folder as a process would whose root folder `root` is.
fn open_in(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    retrying(|| fs::openat2(root, path, flags, Mode::empty(), resolve))
}

/// `openat2` answers EAGAIN when a rename anywhere raced with it.
fn retrying(open: impl Fn() -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
    for _ in 0..64 {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    open()
}

struct Walk<'a> {
    leave_out: &'a str,
    found: Vec<Entry>,
    /// Bytes that may still be read.
    left: u64,
}

impl<'a> Walk<'a> {
    fn new(leave_out: &'a str) -> Self {
        Self { leave_out, found: Vec::new(), left: MOST_IN_ALL }
    }

    fn run(mut self, root: &OwnedFd, seen_at: &str) -> io::Result<Vec<Entry>> {
        self.folder(root, seen_at, 0)?;
        self.found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(self.found)
    }

    fn folder(&mut self, folder: &OwnedFd, seen_at: &str, depth: usize) -> io::Result<()> {
        let mut entries = Dir::read_from(folder)?;
        while let Some(Ok(entry)) = entries.read() {
            if self.found.len() >= MOST_ENTRIES {
                return Ok(());
            }
            let name = entry.file_name();
            if [c".", c".."].contains(&name) || (name.to_bytes() == self.leave_out.as_bytes()) {
                continue;
            }
            let path = format!("{seen_at}/{}", name.to_string_lossy());
            let open = |flags| retrying(|| fs::openat2(folder, name, flags, Mode::empty(), BENEATH));
            // Of the entry itself, not of what it may point to.
            let stat = fs::statat(folder, name, fs::AtFlags::SYMLINK_NOFOLLOW);
            match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                // What cannot be looked into is as good as empty.
                Ok(FileType::Directory) if depth < MOST_DEPTH => {
                    if let Ok(inner) = open(FOLDER) {
                        let _ = self.folder(&inner, &path, depth + 1);
                    }
                }
                Ok(FileType::RegularFile) => {
                    let bytes = open(FILE).map(|file| self.beginning(file)).unwrap_or_default();
                    self.found.push(Entry { path, bytes });
                }
                Ok(_) => self.found.push(Entry { path, bytes: Vec::new() }),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn beginning(&mut self, file: OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        let regular =
            fs::fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        if regular {
            let _ = File::from(file).take(MOST_BYTES.min(self.left)).read_to_end(&mut bytes);
        }
        self.left = self.left.saturating_sub(bytes.len() as u64);
        bytes
    }
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
    use std::fs::{create_dir_all, read_dir, read_to_string, write};
    use std::os::unix::fs::symlink;

    #[test]
    fn finds_what_changed_and_follows_nothing() {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| folder.path().join(name);
        create_dir_all(at("a/.git")).expect("mkdir");
        write(at("a/kept"), "1").expect("write");
        write(at("a/edited"), "1").expect("write");
        write(at("a/.git/x"), "1").expect("write");
        let before = walk(folder.path(), "/workspace", ".git").expect("walks");
        assert_eq!(before.len(), 2);
        write(at("a/edited"), "2").expect("write");
        symlink("/etc", at("link")).expect("symlink");
        symlink("/etc/hostname", at("a/file")).expect("symlink");
        let after = walk(folder.path(), "/workspace", ".git").expect("walks");
        let changed = changed(&before, after);
        let paths: Vec<_> = changed.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["/workspace/a/edited", "/workspace/a/file", "/workspace/link"]);
        assert!(changed[1].bytes.is_empty() && changed[2].bytes.is_empty());
        assert!(walk(&at("none"), "", "").is_err());
        assert!(walk(&at("link"), "", "").is_err(), "a link in the folder's own place");
    }

    /// What an image may have at `/home/agent`: a link that is absolute, as the image sees it.
    #[test]
    fn a_link_of_the_image_never_leads_to_the_host() {
        let (image, host) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        write(host.path().join("secret"), "of the host").expect("write");
        create_dir_all(image.path().join("home")).expect("mkdir");
        let link = image.path().join("home/agent");
        symlink(host.path(), &link).expect("symlink");
        // The attack, without the guard.
        assert_eq!(read_to_string(link.join("secret")).expect("reads"), "of the host");
        assert_eq!(read_dir(&link).expect("lists").count(), 1);
        let root = fs::open(image.path(), FOLDER, Mode::empty()).expect("opens");
        assert_eq!(open_in(root.as_fd(), "/home/agent").err(), Some(Errno::NOENT));
        // The same link is good where the image has what it names, and climbing ends at its root.
        let named = image.path().join(host.path().strip_prefix("/").expect("absolute"));
        create_dir_all(&named).expect("mkdir");
        write(named.join("own"), "of the image").expect("write");
        for target in [
            host.path().to_owned(),
            Path::new("../../../../..").join(host.path().strip_prefix("/").expect("absolute")),
        ] {
            std::fs::remove_file(&link).expect("unlink");
            symlink(target, &link).expect("symlink");
            let folder = open_in(root.as_fd(), "/home/agent").expect("opens");
            let found = Walk::new("").run(&folder, "/home/agent").expect("walks");
            assert_eq!(
                found,
                [Entry { path: "/home/agent/own".to_owned(), bytes: b"of the image".to_vec() }]
            );
        }
        std::fs::remove_file(&link).expect("unlink");
        symlink("/proc/self/root", &link).expect("symlink");
        assert!(open_in(root.as_fd(), "/home/agent").is_err());
    }

    #[test]
    fn only_a_tmpfs_is_read() {
        let own = std::process::id();
        assert!(walk_tmpfs(own, "/proc").is_err_and(|error| error.to_string().contains("no tmpfs")));
        assert!(walk_tmpfs(own, "/no/such/folder").is_err());
    }

    #[test]
    fn what_is_read_has_a_bound() {
        let folder = tempfile::tempdir().expect("tempdir");
        write(folder.path().join("a"), [b'x'; 100]).expect("write");
        write(folder.path().join("b"), [b'x'; 100]).expect("write");
        let root = fs::open(folder.path(), FOLDER, Mode::empty()).expect("opens");
        let found = Walk { left: 150, ..Walk::new("") }.run(&root, "").expect("walks");
        assert_eq!(found.iter().map(|entry| entry.bytes.len()).sum::<usize>(), 150);
        assert_eq!(found.len(), 2);
    }
}
