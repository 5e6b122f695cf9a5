//! The RFC 6962 Merkle tree over SHA-256: roots, proofs, and what verifies them.
//!
//! Own code, because the kept crates fall short: `ct-merkle` keeps its whole tree in memory and proves nothing from stored
//! tiles, `tlog_tiles` has stood still on older hash crates. The tests hold every proof against `ct-merkle`.

use sha2::{Digest as _, Sha256};

use crate::trail::error::TrailError;

pub type Hash = [u8; 32];

/// More entries than this are no tree: sizes are `bigint` in the database.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// A subtree whose leaves are all there: those from `index << level`, `1 << level` of them. Its hash never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    pub level: u8,
    pub index: u64,
}

/// Where hashes of full subtrees come from.
pub trait Nodes {
    /// # Errors
    /// [`TrailError::HashMissing`].
    fn node(&self, node: Node) -> Result<Hash, TrailError>;
}

pub fn leaf_hash(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The root of a tree without a leaf.
pub fn empty_root() -> Hash {
    Sha256::digest(b"").into()
}

/// The right edge of a growing tree: the full subtrees whose sizes are the ones in the binary form of its size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Largest subtree first.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// # Errors
    /// [`TrailError::HashMissing`].
    pub fn of(size: u64, nodes: &impl Nodes) -> Result<Self, TrailError> {
        let peaks = cover(0, size).into_iter().map(|node| nodes.node(node)).collect::<Result<_, _>>()?;
        Ok(Self { size, peaks })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    pub fn root(&self) -> Hash {
        fold(&self.peaks)
    }
}

/// From the right: the smaller subtrees are joined first.
fn fold(peaks: &[Hash]) -> Hash {
    peaks.iter().copied().rev().reduce(|right, left| node_hash(&left, &right)).unwrap_or_else(empty_root)
}

/// The full subtrees that `[low, high)` falls into, from left to right, where it begins at a multiple of a power of two
/// not smaller than itself.
fn cover(low: u64, high: u64) -> Vec<Node> {
    let (mut at, mut nodes) = (low, Vec::new());
    while at < high {
        let level = (high - at).ilog2() as u8;
        nodes.push(Node { level, index: at >> level });
        at += 1 << level;
    }
    nodes
}

/// Leaves `low` up to and without `high`: what one hash of a proof stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    low: u64,
    high: u64,
}

impl Range {
    pub fn nodes(self) -> Vec<Node> {
        cover(self.low, self.high)
    }

    fn hash(self, nodes: &impl Nodes) -> Result<Hash, TrailError> {
        let peaks: Vec<Hash> =
            self.nodes().into_iter().map(|node| nodes.node(node)).collect::<Result<_, _>>()?;
        Ok(fold(&peaks))
    }
}

/// Largest power of two below `n`, which is at least 2.
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// What the root of a tree is made of.
pub fn whole(size: u64) -> Vec<Range> {
    vec![Range { low: 0, high: size }]
}

/// PATH of RFC 6962, section 2.1.1: deepest first.
///
/// # Errors
/// [`TrailError::Malformed`] unless `index < size`.
pub fn inclusion(index: u64, size: u64) -> Result<Vec<Range>, TrailError> {
    if index >= size || size > MAX_SIZE {
        let problem = format!("entry {index} of a tree of {size}");
        return Err(TrailError::malformed("place in a tree", problem));
    }
    let (mut low, mut high, mut path) = (0, size, Vec::new());
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            path.push(Range { low: middle, high });
            high = middle;
        } else {
            path.push(Range { low, high: middle });
            low = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// PROOF of RFC 6962, section 2.1.2.
///
/// # Errors
/// [`TrailError::Malformed`] unless `old <= new`.
pub fn consistency(old: u64, new: u64) -> Result<Vec<Range>, TrailError> {
    if old > new || new > MAX_SIZE {
        return Err(TrailError::malformed("pair of sizes", format!("{old} and {new}")));
    }
    let mut path = Vec::new();
    if old == 0 || old == new {
        return Ok(path);
    }
    let (mut low, mut high) = (0, new);
    // Until the old tree ends where a subtree of the new one does.
    while high != old {
        let middle = low + split(high - low);
        if old <= middle {
            path.push(Range { low: middle, high });
            high = middle;
        } else {
            path.push(Range { low, high: middle });
            low = middle;
        }
    }
    if low != 0 {
        path.push(Range { low, high });
    }
    path.reverse();
    Ok(path)
}

/// # Errors
/// [`TrailError::HashMissing`].
pub fn hashes(ranges: &[Range], nodes: &impl Nodes) -> Result<Vec<Hash>, TrailError> {
    ranges.iter().map(|range| range.hash(nodes)).collect()
}

/// # Errors
/// [`TrailError::HashMissing`].
pub fn root(size: u64, nodes: &impl Nodes) -> Result<Hash, TrailError> {
    Ok(Frontier::of(size, nodes)?.root())
}

/// RFC 9162, section 2.1.3.2.
///
/// # Errors
/// [`TrailError::Proof`].
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), TrailError> {
    let wrong = TrailError::Proof { what: "inclusion proof" };
    if index >= size {
        return Err(wrong);
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(wrong);
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    if last == 0 && hash == *root { Ok(()) } else { Err(wrong) }
}

/// RFC 9162, section 2.1.4.2. An empty tree is a beginning of every other.
///
/// # Errors
/// [`TrailError::Proof`].
pub fn verify_consistency(
    (old, old_root): (u64, &Hash),
    (new, new_root): (u64, &Hash),
    proof: &[Hash],
) -> Result<(), TrailError> {
    let wrong = TrailError::Proof { what: "consistency proof" };
    if old > new {
        return Err(wrong);
    }
    if old == 0 || old == new {
        let same = if old == new { old_root == new_root } else { *old_root == empty_root() };
        return if same && proof.is_empty() { Ok(()) } else { Err(wrong) };
    }
    let mut rest = proof.iter();
    let (mut at, mut last) = (old - 1, new - 1);
    let common = at.trailing_ones();
    at >>= common;
    last >>= common;
    // A full subtree is its own start.
    let start = if old.is_power_of_two() { Some(old_root) } else { rest.next() };
    let Some(start) = start else { return Err(wrong) };
    let (mut old_hash, mut new_hash) = (*start, *start);
    for sibling in rest {
        if last == 0 {
            return Err(wrong);
        }
        if at & 1 == 1 || at == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    if last == 0 && old_hash == *old_root && new_hash == *new_root { Ok(()) } else { Err(wrong) }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
