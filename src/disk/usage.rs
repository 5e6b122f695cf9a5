//! What a tree takes on its disk, where no kernel limit holds it: a walk of bounded cost.
//!
//! The tree may be changed by a hostile program meanwhile: every step goes by descriptor, follows no link and crosses
//! no mount.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, open, openat2, statat};
use rustix::io::Errno;

/// Folders one in another; a tree beyond that is over the limit, whatever is in it.
const DEPTH: usize = 256;
/// Of a block in `st_blocks` (`man 2 stat`).
const SECTOR: u64 = 512;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What a tree may take.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    pub bytes: u64,
    pub inodes: u64,
}

/// Which limit a tree is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Bytes,
    Inodes,
    Depth,
}

/// One folder on the way down, with its folders that are still to be seen.
struct Level {
    folder: OwnedFd,
    waiting: Vec<CString>,
}

/// Walks `root` until it is done or a limit is passed: at most as many entries as may be there. Files with several
/// names count at each.
///
/// # Errors
/// `root` cannot be read. What vanishes, or is closed to us, further down does not count.
pub fn over(root: &Path, allowance: Allowance) -> io::Result<Option<Over>> {
    let mut seen = Seen { allowance, bytes: 0, inodes: 0 };
    let mut levels = Vec::new();
    let root = open(root, FOLDER, Mode::empty())?;
    let (level, over) = seen.folder(root)?;
    if over.is_some() {
        return Ok(over);
    }
    levels.push(level);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.waiting.pop() else {
            levels.pop();
            continue;
        };
        let Ok(folder) = openat2(&level.folder, &name, FOLDER, Mode::empty(), INSIDE) else { continue };
        if levels.len() >= DEPTH {
            return Ok(Some(Over::Depth));
        }
        let Ok((level, over)) = seen.folder(folder) else { continue };
        if over.is_some() {
            return Ok(over);
        }
        levels.push(level);
    }
    Ok(None)
}

struct Seen {
    allowance: Allowance,
    bytes: u64,
    inodes: u64,
}

impl Seen {
    /// Counts what is in a folder.
    fn folder(&mut self, folder: OwnedFd) -> io::Result<(Level, Option<Over>)> {
        let mut waiting = Vec::new();
        let mut entries = Dir::read_from(&folder)?;
        let mut over = None;
        while over.is_none()
            && let Some(entry) = entries.read()
        {
            let entry = entry?;
            if [c".", c".."].contains(&entry.file_name()) {
                continue;
            }
            if self.entry(&folder, entry.file_name())? {
                waiting.push(entry.file_name().to_owned());
            }
            over = self.over();
        }
        Ok((Level { folder, waiting }, over))
    }

    /// Counts one entry; whether it is a folder.
    fn entry(&mut self, folder: &OwnedFd, name: &CStr) -> io::Result<bool> {
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        self.inodes += 1;
        self.bytes = self.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * SECTOR);
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn over(&self) -> Option<Over> {
        if self.inodes > self.allowance.inodes {
            return Some(Over::Inodes);
        }
        (self.bytes > self.allowance.bytes).then_some(Over::Bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const PLENTY: Allowance = Allowance { bytes: 1 << 30, inodes: 10_000 };

    fn looked(root: &Path, allowance: Allowance) -> Option<Over> {
        over(root, allowance).expect("the root can be read")
    }

    #[test]
    fn bytes_and_entries_count_at_any_depth() {
        let root = tempfile::tempdir().expect("a folder");
        let deep = root.path().join("a/b/c");
        fs::create_dir_all(&deep).expect("folders");
        fs::write(deep.join("file"), vec![b'x'; 1 << 20]).expect("a file");
        assert_eq!(looked(root.path(), PLENTY), None);
        assert_eq!(looked(root.path(), Allowance { bytes: 1 << 19, ..PLENTY }), Some(Over::Bytes));
        assert_eq!(looked(root.path(), Allowance { inodes: 3, ..PLENTY }), Some(Over::Inodes));
        assert_eq!(looked(root.path(), Allowance { inodes: 4, ..PLENTY }), None);
    }

    #[test]
    fn a_sparse_file_takes_what_it_takes_and_a_link_leads_nowhere() {
        let root = tempfile::tempdir().expect("a folder");
        let outside = tempfile::tempdir().expect("a folder");
        fs::write(outside.path().join("big"), vec![b'x'; 1 << 20]).expect("a file");
        symlink(outside.path(), root.path().join("link")).expect("a link");
        symlink("loop", root.path().join("loop")).expect("a link");
        let sparse = fs::File::create(root.path().join("sparse")).expect("a file");
        sparse.set_len(1 << 40).expect("holes");
        assert_eq!(looked(root.path(), Allowance { bytes: 1 << 16, ..PLENTY }), None);
    }

    #[test]
    fn a_tree_too_deep_to_be_measured_is_over() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("d/".repeat(DEPTH - 1))).expect("folders");
        assert_eq!(looked(root.path(), PLENTY), None);
        fs::create_dir_all(root.path().join("d/".repeat(DEPTH))).expect("folders");
        assert_eq!(looked(root.path(), PLENTY), Some(Over::Depth));
    }
}
