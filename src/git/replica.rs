//! A mirror as a list of parts that can be kept elsewhere and put together again: refs, shallow commits, and the files of
//! its object store, whose names never come to mean something else.
//!
//! Not a bundle: of a shallow repository git cannot make one that is whole.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use git2::{Oid, Reference};

use crate::git::{
    command::GitCommand,
    error::GitError,
    lock::FileLock,
    mirror::{Mirror, write_skeleton},
};

/// Names upstream's default branch; the one ref that names another ref.
const DEFAULT: &str = "refs/upstream/HEAD";
/// A fetch holds the lock for as long as it may last.
const LOCK_WITHIN: Duration = Duration::from_secs(30 * 60);
/// Of one mirror's objects.
const CHECK_WITHIN: Duration = Duration::from_secs(60 * 60);
/// Before a name in hexadecimal digits. No name of a ref has a colon.
const SPELLED: &str = "hex:";
/// Bytes of what git says of a broken store.
const MAX_SAID: u64 = 1 << 20;

/// What a mirror was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Full names with the objects that they name, in hexadecimal digits. A name that is no UTF-8 is spelled [`SPELLED`].
    pub refs: BTreeMap<String, String>,
    /// The ref that upstream's HEAD names.
    pub default: Option<String>,
    /// Commits whose parents upstream does not have.
    pub shallow: Vec<String>,
    /// Files of the object store, relative to the mirror. They hold all that the refs need, and may hold more.
    pub files: Vec<String>,
}

impl Mirror {
    /// Refs first, then the list of files: whatever a ref names was in the store before the ref was.
    ///
    /// # Errors
    /// [`GitError::Locked`] if a fetch does not end within half an hour.
    pub fn parts(&self) -> Result<Parts, GitError> {
        let _lock = FileLock::exclusive_within(&self.path().join("kage-fetch.lock"), LOCK_WITHIN)?;
        let mut parts = Parts::default();
        let repository = self.repository()?;
        for reference in repository.references()? {
            let reference = reference?;
            let name = spelled(reference.name_bytes());
            if let Some(id) = reference.target() {
                parts.refs.insert(name, id.to_string());
            } else if name == DEFAULT {
                parts.default = reference.symbolic_target_bytes().map(spelled);
            }
        }
        let shallow = self.path().join("shallow");
        match fs::read_to_string(&shallow) {
            Ok(text) => parts.shallow = text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(GitError::io("read", &shallow)(error)),
        }
        let objects = self.path().join("objects");
        for folder in names_in(&objects)? {
            for file in names_in(&objects.join(&folder))? {
                let path = format!("objects/{folder}/{file}");
                if is_stored(&path) {
                    parts.files.push(path);
                }
            }
        }
        parts.files.sort_unstable();
        Ok(parts)
    }
}

/// A mirror that is being put together. Nothing of it counts before [`Replica::finish`].
#[derive(Debug)]
pub struct Replica {
    path: PathBuf,
}

impl Replica {
    /// Begins one in a folder that is not there yet. What comes from elsewhere is checked here: names of files and refs that a
    /// mirror does not have are refused.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn begin(path: &Path, parts: &Parts) -> Result<Self, GitError> {
        let refused = |reason| GitError::NotAMirror { path: path.to_owned(), reason };
        let is_id = |id: &str| id.len() == 40 && Oid::from_str(id).is_ok();
        if !parts.files.iter().all(|file| is_stored(file)) {
            return Err(refused("a file in it is none of an object store's"));
        }
        let named = |name: &String| named(name).ok_or_else(|| refused("a ref in it has no valid name"));
        let mut refs = Vec::new();
        for (name, id) in &parts.refs {
            refs.push((named(name)?, id));
        }
        // In the order of bytes, as git wants it.
        refs.sort_unstable();
        let head = parts.default.as_ref().map(named).transpose()?;
        if !parts.refs.values().chain(&parts.shallow).all(|id| is_id(id)) {
            return Err(refused("a ref or a shallow commit in it has no valid id"));
        }
        DirBuilder::new().mode(0o700).create(path).map_err(GitError::io("make", path))?;
        write_skeleton(path)?;
        let mut packed = Vec::new();
        for (name, id) in refs {
            packed.extend([id.as_bytes(), b" ", &name, b"\n"].concat());
        }
        let shallow: String = parts.shallow.iter().map(|id| format!("{id}\n")).collect();
        let head = head.map(|target| [b"ref: ", target.as_slice(), b"\n"].concat());
        for (name, text) in
            [("packed-refs", packed), ("shallow", shallow.into_bytes()), (DEFAULT, head.unwrap_or_default())]
        {
            if !text.is_empty() {
                let file = path.join(name);
                if let Some(folder) = file.parent() {
                    fs::create_dir_all(folder).map_err(GitError::io("make", folder))?;
                }
                fs::write(&file, text).map_err(GitError::io("write", &file))?;
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    /// A file of the object store, to be written from its beginning. `name` is one of [`Parts::files`].
    ///
    /// # Errors
    /// [`GitError`].
    pub fn file(&self, name: &str) -> Result<File, GitError> {
        let path = self.path.join(name);
        if !is_stored(name) {
            let reason = "a file in it is none of an object store's";
            return Err(GitError::NotAMirror { path, reason });
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(GitError::io("make", folder))?;
        }
        // As git makes them: a fetch's own user reads packs.
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path);
        opened.map_err(GitError::io("make", &path))
    }

    /// Checks that everything is there that the refs need and that every pack is what it was when it was made, then forces all to
    /// the disk.
    ///
    /// # Errors
    /// [`GitError::Command`] says what git misses.
    pub fn finish(self) -> Result<(), GitError> {
        let args = ["fsck", "--connectivity-only", "--no-dangling", "--no-progress", "--no-reflogs"];
        self.git("git fsck", args.iter().map(OsString::from).collect())?;
        // Each result is a pack: a command line does not take all of them.
        for packs in self.pack_indexes()?.chunks(256) {
            let args = ["verify-pack", "--"].iter().map(OsString::from).chain(packs.iter().cloned());
            self.git("git verify-pack", args.collect())?;
        }
        Mirror::open(&self.path)?;
        let folder = File::open(&self.path).map_err(GitError::io("open", &self.path))?;
        rustix::fs::syncfs(&folder).map_err(GitError::io("flush", &self.path))
    }
}

impl Replica {
    fn git(&self, what: &'static str, args: Vec<OsString>) -> Result<(), GitError> {
        let command = GitCommand {
            what,
            git_dir: &self.path,
            args,
            trusted: &[],
            objects: None,
            confined: None,
            stdin: Stdio::null(),
            limit: CHECK_WITHIN,
        };
        command.run(MAX_SAID, || Ok(())).map(drop)
    }

    fn pack_indexes(&self) -> Result<Vec<OsString>, GitError> {
        let folder = self.path.join("objects/pack");
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(GitError::io("list", &folder))? {
            let path = entry.map_err(GitError::io("list", &folder))?.path();
            if path.extension().is_some_and(|suffix| suffix == "idx") {
                found.push(path.into_os_string());
            }
        }
        Ok(found)
    }
}

fn spelled(name: &[u8]) -> String {
    match str::from_utf8(name) {
        Ok(name) => name.to_owned(),
        Err(_) => format!("{SPELLED}{}", hex::encode(name)),
    }
}

/// None: no ref can have the name.
fn named(spelled: &str) -> Option<Vec<u8>> {
    let name = match spelled.strip_prefix(SPELLED) {
        Some(digits) => hex::decode(digits).ok()?,
        None => spelled.as_bytes().to_vec(),
    };
    // The rules are about ASCII alone.
    let plain: String =
        name.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { 'x' }).collect();
    (name.starts_with(b"refs/") && Reference::is_valid_name(&plain)).then_some(name)
}

/// Packs with what belongs to them, and loose objects; no temporary file, no lock, nothing that leads elsewhere (`info/alternates`).
fn is_stored(path: &str) -> bool {
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let Some((folder, file)) = path.strip_prefix("objects/").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    if folder != "pack" {
        return is_hex(folder, 2) && is_hex(file, 38);
    }
    let parts = file.strip_prefix("pack-").and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(id, kind)| is_hex(id, 40) && matches!(kind, "pack" | "idx" | "rev"))
}

fn names_in(folder: &Path) -> Result<Vec<String>, GitError> {
    let list = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        list => list.map_err(GitError::io("list", folder))?,
    };
    let mut names = Vec::new();
    for entry in list {
        let entry = entry.map_err(GitError::io("list", folder))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Writes one part of a file.
///
/// # Errors
/// [`GitError::Io`].
pub fn write(file: &mut File, bytes: &[u8], name: &str) -> Result<(), GitError> {
    file.write_all(bytes).map_err(GitError::io("write", Path::new(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_an_object_store_are_taken() {
        let pack = "a".repeat(40);
        for good in [format!("objects/pack/pack-{pack}.pack"), format!("objects/ab/{}", "0".repeat(38))] {
            assert!(is_stored(&good), "{good}");
        }
        for bad in [
            "config".to_owned(),
            "objects/info/alternates".to_owned(),
            format!("objects/pack/../../hooks/pack-{pack}.pack"),
            format!("objects/pack/pack-{pack}.keep"),
            "objects/pack/tmp_pack_x".to_owned(),
            format!("objects/../{}", "0".repeat(38)),
            format!("/objects/ab/{}", "0".repeat(38)),
        ] {
            assert!(!is_stored(&bad), "{bad}");
        }
    }

    #[test]
    fn refs_that_lead_elsewhere_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.git");
        let id = "1".repeat(40);
        for name in ["HEAD", "config", "refs/../config", "refs/heads/a\nb", "refs/heads/../../x"] {
            let refs = [(name.to_owned(), id.clone())].into();
            Replica::begin(&path, &Parts { refs, ..Parts::default() }).expect_err(name);
            let default = Some(name.to_owned());
            Replica::begin(&path, &Parts { default, ..Parts::default() }).expect_err(name);
            let refs = [(format!("{SPELLED}{}", hex::encode(name)), id.clone())].into();
            Replica::begin(&path, &Parts { refs, ..Parts::default() }).expect_err(name);
        }
        let refs = [("refs/heads/a".to_owned(), "1 refs/heads/b\n2".to_owned())].into();
        Replica::begin(&path, &Parts { refs, ..Parts::default() }).expect_err("an id");
        assert!(!path.exists());
    }
}
