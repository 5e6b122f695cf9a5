//! One step: what waits gets its places, and a signed checkpoint, in one transaction. A crash at any point leaves all of
//! it or nothing; the next step makes the same of what waits.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db;
use crate::db::trail::{Head, Waiting};
use crate::sequencer::error::SequencerError;
use crate::sequencer::keep::Keys;
use crate::trail::canonical;
use crate::trail::checkpoint::Checkpoint;
use crate::trail::note::VerifierKey;
use crate::trail::tile::{self, HEIGHT, Tile, Tiles, WIDTH};
use crate::trail::tree::{self, Frontier, Hash, leaf_hash};

pub struct Sequencer {
    pool: PgPool,
    keys: Keys,
    batch: i64,
    /// Signed and kept here or by an anchor: the tree must have passed through each.
    known: Vec<Checkpoint>,
    frontier: Frontier,
    /// The tiles of the right edge.
    edge: Tiles,
}

/// What a step made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub size: u64,
    pub entries: usize,
    pub note: String,
    /// As many as fit: more may wait.
    pub full: bool,
}

impl Sequencer {
    pub fn new(pool: PgPool, keys: Keys, batch: u64, known: Vec<Checkpoint>) -> Self {
        let batch = i64::try_from(batch).unwrap_or(i64::MAX);
        Self { pool, keys, batch, known, frontier: Frontier::default(), edge: Tiles::default() }
    }

    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub fn verifier(&self) -> VerifierKey {
        self.keys.signer.verifier()
    }

    /// Holds the stored tree against every checkpoint that is known; the last note.
    ///
    /// # Errors
    /// [`SequencerError::Refused`] says what is wrong.
    pub async fn check(&mut self) -> Result<Option<String>, SequencerError> {
        let mut connection = self.pool.acquire().await?;
        if let Some(stray) = db::trail::stray(&mut connection).await? {
            return Err(SequencerError::Refused(format!(
                "entry {stray} neither has a place nor waits for one"
            )));
        }
        let head = db::trail::head(&mut connection).await?;
        self.catch_up(&mut connection, &head).await?;
        Ok(head.note)
    }

    /// None if nothing waits.
    ///
    /// # Errors
    /// [`SequencerError`]. Whatever it is, the transaction is undone, and the next step begins from what the database has.
    pub async fn step(&mut self) -> Result<Option<Step>, SequencerError> {
        let mut transaction = self.pool.begin().await?;
        let waiting = db::trail::take(&mut transaction, self.batch).await?;
        if waiting.is_empty() {
            transaction.rollback().await?;
            return Ok(None);
        }
        // After the queue's rows were had: whoever had them before has committed.
        let head = db::trail::head(&mut transaction).await?;
        self.catch_up(&mut transaction, &head).await?;
        let (first, full) = (self.frontier.size(), waiting.len() as i64 == self.batch);
        let (mut frontier, mut edge) = (self.frontier.clone(), self.edge.clone());
        let (ids, leaves) = leaves(waiting)?;
        let mut nodes = Vec::new();
        for leaf in &leaves {
            nodes.extend(edge.push(frontier.size(), *leaf)?);
            frontier.push(*leaf);
        }
        let (size, root) = (frontier.size(), frontier.root());
        let checkpoint = Checkpoint { origin: self.verifier().name().to_owned(), size, root };
        let note = checkpoint.sign(&self.keys.signer).to_string();
        db::trail::add_leaves(&mut transaction, first, &ids, &leaves).await?;
        db::trail::add_nodes(&mut transaction, &nodes).await?;
        db::trail::add_checkpoint(&mut transaction, size, &root, &note).await?;
        transaction.commit().await?;
        (self.frontier, self.edge) = (frontier, edge);
        self.known = vec![checkpoint];
        Ok(Some(Step { size, entries: ids.len(), note, full }))
    }

    /// Takes over the database's tree if it went on without us: after a start, a commit whose answer was lost, or
    /// another sequencer's step.
    async fn catch_up(&mut self, connection: &mut PgConnection, head: &Head) -> Result<(), SequencerError> {
        let refused = |problem: String| Err(SequencerError::Refused(problem));
        let stored = head.note.as_deref().map(|note| self.keys.open(note)).transpose()?;
        let (size, root) = stored.map_or((0, tree::empty_root()), |stored| (stored.size, stored.root));
        if head.leaves as u64 != size {
            return refused(format!("{} entries have a place, the last checkpoint has {size}", head.leaves));
        }
        if let Some(known) = self.known.iter().find(|known| known.size > size) {
            return refused(format!(
                "a checkpoint of {} entries is known, and the database has {size}: it was cut, or is an older copy",
                known.size
            ));
        }
        if size != self.frontier.size() {
            let edge = edge(connection, size).await?;
            self.frontier = Frontier::of(size, &edge)?;
            self.edge = edge;
        }
        if self.frontier.root() != root {
            return refused(format!("the hashes of its {size} entries are not those of its last checkpoint"));
        }
        for known in &self.known {
            let ranges = tree::consistency(known.size, size)?;
            let tiles = db::trail::tiles(connection, size, &tile::needed(&ranges)).await?;
            let proof = tree::hashes(&ranges, &tiles)?;
            let held = tree::verify_consistency((known.size, &known.root), (size, &root), &proof);
            if held.is_err() {
                return refused(format!(
                    "its first {} entries are not those that a checkpoint vouched for",
                    known.size
                ));
            }
        }
        Ok(())
    }
}

/// The unfinished tile of each level.
async fn edge(connection: &mut PgConnection, size: u64) -> Result<Tiles, SequencerError> {
    let levels = (0..).take_while(|level| tile::stored(*level, size) > 0);
    let last = levels.map(|level| Tile { level, index: tile::stored(level, size) / WIDTH });
    let tiles: Vec<Tile> = last.take(usize::from(u8::MAX / HEIGHT)).collect();
    let read = db::trail::tiles(connection, size, &tiles).await?;
    for tile in tiles {
        let there = read.get(tile).map_or(0, <[Hash]>::len) as u64;
        if there != tile.width(size) {
            let problem = format!("{} has {there} hashes", tile.path(tile.width(size)));
            return Err(SequencerError::Refused(problem));
        }
    }
    Ok(read)
}

fn leaves(waiting: Vec<Waiting>) -> Result<(Vec<Uuid>, Vec<Hash>), SequencerError> {
    let mut leaves = (Vec::with_capacity(waiting.len()), Vec::with_capacity(waiting.len()));
    for Waiting { entry_id, row, .. } in waiting {
        let gone = || SequencerError::Refused(format!("entry {entry_id} was removed before it had a place"));
        let leaf = canonical::leaf(&row.ok_or_else(gone)?)?;
        leaves.0.push(entry_id);
        leaves.1.push(leaf_hash(&leaf));
    }
    Ok(leaves)
}
