//! The tree over the audit entries: what waits, leaves, stored hashes, checkpoints.
//!
//! Entries come as JSON text that Postgres makes of the whole row, so that a column that is added later is part of it. Times in
//! it are UTC, as in every session of ours.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::db::error::DbError;
use crate::trail::tile::{Tile, Tiles, WIDTH};
use crate::trail::tree::Hash;

/// An entry without a place.
#[derive(Debug, sqlx::FromRow)]
pub struct Waiting {
    ordinal: i64,
    pub entry_id: Uuid,
    /// The row as JSON; none: it is gone, which nobody may do.
    pub row: Option<String>,
}

/// Details of the entries of one step, in bytes: they are in memory together, in several forms.
const MOST_BYTES: i64 = 32 << 20;

/// Takes what waits longest, until the transaction ends one way or the other. A second sequencer waits here.
///
/// # Errors
/// [`DbError`].
pub async fn take(connection: &mut PgConnection, limit: i64) -> Result<Vec<Waiting>, DbError> {
    let mut taken: Vec<Waiting> = sqlx::query_as(
        "WITH first AS (
             SELECT ordinal, entry_id FROM audit_queue ORDER BY ordinal LIMIT $1),
         weighed AS (
             SELECT first.ordinal, sum(coalesce(octet_length(e.details::text), 0)) OVER (ORDER BY first.ordinal) AS bytes
             FROM first LEFT JOIN audit_entries e ON e.id = first.entry_id),
         taken AS (
             DELETE FROM audit_queue WHERE ordinal = ANY (ARRAY(
                 SELECT ordinal FROM weighed WHERE bytes <= $2 OR ordinal = (SELECT min(ordinal) FROM first)))
             RETURNING ordinal, entry_id)
         SELECT taken.ordinal, taken.entry_id, to_jsonb(e)::text AS row
         FROM taken LEFT JOIN audit_entries e ON e.id = taken.entry_id",
    )
    .bind(limit)
    .bind(MOST_BYTES)
    .fetch_all(connection)
    .await?;
    // Here: the rows are wide, and there they are sorted on the disk.
    taken.sort_unstable_by_key(|waiting| waiting.ordinal);
    Ok(taken)
}

/// The last checkpoint, and how many leaves there are, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Head {
    pub leaves: i64,
    pub note: Option<String>,
}

/// # Errors
/// [`DbError`].
pub async fn head(connection: &mut PgConnection) -> Result<Head, DbError> {
    let head = sqlx::query_as(
        "SELECT (SELECT coalesce(max(index) + 1, 0) FROM audit_leaves) AS leaves,
                (SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1) AS note",
    )
    .fetch_one(connection)
    .await?;
    Ok(head)
}

/// Reads tiles as they are in a tree of `size`.
///
/// # Errors
/// [`DbError`].
pub async fn tiles(connection: &mut PgConnection, size: u64, wanted: &[Tile]) -> Result<Tiles, DbError> {
    let mut tiles = Tiles::default();
    for tile in wanted {
        let first = tile.index * WIDTH;
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(if tile.level == 0 {
            "SELECT index, hash FROM audit_leaves WHERE index >= $1 AND index < $2 AND $3 = 0 ORDER BY index"
        } else {
            "SELECT index, hash FROM audit_nodes WHERE index >= $1 AND index < $2 AND level = $3 ORDER BY index"
        })
        .bind(first as i64)
        .bind((first + tile.width(size)) as i64)
        .bind(i16::from(tile.level))
        .fetch_all(&mut *connection)
        .await?;
        let mut hashes = Vec::with_capacity(rows.len());
        for (index, hash) in rows {
            // After a gap the tile ends: who needs more of it says what is missing.
            if index as u64 != first + hashes.len() as u64 {
                break;
            }
            hashes.push(to_hash("audit_leaves", index, hash)?);
        }
        tiles.insert(*tile, hashes);
    }
    Ok(tiles)
}

fn to_hash(table: &'static str, id: i64, bytes: Vec<u8>) -> Result<Hash, DbError> {
    bytes.try_into().map_err(|_| DbError::inconsistent(table, "hash", id, "not 32 bytes"))
}

/// # Errors
/// [`DbError`]; [`DbError::is_conflict`] if another sequencer gave these places, or one of these entries has one.
pub async fn add_leaves(
    connection: &mut PgConnection,
    first: u64,
    entries: &[Uuid],
    hashes: &[Hash],
) -> Result<(), DbError> {
    let hashes: Vec<&[u8]> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
    sqlx::query(
        "INSERT INTO audit_leaves (index, entry_id, hash)
         SELECT $1 + place - 1, entry_id, hash
         FROM unnest($2::uuid[], $3::bytea[]) WITH ORDINALITY AS leaf (entry_id, hash, place)",
    )
    .bind(first as i64)
    .bind(entries)
    .bind(hashes)
    .execute(connection)
    .await?;
    Ok(())
}

/// # Errors
/// [`DbError`].
pub async fn add_nodes(connection: &mut PgConnection, nodes: &[(u8, u64, Hash)]) -> Result<(), DbError> {
    if nodes.is_empty() {
        return Ok(());
    }
    let levels: Vec<i16> = nodes.iter().map(|(level, ..)| i16::from(*level)).collect();
    let indexes: Vec<i64> = nodes.iter().map(|(_, index, _)| *index as i64).collect();
    let hashes: Vec<&[u8]> = nodes.iter().map(|(.., hash)| hash.as_slice()).collect();
    sqlx::query(
        "INSERT INTO audit_nodes (level, index, hash)
         SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bytea[])",
    )
    .bind(levels)
    .bind(indexes)
    .bind(hashes)
    .execute(connection)
    .await?;
    Ok(())
}

/// # Errors
/// [`DbError`].
pub async fn add_checkpoint(
    connection: &mut PgConnection,
    size: u64,
    root: &Hash,
    note: &str,
) -> Result<(), DbError> {
    sqlx::query("INSERT INTO audit_checkpoints (size, root, note) VALUES ($1, $2, $3)")
        .bind(size as i64)
        .bind(root.as_slice())
        .bind(note)
        .execute(connection)
        .await?;
    Ok(())
}

/// The note of the checkpoint of exactly this size; without a size, of the last.
///
/// # Errors
/// [`DbError`].
pub async fn note(connection: &mut PgConnection, size: Option<u64>) -> Result<Option<String>, DbError> {
    let note = sqlx::query_scalar(
        "SELECT note FROM audit_checkpoints WHERE $1::bigint IS NULL OR size = $1 ORDER BY size DESC LIMIT 1",
    )
    .bind(size.map(|size| size as i64))
    .fetch_optional(connection)
    .await?;
    Ok(note)
}

/// The signature lines of witnesses under the checkpoint of this size.
///
/// # Errors
/// [`DbError`].
pub async fn cosignatures(connection: &mut PgConnection, size: u64) -> Result<Vec<String>, DbError> {
    let lines = sqlx::query_scalar("SELECT line FROM audit_cosignatures WHERE size = $1 ORDER BY witness")
        .bind(size as i64)
        .fetch_all(connection)
        .await?;
    Ok(lines)
}

/// Whether it is new: a witness signs a checkpoint once.
///
/// # Errors
/// [`DbError`].
pub async fn add_cosignature(
    connection: &mut PgConnection,
    size: u64,
    witness: &str,
    line: &str,
    signed_at: DateTime<Utc>,
) -> Result<bool, DbError> {
    let done = sqlx::query(
        "INSERT INTO audit_cosignatures (size, witness, line, signed_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT DO NOTHING",
    )
    .bind(size as i64)
    .bind(witness)
    .bind(line)
    .bind(signed_at)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Notes of checkpoints of more than `after` entries, smallest first.
///
/// # Errors
/// [`DbError`].
pub async fn notes_after(
    connection: &mut PgConnection,
    after: u64,
    limit: i64,
) -> Result<Vec<(i64, String)>, DbError> {
    let notes =
        sqlx::query_as("SELECT size, note FROM audit_checkpoints WHERE size > $1 ORDER BY size LIMIT $2")
            .bind(after as i64)
            .bind(limit)
            .fetch_all(connection)
            .await?;
    Ok(notes)
}

/// Sizes and roots as the table has them beside the notes, after `after`: the notes are what is signed.
///
/// # Errors
/// [`DbError`].
pub async fn roots_after(
    connection: &mut PgConnection,
    after: u64,
    limit: i64,
) -> Result<Vec<(i64, Vec<u8>)>, DbError> {
    let roots =
        sqlx::query_as("SELECT size, root FROM audit_checkpoints WHERE size > $1 ORDER BY size LIMIT $2")
            .bind(after as i64)
            .bind(limit)
            .fetch_all(connection)
            .await?;
    Ok(roots)
}

/// An entry in its place.
#[derive(Debug, sqlx::FromRow)]
pub struct Placed {
    pub index: i64,
    pub hash: Vec<u8>,
    pub entry_id: Uuid,
    /// None: the entry is gone.
    pub row: Option<String>,
}

impl Placed {
    /// # Errors
    /// [`DbError::Inconsistent`].
    pub fn hash(&self) -> Result<Hash, DbError> {
        to_hash("audit_leaves", self.index, self.hash.clone())
    }
}

/// Which entries; what is none counts for nothing.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub action: Option<String>,
    pub object: Option<String>,
    pub actor: Option<String>,
    pub outcome: Option<String>,
    pub since: Option<DateTime<Utc>>,
    pub until: Option<DateTime<Utc>>,
    /// This task, and its runs.
    pub task: Option<Uuid>,
    /// Id of the request that asked for the act.
    pub request: Option<String>,
    /// Where that came from: an address, or all of a network.
    pub address: Option<IpNet>,
    /// Method and path of its route.
    pub route: Option<String>,
}

/// Entries from `first` on, below `size`, that a filter lets through.
///
/// # Errors
/// [`DbError`].
pub async fn placed(
    connection: &mut PgConnection,
    filter: &Filter,
    (first, size): (u64, u64),
    limit: i64,
) -> Result<Vec<Placed>, DbError> {
    let rows = sqlx::query_as(
        "SELECT l.index, l.hash, l.entry_id, to_jsonb(e)::text AS row
         FROM audit_leaves l LEFT JOIN audit_entries e ON e.id = l.entry_id
         WHERE l.index >= $1 AND l.index < $2
           AND ($3::text IS NULL OR e.action = $3)
           AND ($4::text IS NULL OR e.object = $4)
           AND ($5::text IS NULL OR e.actor_id = $5 OR e.actor_kind = $5)
           AND ($6::text IS NULL OR e.outcome = $6)
           AND ($7::timestamptz IS NULL OR e.at >= $7)
           AND ($8::timestamptz IS NULL OR e.at < $8)
           AND ($9::uuid IS NULL OR e.object = 'task:' || $9::text
                OR e.object IN (SELECT 'run:' || id::text FROM runs WHERE task_id = $9))
           AND ($10::text IS NULL OR e.request_id = $10)
           AND ($11::text IS NULL OR e.address <<= $11::inet)
           AND ($12::text IS NULL OR e.route = $12)
         ORDER BY l.index LIMIT $13",
    )
    .bind(first as i64)
    .bind(size as i64)
    .bind(&filter.action)
    .bind(&filter.object)
    .bind(&filter.actor)
    .bind(&filter.outcome)
    .bind(filter.since)
    .bind(filter.until)
    .bind(filter.task)
    .bind(&filter.request)
    .bind(filter.address.map(|network| network.to_string()))
    .bind(&filter.route)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// An entry that neither has a place nor waits for one: somebody took it out of the queue.
///
/// # Errors
/// [`DbError`].
pub async fn stray(connection: &mut PgConnection) -> Result<Option<Uuid>, DbError> {
    // As sets: what waits has no index by entry, and a plan that looked through it once for each entry, as one that stops at the first
    // find would, takes minutes where 50,000 wait.
    let stray = sqlx::query_scalar(
        "WITH unplaced AS MATERIALIZED (
             SELECT e.id FROM audit_entries e WHERE NOT EXISTS (SELECT FROM audit_leaves l WHERE l.entry_id = e.id))
         SELECT id FROM unplaced EXCEPT SELECT entry_id FROM audit_queue ORDER BY id LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    Ok(stray)
}

/// How many wait, and since when the first of them.
///
/// # Errors
/// [`DbError`].
pub async fn waiting(connection: &mut PgConnection) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM audit_queue").fetch_one(connection).await?)
}

/// How long the entry that waits longest has waited for its place; zero: none waits.
///
/// # Errors
/// [`DbError`].
pub async fn lag(connection: &mut PgConnection) -> Result<Duration, DbError> {
    let secs: f64 = sqlx::query_scalar("SELECT audit_waits_secs()").fetch_one(connection).await?;
    Ok(Duration::try_from_secs_f64(secs).unwrap_or_default())
}

/// Stored hashes of these levels and places.
///
/// # Errors
/// [`DbError`].
pub async fn nodes(
    connection: &mut PgConnection,
    wanted: &[(u8, u64, Hash)],
) -> Result<Vec<(u8, u64, Hash)>, DbError> {
    let levels: Vec<i16> = wanted.iter().map(|(level, ..)| i16::from(*level)).collect();
    let indexes: Vec<i64> = wanted.iter().map(|(_, index, _)| *index as i64).collect();
    let rows: Vec<(i16, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT level, index, hash FROM audit_nodes
         JOIN unnest($1::smallint[], $2::bigint[]) AS wanted (level, index) USING (level, index)",
    )
    .bind(levels)
    .bind(indexes)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(level, index, hash)| Ok((level as u8, index as u64, to_hash("audit_nodes", index, hash)?)))
        .collect()
}
