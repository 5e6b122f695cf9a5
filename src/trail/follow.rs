//! Follows a log from its first entry, and stops at the first thing that is wrong.

use crate::trail::checkpoint::Checkpoint;
use crate::trail::error::TrailError;
use crate::trail::tree::{Frontier, Hash, leaf_hash};

/// What was read and found right so far.
#[derive(Debug, Clone, Default)]
pub struct Follower {
    frontier: Frontier,
    /// Up to here a checkpoint vouches for it.
    vouched: u64,
    /// Up to here one that was kept elsewhere does.
    anchored: u64,
}

impl Follower {
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Entries that a checkpoint vouches for.
    pub fn vouched(&self) -> u64 {
        self.vouched
    }

    /// The next entry in its canonical form, the index that it claims, and the hash that was recorded for it.
    ///
    /// # Errors
    /// [`TrailError::Tampered`] names the entry.
    pub fn entry(
        &mut self,
        index: u64,
        id: &str,
        canonical: &[u8],
        recorded: &Hash,
    ) -> Result<(), TrailError> {
        let expected = self.frontier.size();
        let place = || format!("entry {expected}");
        if index != expected {
            return Err(TrailError::tampered(
                place(),
                format!("it is missing; entry {index} ({id}) is in its place"),
            ));
        }
        let hash = leaf_hash(canonical);
        if hash != *recorded {
            let problem = format!("{id} is not as it was recorded");
            return Err(TrailError::tampered(place(), problem));
        }
        self.frontier.push(hash);
        Ok(())
    }

    /// A checkpoint that a signature was found right of. One further on than what was read says nothing yet.
    ///
    /// # Errors
    /// [`TrailError::Tampered`] names the entries among which the bad one is: those since the checkpoint before.
    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), TrailError> {
        self.holds(checkpoint, self.vouched, "not what the signed checkpoint says")?;
        self.vouched = checkpoint.size;
        Ok(())
    }

    /// A checkpoint of this very size that was kept outside: it counts more than those that came with the log.
    ///
    /// # Errors
    /// As [`Follower::checkpoint`].
    pub fn anchor(&mut self, known: &Checkpoint) -> Result<(), TrailError> {
        self.holds(known, self.anchored, "not what a checkpoint that was kept elsewhere says")?;
        self.anchored = known.size;
        Ok(())
    }

    fn holds(&self, checkpoint: &Checkpoint, from: u64, problem: &str) -> Result<(), TrailError> {
        let (size, signed) = (self.frontier.size(), checkpoint.size);
        if signed != size {
            let problem = format!("a checkpoint of {signed} entries where {size} were read");
            return Err(TrailError::tampered(format!("entry {}", size.min(signed)), problem));
        }
        if checkpoint.root == self.frontier.root() {
            return Ok(());
        }
        let place = if from == size {
            format!("checkpoint of {size} entries")
        } else {
            format!("entries {from} to {}", size - 1)
        };
        Err(TrailError::tampered(place, problem))
    }

    /// What must be true at the end: nothing after the last checkpoint, and nothing less than what is known from elsewhere.
    ///
    /// # Errors
    /// [`TrailError::Tampered`].
    pub fn end(&self, known: u64) -> Result<(), TrailError> {
        let size = self.frontier.size();
        if size < known {
            let problem = format!("the log ends here; a checkpoint of {known} entries is known");
            return Err(TrailError::tampered(format!("entry {size}"), problem));
        }
        if self.vouched < size {
            let place = format!("entry {}", self.vouched);
            return Err(TrailError::tampered(place, "no checkpoint vouches for it and what comes after it"));
        }
        Ok(())
    }
}
