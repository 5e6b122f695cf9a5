//! What a backup says of itself: in the open what is needed to check its files, and in a sealed index what they hold.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Of manifest, index and pieces together.
pub const FORMAT: u32 = 1;

/// A file of the backup's folder, in the form that it has there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// 64 hexadecimal digits; see [`crate::backup::seal::Sealer::name`].
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// Bytes as they were before they were compressed and sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    pub object: String,
    pub bytes: u64,
    pub sha256: String,
}

/// The audit log's tree at the cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    pub size: u64,
    /// RFC 6962, in hexadecimal digits.
    pub root: String,
}

/// In the open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// The version of the program that made it.
    pub kage: String,
    /// The last migration of its schema.
    pub schema: i64,
    /// Over versions and checksums of all of them.
    pub schema_sha256: String,
    /// `KAGE_INSTANCE`.
    pub instance: String,
    /// Counts up in this folder.
    pub number: u64,
    /// Of the cut.
    pub made_at: DateTime<Utc>,
    /// The backup whose files it shares.
    pub parent: Option<String>,
    /// Whom it is encrypted to (`age`); empty: not encrypted.
    pub recipients: Vec<String>,
    /// None: the log has no checkpoint yet.
    pub audit: Option<Tree>,
    pub index: Piece,
    /// Every file that belongs to it, by name.
    pub objects: Vec<Object>,
}

/// The sealed part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    pub tables: Vec<Table>,
    pub partitions: Vec<Partition>,
    pub sequences: Vec<Sequence>,
    pub repositories: Vec<Repository>,
    /// Branches that the database names and that are not in the repositories of this data folder.
    pub missing: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub name: String,
    pub columns: Vec<String>,
    pub key: Vec<String>,
    pub rows: u64,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    pub parent: String,
    pub name: String,
    pub bound: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequence {
    pub name: String,
    pub last: i64,
    pub called: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    pub name: String,
    pub refs: BTreeMap<String, String>,
    pub default: Option<String>,
    pub shallow: Vec<String>,
    pub files: Vec<File>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub name: String,
    pub pieces: Vec<Piece>,
}

impl Index {
    /// Every piece, with what it is a part of.
    pub fn pieces(&self) -> impl Iterator<Item = (String, &Piece)> {
        let of_table = |table: &Table| format!("table {}", table.name);
        let tables = self
            .tables
            .iter()
            .flat_map(move |table| table.pieces.iter().map(move |piece| (of_table(table), piece)));
        let repositories = self.repositories.iter().flat_map(|repository| {
            repository.files.iter().flat_map(move |file| {
                let place = format!("repository {}, {}", repository.name, file.name);
                file.pieces.iter().map(move |piece| (place.clone(), piece))
            })
        });
        tables.chain(repositories)
    }
}

/// Over versions and checksums of migrations.
pub fn schema_hash(migrations: &[(i64, Vec<u8>)]) -> String {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    for (version, checksum) in migrations {
        hash.update(format!("{version} {}\n", hex::encode(checksum)));
    }
    hex::encode(hash.finalize())
}
