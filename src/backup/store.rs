//! The folder of backups. Files get their names when they are whole; a backup is there when its manifest is.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use sha2::{Digest as _, Sha256};

use crate::backup::error::BackupError;
use crate::backup::manifest::{FORMAT, Manifest, Object};

/// Bytes of a manifest: some hundred bytes for a piece of some megabytes.
const MAX_MANIFEST: u64 = 1 << 30;

/// Bytes of a backup's name.
const MAX_NAME: u64 = 200;
/// Somebody else may write to the folder: no link is followed, and no pipe waited for.
const CAREFULLY: i32 = (OFlags::NOFOLLOW.union(OFlags::NONBLOCK)).bits().cast_signed();

#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Never read: its lock goes when it is closed.
    _lock: File,
}

/// A manifest and the name of its file, which is the backup's.
#[derive(Debug, Clone)]
pub struct Backup {
    pub name: String,
    pub manifest: Manifest,
}

impl Store {
    /// Makes the folder if need be. One that holds anything else than backups is refused.
    ///
    /// # Errors
    /// [`BackupError`]; also if another backup is being made in it.
    pub fn to_write(root: &Path) -> Result<Self, BackupError> {
        let make = |path: &Path| {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(BackupError::io("make", path))
        };
        make(root)?;
        refuse_open(root)?;
        if !root.join("lock").exists() && fs::read_dir(root).is_ok_and(|mut list| list.next().is_some()) {
            return Err(BackupError::Refused(format!(
                "{} is not empty and holds no backups: name a folder of its own",
                root.display()
            )));
        }
        let path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(CAREFULLY)
            .open(&path);
        let lock = lock.map_err(BackupError::io("open", &path))?;
        lock_or_refuse(&lock, root, FlockOperation::NonBlockingLockExclusive)?;
        for name in ["backups", "objects", "unfinished"] {
            make(&root.join(name))?;
            refuse_elsewhere(&root.join(name))?;
        }
        let unfinished = root.join("unfinished");
        for entry in fs::read_dir(&unfinished).map_err(BackupError::io("list", &unfinished))?.flatten() {
            fs::remove_file(entry.path()).map_err(BackupError::io("remove", &entry.path()))?;
        }
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// As [`Store::to_write`]; the folder must be there.
    ///
    /// # Errors
    /// [`BackupError`]; also while somebody else works with it.
    pub fn to_prune(root: &Path) -> Result<Self, BackupError> {
        if root.join("lock").exists() { Self::to_write(root) } else { Err(no_backups(root)) }
    }

    /// # Errors
    /// [`BackupError`]; also while a backup is being made in it.
    pub fn to_read(root: &Path) -> Result<Self, BackupError> {
        let path = root.join("lock");
        let lock = match OpenOptions::new().read(true).custom_flags(CAREFULLY).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(no_backups(root)),
            other => other.map_err(BackupError::io("open", &path))?,
        };
        lock_or_refuse(&lock, root, FlockOperation::NonBlockingLockShared)?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// All names, oldest first.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn names(&self) -> Result<Vec<String>, BackupError> {
        let folder = self.root.join("backups");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(BackupError::io("list", &folder))? {
            let entry = entry.map_err(BackupError::io("list", &folder))?;
            let name = entry.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The newest one; none if there was never any. One that is missing is not passed over for an older one.
    ///
    /// # Errors
    /// [`BackupError::Damaged`].
    pub fn latest(&self) -> Result<Option<Backup>, BackupError> {
        let names = self.names()?;
        let path = self.root.join("latest");
        let said = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            _ => Some(self.read("latest", MAX_NAME)?),
        };
        // Whatever else is in there is not quoted: somebody may have put another file's text in its place.
        let named = |text: Vec<u8>| {
            let name = String::from_utf8(text).ok()?.trim_end().to_owned();
            parts(&name).map(|_| name.clone())
        };
        let said = match said.map(named) {
            Some(None) => return Err(BackupError::damaged("latest", "it names no backup")),
            said => said.flatten(),
        };
        match (said, names.last()) {
            (None, None) => Ok(None),
            // The first one was made, and nothing more was written.
            (None, Some(name)) if names.len() == 1 => self.backup(name).map(Some),
            (None, Some(_)) => Err(BackupError::damaged("latest", "the file is missing")),
            (Some(said), _) if !names.contains(&said) => Err(BackupError::damaged(
                format!("backups/{said}.json"),
                "`latest` names it, and it is not there; an older one can be asked for with --backup",
            )),
            (Some(_), Some(name)) => self.backup(name).map(Some),
            (Some(said), None) => Err(BackupError::damaged("latest", format!("it names {said}"))),
        }
    }

    /// One by its name.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] if it is not what its name says; [`BackupError::Refused`] for another format.
    pub fn backup(&self, name: &str) -> Result<Backup, BackupError> {
        let place = format!("backups/{name}.json");
        let damaged = |problem: &str| BackupError::damaged(&place, problem);
        let Some([number, _, sha256]) = parts(name) else {
            return Err(damaged("its name is none of a backup"));
        };
        let bytes = self.read(&place, MAX_MANIFEST)?;
        if hex::encode(Sha256::digest(&bytes)) != sha256 {
            return Err(damaged("its SHA-256 is not the one in its name"));
        }
        #[derive(serde::Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(&bytes).map_err(|error| damaged(&error.to_string()))?;
        if head.format != FORMAT {
            return Err(BackupError::Refused(format!(
                "{place} has format {}, and this version of kage reads {FORMAT}: use the version that made it",
                head.format
            )));
        }
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&error.to_string()))?;
        if number.parse() != Ok(manifest.number) {
            return Err(damaged("its number is not the one in its name"));
        }
        Ok(Backup { name: name.to_owned(), manifest })
    }

    /// A file with the bytes that the manifest says.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] names the file.
    pub fn object(&self, object: &Object) -> Result<Vec<u8>, BackupError> {
        let place = place(&object.name)?;
        let bytes = self.read(&place, object.bytes)?;
        if bytes.len() as u64 != object.bytes {
            let problem = format!("it has {} bytes, and had {}", bytes.len(), object.bytes);
            return Err(BackupError::damaged(place, problem));
        }
        if hex::encode(Sha256::digest(&bytes)) != object.sha256 {
            return Err(BackupError::damaged(place, "its SHA-256 is another one"));
        }
        Ok(bytes)
    }

    /// Whether a file of an earlier backup is there, with its length. Its bytes are for [`crate::backup::verify`].
    pub fn has(&self, object: &Object) -> bool {
        let stat =
            place(&object.name).ok().and_then(|place| fs::symlink_metadata(self.root.join(place)).ok());
        stat.is_some_and(|stat| stat.is_file() && stat.len() == object.bytes)
    }

    /// # Errors
    /// [`BackupError::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<Object, BackupError> {
        let path = self.root.join(place(name)?);
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(BackupError::io("make", folder))?;
        }
        self.appear(&path, name, bytes, false)?;
        Ok(Object {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            sha256: hex::encode(Sha256::digest(bytes)),
        })
    }

    /// Makes the backup be there, after all that it is made of is on the disk. Gives its name.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn publish(&self, manifest: &Manifest) -> Result<Published<'_>, BackupError> {
        let folder = File::open(&self.root).map_err(BackupError::io("open", &self.root))?;
        let flushed = rustix::fs::syncfs(&folder).map_err(std::io::Error::from);
        flushed.map_err(BackupError::io("flush", &self.root))?;
        let bytes = serde_json::to_vec_pretty(manifest)
            .map_err(|error| BackupError::io("write", &self.root)(error.into()))?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let time = manifest.made_at.format("%Y%m%dT%H%M%SZ");
        let name = format!("{:06}-{time}-{sha256}", manifest.number);
        let path = self.root.join("backups").join(format!("{name}.json"));
        self.appear(&path, "manifest", &bytes, true)?;
        Ok(Published { store: self, name, sha256 })
    }

    /// Files of all backups, whoever needs them: names and bytes. What is nobody's is passed over.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn files(&self) -> Result<Vec<(String, u64)>, BackupError> {
        let objects = self.root.join("objects");
        let mut files = Vec::new();
        for folder in fs::read_dir(&objects).map_err(BackupError::io("list", &objects))? {
            let folder = folder.map_err(BackupError::io("list", &objects))?;
            if !folder.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = folder.path();
            for file in fs::read_dir(&path).map_err(BackupError::io("list", &path))? {
                let file = file.map_err(BackupError::io("list", &path))?;
                let Ok(name) = file.file_name().into_string() else { continue };
                let ours = place(&name).is_ok_and(|place| self.root.join(place) == file.path());
                if let Ok(stat) = file.metadata()
                    && ours
                    && stat.is_file()
                {
                    files.push((name, stat.len()));
                }
            }
        }
        Ok(files)
    }

    /// # Errors
    /// [`BackupError::Io`].
    pub fn remove_file(&self, name: &str) -> Result<(), BackupError> {
        let path = self.root.join(place(name)?);
        fs::remove_file(&path).map_err(BackupError::io("remove", &path))
    }

    /// The name is one of [`Store::names`].
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn remove_manifest(&self, name: &str) -> Result<(), BackupError> {
        let path = self.root.join("backups").join(format!("{name}.json"));
        fs::remove_file(&path).map_err(BackupError::io("remove", &path))
    }

    /// Manifests that were removed stay so, whatever happens.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn flush_manifests(&self) -> Result<(), BackupError> {
        let path = self.root.join("backups");
        let flushed = File::open(&path).and_then(|folder| folder.sync_all());
        flushed.map_err(BackupError::io("flush", &path))
    }

    /// Has `latest` name this one.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn point_at(&self, name: &str) -> Result<(), BackupError> {
        self.appear(&self.root.join("latest"), "latest", format!("{name}\n").as_bytes(), true)
    }

    fn appear(&self, path: &Path, name: &str, bytes: &[u8], flush: bool) -> Result<(), BackupError> {
        let unfinished = self.root.join("unfinished").join(name);
        let written = || {
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&unfinished)?;
            file.write_all(bytes)?;
            if flush {
                file.sync_all()?;
            }
            fs::rename(&unfinished, path)?;
            match path.parent() {
                Some(folder) if flush => File::open(folder)?.sync_all(),
                _ => Ok(()),
            }
        };
        written().map_err(BackupError::io("write", path))
    }

    /// At most `most` bytes and one.
    fn read(&self, place: &str, most: u64) -> Result<Vec<u8>, BackupError> {
        let path = self.root.join(place);
        let file = match OpenOptions::new().read(true).custom_flags(CAREFULLY).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(BackupError::damaged(place, "the file is missing"));
            }
            other => other.map_err(BackupError::io("open", &path))?,
        };
        if !file.metadata().is_ok_and(|stat| stat.is_file()) {
            return Err(BackupError::damaged(place, "it is no regular file"));
        }
        let mut bytes = Vec::new();
        file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(BackupError::io("read", &path))?;
        Ok(bytes)
    }
}

/// A backup that is there, and that `latest` does not name yet.
#[derive(Debug)]
pub struct Published<'a> {
    store: &'a Store,
    pub name: String,
    pub sha256: String,
}

impl Published<'_> {
    /// # Errors
    /// [`BackupError::Io`]; the backup is there all the same.
    pub fn keep(self) -> Result<String, BackupError> {
        self.store.point_at(&self.name)?;
        Ok(self.name)
    }

    /// # Errors
    /// [`BackupError::Io`].
    pub fn withdraw(self) -> Result<(), BackupError> {
        self.store.remove_manifest(&self.name)
    }
}

/// Files of a backup by their names.
pub fn by_name(manifest: &Manifest) -> HashMap<&str, &Object> {
    manifest.objects.iter().map(|object| (object.name.as_str(), object)).collect()
}

/// Where a file is, relative to the folder. Names come from a manifest, which somebody else may have written.
fn place(name: &str) -> Result<String, BackupError> {
    if name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(format!("objects/{}/{name}", &name[..2]))
    } else {
        Err(BackupError::damaged("the manifest", format!("{name:?} is no name of a file")))
    }
}

/// Number, time and hash in a backup's name.
fn parts(name: &str) -> Option<[&str; 3]> {
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let parts: [&str; 3] = name.split('-').collect::<Vec<_>>().try_into().ok()?;
    parts.iter().all(|part| is_word(part)).then_some(parts)
}

/// Whoever may write to the folder of backups can forge one.
fn refuse_open(root: &Path) -> Result<(), BackupError> {
    let stat = fs::metadata(root).map_err(BackupError::io("stat", root))?;
    if stat.permissions().mode() & 0o002 == 0 {
        return Ok(());
    }
    Err(BackupError::Refused(format!(
        "anybody may write to {}: whoever does could forge a backup; chmod o-w it, or name another folder",
        root.display()
    )))
}

/// A folder of ours that is none, but a way to another place.
fn refuse_elsewhere(path: &Path) -> Result<(), BackupError> {
    match fs::symlink_metadata(path) {
        Ok(stat) if stat.is_dir() => Ok(()),
        Ok(_) => Err(BackupError::Refused(format!("{} is no folder: who put it there?", path.display()))),
        Err(error) => Err(BackupError::io("stat", path)(error)),
    }
}

fn no_backups(root: &Path) -> BackupError {
    BackupError::Refused(format!("{}: there are no backups (no file `lock`)", root.display()))
}

fn lock_or_refuse(lock: &File, root: &Path, how: FlockOperation) -> Result<(), BackupError> {
    if !lock.metadata().is_ok_and(|stat| stat.is_file()) {
        return Err(BackupError::Refused(format!("{}/lock is no file: who put it there?", root.display())));
    }
    match flock(lock, how) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BackupError::Refused(format!(
            "another kage works with the backups in {}: wait until it has ended",
            root.display()
        ))),
        Err(error) => Err(BackupError::io("lock", &root.join("lock"))(error.into())),
    }
}
