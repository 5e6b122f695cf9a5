//! New objects of a harvest, collected into one pack of the mirror.
//!
//! One pack is one file to flush, where loose objects would be one each: a result that was reported must
//! survive a power cut.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

use flate2::{Compression, write::ZlibEncoder};
use git2::{ObjectType, Odb, OdbLookupFlags, Oid, Repository};
use sha1::{Digest, Sha1};
use tempfile::SpooledTempFile;

use crate::git::error::GitError;

/// Beyond this many bytes the pack waits on disk, not in memory.
const IN_MEMORY: usize = 16 << 20;

pub(crate) struct Store<'r> {
    odb: Odb<'r>,
    folder: PathBuf,
    /// The pack without its head and its checksum.
    body: SpooledTempFile,
    count: u32,
    written: HashSet<Oid>,
}

impl<'r> Store<'r> {
    pub fn new(repository: &'r Repository) -> Result<Store<'r>, GitError> {
        Ok(Store {
            odb: repository.odb()?,
            folder: repository.path().join("objects/pack"),
            body: SpooledTempFile::new(IN_MEMORY),
            count: 0,
            written: HashSet::new(),
        })
    }

    /// Adds an object that the mirror does not have yet. It can be read after [`Store::finish`].
    pub fn put(&mut self, kind: ObjectType, content: &[u8]) -> Result<Oid, GitError> {
        let id = Oid::hash_object(kind, content)?;
        if self.written.contains(&id) || self.odb.exists_ext(id, OdbLookupFlags::NO_REFRESH) {
            return Ok(id);
        }
        self.write(kind, content).map_err(GitError::io("write a pack for", &self.folder))?;
        self.count += 1;
        self.written.insert(id);
        Ok(id)
    }

    /// Writes the pack to the mirror and flushes it.
    pub fn finish(mut self) -> Result<(), GitError> {
        if self.count == 0 {
            return Ok(());
        }
        let folder = self.folder.clone();
        let name = self.write_pack().map_err(GitError::io("write a pack in", &folder))?;
        for suffix in ["pack", "idx"] {
            let path = folder.join(format!("pack-{name}.{suffix}"));
            File::open(&path).and_then(|file| file.sync_all()).map_err(GitError::io("flush", &path))?;
        }
        File::open(&folder).and_then(|file| file.sync_all()).map_err(GitError::io("flush", &folder))
    }

    /// One object: its type and size, four bits and then seven at a time, and its compressed content.
    fn write(&mut self, kind: ObjectType, content: &[u8]) -> io::Result<()> {
        let kind: u8 = match kind {
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
    fn write_pack(&mut self) -> io::Result<String> {
        let other = |error: git2::Error| io::Error::other(error);
        let mut writer = self.odb.packwriter().map_err(other)?;
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
