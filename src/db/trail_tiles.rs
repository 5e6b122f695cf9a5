//! The log as C2SP tlog-tiles has it: tiles of hashes, and bundles of entries.

use sqlx::PgConnection;

use crate::db::trail::{self, Filter};
use crate::db::trail_export::{self, ExportError};
use crate::trail::bundle::{self, Resource};
use crate::trail::error::TrailError;
use crate::trail::tile::WIDTH;
use crate::trail::tree::leaf_hash;

/// What there is of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Bytes(Vec<u8>),
    /// The log is not so long.
    None,
    /// The entry of this index is longer than a bundle can say.
    TooLong(u64),
}

/// The first `width` hashes or entries of a resource, in a log of `size`.
///
/// # Errors
/// [`ExportError`]: what is stored is not what was sequenced.
pub async fn content(
    connection: &mut PgConnection,
    size: u64,
    resource: Resource,
    width: u64,
) -> Result<Content, ExportError> {
    if width == 0 || width > resource.width(size) {
        return Ok(Content::None);
    }
    match resource {
        Resource::Hashes(tile) => {
            let tiles = trail::tiles(connection, size, &[tile]).await?;
            let hashes = tiles.get(tile).and_then(|hashes| hashes.get(..width as usize));
            let hashes = hashes.ok_or_else(|| TrailError::tampered(resource.path(width), "it has a gap"))?;
            Ok(Content::Bytes(hashes.concat()))
        }
        Resource::Entries(index) => entries(connection, index * WIDTH, width).await,
    }
}

async fn entries(connection: &mut PgConnection, first: u64, width: u64) -> Result<Content, ExportError> {
    let page = trail::placed(connection, &Filter::default(), (first, first + width), width as i64).await?;
    if page.len() as u64 != width {
        return Err(TrailError::tampered(format!("entries from {first} on"), "there is a gap").into());
    }
    let mut bytes = Vec::new();
    for placed in &page {
        let leaf = trail_export::leaf(placed)?;
        if leaf_hash(&leaf) != placed.hash()? {
            let problem = format!("{} is not as it was recorded", placed.entry_id);
            return Err(TrailError::tampered(format!("entry {}", placed.index), problem).into());
        }
        if !bundle::push(&mut bytes, &leaf) {
            return Ok(Content::TooLong(placed.index.unsigned_abs()));
        }
    }
    Ok(Content::Bytes(bytes))
}
