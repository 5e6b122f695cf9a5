//! Exports of the log, a page at a time, as of one checkpoint. What is before a checkpoint never changes, so no snapshot is needed.

use sqlx::PgConnection;

use crate::db::error::DbError;
use crate::db::trail::{self, Filter, Placed};
use crate::trail::checkpoint::Checkpoint;
use crate::trail::error::TrailError;
use crate::trail::{canonical, export, ocsf, tile, tree};

/// Entries read at once.
const PAGE: i64 = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Database(#[from] DbError),
    #[error(transparent)]
    Trail(#[from] TrailError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Every entry, and the checkpoints between them. The filter must let all through.
    Whole,
    /// What the filter lets through, each with the proof of its place.
    Part,
    /// What the filter lets through, as events of OCSF.
    Ocsf,
}

/// What goes out, as of when, and how far it is.
#[derive(Debug)]
pub struct Export {
    checkpoint: Checkpoint,
    note: String,
    filter: Filter,
    form: Form,
    next: u64,
    begun: bool,
    /// Checkpoints that come next, smallest first.
    notes: std::collections::VecDeque<(i64, String)>,
}

/// # Errors
/// [`TrailError::Tampered`] if the entry is gone.
pub fn leaf(placed: &Placed) -> Result<Vec<u8>, TrailError> {
    let gone =
        || TrailError::tampered(format!("entry {}", placed.index), format!("{} is gone", placed.entry_id));
    canonical::leaf(placed.row.as_deref().ok_or_else(gone)?)
}

/// What is said of an entry that is there, and is another than its hash was taken of.
pub fn changed(placed: &Placed) -> TrailError {
    let problem = format!("{} is not as it was recorded", placed.entry_id);
    TrailError::tampered(format!("entry {}", placed.index), problem)
}

/// The hashes that lead from an entry to the root of a tree of `size`.
///
/// # Errors
/// [`ExportError`].
pub async fn proof(
    connection: &mut PgConnection,
    index: u64,
    size: u64,
) -> Result<Vec<tree::Hash>, ExportError> {
    let ranges = tree::inclusion(index, size)?;
    let tiles = trail::tiles(connection, size, &tile::needed(&ranges)).await?;
    Ok(tree::hashes(&ranges, &tiles)?)
}

impl Export {
    pub fn new(checkpoint: Checkpoint, note: String, filter: Filter, form: Form) -> Self {
        Self {
            checkpoint,
            note,
            filter,
            form,
            next: 0,
            begun: false,
            notes: std::collections::VecDeque::new(),
        }
    }

    /// The next lines; none at the end.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn page(&mut self, connection: &mut PgConnection) -> Result<Option<Vec<u8>>, ExportError> {
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            match self.form {
                Form::Whole => out.extend(export::whole_head(&self.checkpoint)?),
                Form::Part => out.extend(export::part_head(&self.note)?),
                Form::Ocsf => {}
            }
        }
        let size = self.checkpoint.size;
        let page = trail::placed(connection, &self.filter, (self.next, size), PAGE).await?;
        match page.last() {
            Some(last) => self.next = last.index as u64 + 1,
            None if self.form == Form::Whole && self.next < size => {
                return Err(TrailError::tampered(format!("entry {}", self.next), "it is missing").into());
            }
            None => return Ok((!out.is_empty()).then_some(out)),
        }
        match self.form {
            Form::Whole => self.whole(connection, &page, &mut out).await?,
            Form::Part => self.part(connection, &page, &mut out).await?,
            Form::Ocsf => events(&page, &mut out)?,
        }
        Ok(Some(out))
    }

    async fn whole(
        &mut self,
        connection: &mut PgConnection,
        page: &[Placed],
        out: &mut Vec<u8>,
    ) -> Result<(), ExportError> {
        for placed in page {
            out.extend(export::whole_entry(placed.index as u64, &leaf(placed)?, &placed.hash()?)?);
            if self.notes.is_empty() {
                self.notes = trail::notes_after(connection, placed.index as u64, PAGE).await?.into();
            }
            if self.notes.front().is_some_and(|(size, _)| *size == placed.index + 1)
                && let Some((_, note)) = self.notes.pop_front()
            {
                out.extend(export::whole_checkpoint(&note)?);
            }
        }
        Ok(())
    }

    async fn part(
        &self,
        connection: &mut PgConnection,
        page: &[Placed],
        out: &mut Vec<u8>,
    ) -> Result<(), ExportError> {
        let size = self.checkpoint.size;
        let paths = page.iter().map(|placed| tree::inclusion(placed.index as u64, size));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        let tiles = trail::tiles(connection, size, &tile::needed(&paths.concat())).await?;
        for (placed, path) in page.iter().zip(paths) {
            let proof = tree::hashes(&path, &tiles)?;
            out.extend(export::part_entry(placed.index as u64, &leaf(placed)?, &proof)?);
        }
        Ok(())
    }
}

fn events(page: &[Placed], out: &mut Vec<u8>) -> Result<(), ExportError> {
    for placed in page {
        let leaf = leaf(placed)?;
        // Its reader has nothing to verify it with.
        if tree::leaf_hash(&leaf) != placed.hash()? {
            return Err(changed(placed).into());
        }
        let entry = canonical::parse(&leaf)?;
        let event = ocsf::event(placed.index as u64, &entry, env!("CARGO_PKG_VERSION"))?;
        out.extend_from_slice(format!("{event}\n").as_bytes());
    }
    Ok(())
}
