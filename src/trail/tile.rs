//! The layout of C2SP tlog-tiles: what is stored are hashes of levels 0, 8, 16 …, in tiles of up to 256.
//!
//! Every other hash of the tree is made from one tile. Paths and contents are those of the specification, so that
//! its tools can read the log.

use std::collections::HashMap;

use crate::trail::error::TrailError;
use crate::trail::tree::{Hash, Node, Nodes, Range, node_hash};

/// Levels of the tree that one tile covers.
pub const HEIGHT: u8 = 8;
/// Hashes in a full tile.
pub const WIDTH: u64 = 1 << HEIGHT;
/// Highest level of tiles that a path may name.
const MAX_LEVEL: u8 = 63;

/// Which tile: `level` 0 has leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    pub level: u8,
    pub index: u64,
}

/// Hashes that a tree of `size` stores at a level of tiles.
pub fn stored(level: u8, size: u64) -> u64 {
    size.checked_shr(u32::from(level) * u32::from(HEIGHT)).unwrap_or(0)
}

impl Tile {
    fn holding(node: Node) -> Self {
        let level = node.level / HEIGHT;
        let index = (node.index << (node.level % HEIGHT)) / WIDTH;
        Self { level, index }
    }

    /// How many hashes the tile has in a tree of `size`: 256 when full, 0 when there is none.
    pub fn width(self, size: u64) -> u64 {
        stored(self.level, size).saturating_sub(self.index.saturating_mul(WIDTH)).min(WIDTH)
    }

    /// `tile/<L>/<N>[.p/<W>]`.
    pub fn path(self, width: u64) -> String {
        format!("tile/{}/{}", self.level, index_path(self.index, width))
    }

    /// The tile and its width.
    ///
    /// # Errors
    /// [`TrailError::Malformed`] for anything that [`Tile::path`] does not make.
    pub fn parse(path: &str) -> Result<(Self, u64), TrailError> {
        let malformed = || TrailError::malformed("tile's path", format!("{path:?}"));
        let parse = || -> Option<(Self, u64)> {
            let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
            let (index, width) = parse_index(rest)?;
            Some((Self { level: level.parse().ok()?, index }, width))
        };
        let (tile, width) = parse().ok_or_else(malformed)?;
        // Made again, so that there is one path a tile: no signs, no leading zeros, no missing x.
        let one = (1..=WIDTH).contains(&width) && tile.level <= MAX_LEVEL && tile.path(width) == path;
        if one { Ok((tile, width)) } else { Err(malformed()) }
    }
}

/// `<N>[.p/<W>]`.
pub(super) fn index_path(index: u64, width: u64) -> String {
    let mut groups = vec![format!("{:03}", index % 1000)];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.push(format!("x{:03}", rest % 1000));
        rest /= 1000;
    }
    groups.reverse();
    let partial = if width < WIDTH { format!(".p/{width}") } else { String::new() };
    format!("{}{partial}", groups.join("/"))
}

/// Index and width, of more texts than [`index_path`] makes.
pub(super) fn parse_index(text: &str) -> Option<(u64, u64)> {
    let (index, width) = match text.split_once(".p/") {
        Some((index, width)) => (index, width.parse().ok()?),
        None => (text, WIDTH),
    };
    let index = index.split('/').try_fold(0u64, |sum, group| {
        let group: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
        sum.checked_mul(1000)?.checked_add(group)
    })?;
    Some((index, width))
}

/// The tiles that hold what proofs need.
pub fn needed(ranges: &[Range]) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = ranges.iter().flat_map(|range| range.nodes()).map(Tile::holding).collect();
    tiles.sort_unstable();
    tiles.dedup();
    tiles
}

/// Tiles in memory.
#[derive(Debug, Clone, Default)]
pub struct Tiles {
    tiles: HashMap<Tile, Vec<Hash>>,
}

impl Tiles {
    pub fn insert(&mut self, tile: Tile, hashes: Vec<Hash>) {
        self.tiles.insert(tile, hashes);
    }

    pub fn get(&self, tile: Tile) -> Option<&[Hash]> {
        self.tiles.get(&tile).map(Vec::as_slice)
    }

    /// Adds a leaf at the place that is next; the hashes to be stored above it, by level of tiles and index there.
    ///
    /// # Errors
    /// [`TrailError::HashMissing`] if the tiles of the right edge are not all there.
    pub fn push(&mut self, index: u64, leaf: Hash) -> Result<Vec<(u8, u64, Hash)>, TrailError> {
        let (mut level, mut index, mut hash, mut above) = (0, index, leaf, Vec::new());
        loop {
            let tile = Tile { level, index: index / WIDTH };
            let hashes = self.tiles.entry(tile).or_default();
            if hashes.len() as u64 != index % WIDTH {
                return Err(TrailError::HashMissing { level: level * HEIGHT, index });
            }
            hashes.push(hash);
            if hashes.len() as u64 != WIDTH {
                return Ok(above);
            }
            hash = join(hashes);
            // A full tile is never looked at again from the edge.
            self.tiles.remove(&tile);
            index = tile.index;
            level += 1;
            above.push((level, index, hash));
        }
    }
}

/// The hash above a power of two of hashes.
fn join(hashes: &[Hash]) -> Hash {
    let mut row: Vec<Hash> = hashes.to_vec();
    while row.len() > 1 {
        row = row.chunks(2).map(|pair| node_hash(&pair[0], &pair[pair.len() - 1])).collect();
    }
    row.first().copied().unwrap_or_default()
}

impl Nodes for Tiles {
    fn node(&self, node: Node) -> Result<Hash, TrailError> {
        let missing = TrailError::HashMissing { level: node.level, index: node.index };
        let inside = node.level % HEIGHT;
        let first = ((node.index << inside) % WIDTH) as usize;
        let hashes = self.tiles.get(&Tile::holding(node)).ok_or_else(|| missing.clone())?;
        hashes.get(first..first + (1 << inside)).map(join).ok_or(missing)
    }
}
