//! Whether a repository on this host keeps to itself.
//!
//! Git follows what a repository's own folder says: a `.git` file or link, `commondir`, alternates, links among objects
//! and refs. Any of them would let the owner of an allowed folder read repositories outside the
//! operator's list if it worked as root. All of them are refused, and git works as a user who may read what everybody
//! may, or as the repository's owner. Who can change the folder between this look and the fetch can still
//! win a race: allow only folders of people whom you would show the rest to.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Entries that are looked at; more is no repository that anybody works with.
const MAX_ENTRIES: usize = 5_000_000;

/// What git reads of a repository when it is fetched from.
const READ: [&str; 6] = ["HEAD", "config", "packed-refs", "shallow", "objects", "refs"];

/// As [`check`]; and as whom git can read it: `anybody` if everybody can, else its owner, who must not be root.
pub(super) fn reader(source: &Path, anybody: (u32, u32)) -> Result<(u32, u32), String> {
    let (folder, open) = look(source)?;
    if open {
        return Ok(anybody);
    }
    let stat = fs::metadata(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    match stat.uid() {
        0 => Err(
            "only root can read it, and nothing is fetched as root: `chmod -R o+rX` it and let others pass \
                  through the folders above it, or give it to a user of its own"
                .to_owned(),
        ),
        uid => Ok((uid, stat.gid())),
    }
}

pub(super) fn check(source: &Path) -> Result<(), String> {
    look(source).map(drop)
}

/// The repository's own folder, and whether everybody can read it.
fn look(source: &Path) -> Result<(PathBuf, bool), String> {
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
    let above =
        folder.ancestors().all(|above| fs::metadata(above).is_ok_and(|stat| stat.mode() & 0o001 != 0));
    let mut open = above;
    READ.iter().try_for_each(|name| no_links(&folder.join(name), &mut left, &mut open))?;
    Ok((folder, open))
}

fn no_links(path: &Path, left: &mut usize, open: &mut bool) -> Result<(), String> {
    let Ok(kind) = fs::symlink_metadata(path) else { return Ok(()) };
    *left = left.checked_sub(1).ok_or("it has too many files")?;
    if kind.is_symlink() {
        return Err(format!("{} is a symbolic link, which may lead out of it", path.display()));
    }
    let wanted = if kind.is_dir() { 0o005 } else { 0o004 };
    *open &= kind.mode() & wanted == wanted;
    if !kind.is_dir() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(|error| format!("{}: {error}", path.display()))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", path.display()))?;
        no_links(&entry.path(), left, open)?;
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
