//! New objects of a harvest, collected into one pack of the mirror.
//!
//! One pack is one file to flush, where loose objects would be one each: a result that was reported must
//! survive a power cut.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::ZlibEncoder};
use git2::{ObjectType, Odb, OdbLookupFlags, Oid};
use sha1::{Digest, Sha1};
use tempfile::SpooledTempFile;

use crate::git::{error::GitError, mirror::Mirror};

/// Beyond this many bytes the pack waits on disk, not in memory.
const IN_MEMORY: usize = 16 << 20;

/// Objects that the mirror does not have yet: a pack without its head and its checksum.
#[derive(Debug)]
pub struct NewObjects {
    body: SpooledTempFile,
    count: u32,
    collected: HashSet<Oid>,
    /// The trees among them, where somebody wants to read them.
    trees: Option<HashMap<Oid, Vec<u8>>>,
}

impl Default for NewObjects {
    fn default() -> Self {
        NewObjects { body: SpooledTempFile::new(IN_MEMORY), count: 0, collected: HashSet::new(), trees: None }
    }
}

impl NewObjects {
    /// As the default, with trees that can be read before they are written.
    pub(crate) fn with_trees() -> Self {
        NewObjects { trees: Some(HashMap::new()), ..NewObjects::default() }
    }

    /// A tree that was put here.
    pub(crate) fn tree(&self, id: Oid) -> Option<&[u8]> {
        self.trees.as_ref()?.get(&id).map(Vec::as_slice)
    }

    /// Adds an object unless `odb` has it. It can be read after [`NewObjects::write`].
    pub(crate) fn put(&mut self, odb: &Odb<'_>, kind: ObjectType, content: &[u8]) -> Result<Oid, GitError> {
        let id = Oid::hash_object(kind, content)?;
        if self.collected.contains(&id) || odb.exists_ext(id, OdbLookupFlags::NO_REFRESH) {
            return Ok(id);
        }
        self.append(kind, content).map_err(GitError::io("write", Path::new("a new pack")))?;
        self.count += 1;
        self.collected.insert(id);
        if let (ObjectType::Tree, Some(trees)) = (kind, &mut self.trees) {
            trees.insert(id, content.to_vec());
        }
        Ok(id)
    }

    /// Writes the pack to the mirror; then nothing is left in here. The objects can be read, but they are safe
    /// only once they are flushed.
    pub fn write(&mut self, mirror: &Mirror) -> Result<Unflushed, GitError> {
        let objects = std::mem::take(self);
        if objects.count == 0 {
            return Ok(Unflushed(Vec::new()));
        }
        let folder = mirror.path().join("objects/pack");
        let name = objects
            .hand_over(&mirror.repository()?.odb()?)
            .map_err(GitError::io("write a pack in", &folder))?;
        let file = |suffix| folder.join(format!("pack-{name}.{suffix}"));
        Ok(Unflushed(vec![file("pack"), file("idx"), folder]))
    }

    /// One object: its type and size, four bits and then seven at a time, and its compressed content.
    fn append(&mut self, kind: ObjectType, content: &[u8]) -> io::Result<()> {
        let kind: u8 = match kind {
            ObjectType::Commit => 1,
            ObjectType::Tree => 2,
            ObjectType::Blob => 3,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let mut size = content.len() as u64;
        let mut byte = kind << 4 | (size & 0x0f) as u8;
        size >>= 4;
        while size > 0 {
            self.body.write_all(&[byte | 0x80])?;
            byte = (size & 0x7f) as u8;
            size >>= 7;
        }
        self.body.write_all(&[byte])?;
        let mut encoder = ZlibEncoder::new(&mut self.body, Compression::fast());
        encoder.write_all(content)?;
        encoder.finish()?;
        Ok(())
    }

    /// Hands the pack to libgit2, which checks and indexes it and names it by its checksum.
    fn hand_over(mut self, odb: &Odb<'_>) -> io::Result<String> {
        let other = |error: git2::Error| io::Error::other(error);
        let mut writer = odb.packwriter().map_err(other)?;
        let mut checksum = Sha1::new();
        let mut head = b"PACK\0\0\0\x02".to_vec();
        head.extend_from_slice(&self.count.to_be_bytes());
        checksum.update(&head);
        writer.write_all(&head)?;
        self.body.seek(SeekFrom::Start(0))?;
        let mut chunk = vec![0; 64 << 10];
        loop {
            let length = self.body.read(&mut chunk)?;
            if length == 0 {
                break;
            }
            checksum.update(&chunk[..length]);
            writer.write_all(&chunk[..length])?;
        }
        let checksum = checksum.finalize();
        writer.write_all(&checksum)?;
        writer.commit().map_err(other)?;
        Ok(hex::encode(checksum))
    }
}

/// Files and folders that a power cut could still undo.
#[must_use]
#[derive(Debug)]
pub struct Unflushed(Vec<PathBuf>);

impl Unflushed {
    /// Flushes them side by side: a journal takes what is asked for at once in one go.
    pub fn flush(self) -> Result<(), GitError> {
        let flush = |path: &PathBuf| {
            File::open(path).and_then(|file| file.sync_all()).map_err(GitError::io("flush", path))
        };
        std::thread::scope(|scope| {
            let flushes: Vec<_> = self.0.iter().map(|path| scope.spawn(move || flush(path))).collect();
            flushes
                .into_iter()
                .try_for_each(|flush| flush.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }
}

/// A tree object of `entries`, in git's order: a folder's name counts as if it ended with a slash.
pub(crate) fn tree_object(mut entries: Vec<(Vec<u8>, u32, Oid)>) -> Vec<u8> {
    let end = |mode: u32| (mode == 0o040000).then_some(&b'/');
    entries.sort_by(|(one, one_mode, _), (other, other_mode, _)| {
        one.iter().chain(end(*one_mode)).cmp(other.iter().chain(end(*other_mode)))
    });
    let mut bytes = Vec::new();
    for (name, mode, id) in entries {
        bytes.extend_from_slice(format!("{mode:o} ").as_bytes());
        bytes.extend_from_slice(&name);
        bytes.push(0);
        bytes.extend_from_slice(id.as_bytes());
    }
    bytes
}
