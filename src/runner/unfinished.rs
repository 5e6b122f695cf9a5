//! What a killed runner did not bring to its end. Whoever holds the lock on the data folder, and has not begun yet, knows that
//! nobody writes these any more.

use std::fs::{self, FileType};
use std::path::Path;

use crate::git::home;
use crate::metrics::metrics;
use crate::metrics::sweep::Kind;
use crate::runner::folders::Folders;

/// What [`tempfile`] adds to a prefix.
const RANDOM: usize = 6;

/// Blocks. What cannot be removed is in nobody's way: it is said, and left.
pub(super) fn remove(folders: &Folders) {
    let root = folders.root();
    for (folder, prefix, is_folder) in [
        (root.to_owned(), ".tmp", false),
        (root.join("bin"), ".tmp", false),
        (root.join("repos"), ".mirror-", true),
        (folders.fetching(), ".fetching-", true),
    ] {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (name, kind) = (entry.file_name(), entry.file_type());
            let is_ours = name.to_str().is_some_and(|name| is_unfinished(name, prefix))
                && kind.is_ok_and(|kind: FileType| if is_folder { kind.is_dir() } else { kind.is_file() });
            if is_ours {
                remove_one(&entry.path(), is_folder);
            }
        }
    }
}

/// A fetch's folder is called after its repository.
fn is_unfinished(name: &str, prefix: &str) -> bool {
    let random = |rest: &str| rest.len() == RANDOM && rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    name.strip_prefix(prefix).is_some_and(|rest| prefix == ".fetching-" || random(rest))
}

fn remove_one(path: &Path, is_folder: bool) {
    let removed = if is_folder {
        home::remove(path).map_err(|error| error.to_string())
    } else {
        fs::remove_file(path).map_err(|error| error.to_string())
    };
    match removed {
        Ok(()) => {
            tracing::warn!(path = %path.display(), "runner.sweep_unfinished");
            metrics().sweep.ended(Kind::Temporary);
        }
        Err(error) => tracing::warn!(path = %path.display(), error, "runner.sweep_left"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_was_half_made_goes_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let folders = Folders::open(folder.path()).expect("opens");
        let root = folders.root();
        let outside = tempfile::tempdir().expect("a folder");
        fs::write(outside.path().join("kept"), "x").expect("writes");
        for name in [".tmpAbC123", "bin/.tmp000000", ".tmpnotes", "bin/kage-shim-1", "runner-id"] {
            fs::write(root.join(name), "x").expect("writes");
        }
        for name in
            ["repos/.mirror-AbC123", "repos/demo.git", "fetching/.fetching-demo.git", "fetching/other"]
        {
            fs::create_dir_all(root.join(name).join("objects")).expect("makes");
        }
        symlink(outside.path(), root.join("repos/.mirror-abcdef")).expect("links");
        symlink(outside.path(), root.join("fetching/.fetching-demo.git/objects/link")).expect("links");
        remove(&folders);
        for gone in [".tmpAbC123", "bin/.tmp000000", "repos/.mirror-AbC123", "fetching/.fetching-demo.git"] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        for kept in [
            ".tmpnotes",
            "bin/kage-shim-1",
            "runner-id",
            "repos/demo.git",
            "fetching/other",
            "repos/.mirror-abcdef",
        ] {
            assert!(root.join(kept).exists(), "{kept}");
        }
        assert!(outside.path().join("kept").exists());
    }
}
