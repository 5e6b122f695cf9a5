//! Whether a repository on this host keeps to itself.
//!
//! Git follows what a repository's own folder says: a `.git` file or link, `commondir`, alternates, links among objects
//! and refs. We fetch as root, so any of them would let the owner of an allowed folder read repositories outside the
//! operator's list. All of them are refused. Who can change the folder between this look and the fetch can still
//! win a race: allow only folders of people whom you would show the rest to.

use std::fs;
use std::path::Path;

/// Entries that are looked at; more is no repository that anybody works with.
const MAX_ENTRIES: usize = 5_000_000;

/// What git reads of a repository when it is fetched from.
const READ: [&str; 6] = ["HEAD", "config", "packed-refs", "shallow", "objects", "refs"];

pub(super) fn check(source: &Path) -> Result<(), String> {
    let dot_git = source.join(".git");
    let folder = match fs::symlink_metadata(&dot_git) {
        Ok(kind) if kind.is_dir() => dot_git,
        Ok(_) => {
            let what = "its .git is no folder but leads elsewhere (a linked worktree or submodule)";
            return Err(format!("{what}: register the repository that it belongs to"));
        }
        Err(_) => source.to_owned(),
    };
    for name in ["commondir", "objects/info/alternates", "objects/info/http-alternates"] {
        if fs::symlink_metadata(folder.join(name)).is_ok() {
            return Err(format!(
                "it borrows from another repository ({name}): make it whole with `git repack -ad`"
            ));
        }
    }
    let mut left = MAX_ENTRIES;
    READ.iter().try_for_each(|name| no_links(&folder.join(name), &mut left))
}

fn no_links(path: &Path, left: &mut usize) -> Result<(), String> {
    let Ok(kind) = fs::symlink_metadata(path) else { return Ok(()) };
    *left = left.checked_sub(1).ok_or("it has too many files")?;
    if kind.is_symlink() {
        return Err(format!("{} is a symbolic link, which may lead out of it", path.display()));
    }
    if !kind.is_dir() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(|error| format!("{}: {error}", path.display()))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", path.display()))?;
        no_links(&entry.path(), left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder that looks like a bare repository.
    fn bare() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["objects/info", "objects/pack", "refs/heads"] {
            fs::create_dir_all(folder.path().join(name)).expect("made");
        }
        fs::write(folder.path().join("HEAD"), "ref: refs/heads/main\n").expect("written");
        folder
    }

    #[test]
    fn one_that_keeps_to_itself_is_taken() {
        let bare = bare();
        assert_eq!(check(bare.path()), Ok(()));
        let ordinary = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(ordinary.path().join(".git/objects")).expect("made");
        // Links in the files that it keeps are its own affair.
        symlink("/etc", ordinary.path().join("docs")).expect("linked");
        assert_eq!(check(ordinary.path()), Ok(()));
    }

    #[test]
    fn whatever_leads_out_is_refused() {
        let lead_out: [fn(&Path); 7] = [
            |path| fs::write(path.join("commondir"), "/elsewhere/.git\n").expect("written"),
            |path| fs::write(path.join("objects/info/alternates"), "/elsewhere/objects\n").expect("written"),
            |path| symlink("/elsewhere/ref", path.join("refs/heads/main")).expect("linked"),
            |path| symlink("/elsewhere/pack", path.join("objects/pack/p.pack")).expect("linked"),
            |path| symlink("/elsewhere/packed-refs", path.join("packed-refs")).expect("linked"),
            |path| symlink("/elsewhere/.git", path.join(".git")).expect("linked"),
            |path| fs::write(path.join(".git"), "gitdir: /elsewhere/.git\n").expect("written"),
        ];
        for (number, prepare) in lead_out.into_iter().enumerate() {
            let bare = bare();
            prepare(bare.path());
            assert!(check(bare.path()).is_err(), "way {number}");
        }
    }
}
