//! Entry bundles of C2SP tlog-tiles: the leaves under one tile of level 0, each behind its length.

use crate::trail::error::TrailError;
use crate::trail::tile::{Tile, WIDTH, index_path, parse_index};

/// What is served of a log beside its checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Hashes(Tile),
    /// The entries under the tile of level 0 of this index.
    Entries(u64),
}

impl Resource {
    /// Entries or hashes in a log of `size`: 256 when full, 0 when there is none.
    pub fn width(self, size: u64) -> u64 {
        match self {
            Self::Hashes(tile) => tile.width(size),
            Self::Entries(index) => Tile { level: 0, index }.width(size),
        }
    }

    /// `tile/<L>/<N>[.p/<W>]` or `tile/entries/<N>[.p/<W>]`.
    pub fn path(self, width: u64) -> String {
        match self {
            Self::Hashes(tile) => tile.path(width),
            Self::Entries(index) => format!("tile/entries/{}", index_path(index, width)),
        }
    }

    /// The resource and its width.
    ///
    /// # Errors
    /// [`TrailError::Malformed`] for anything that [`Resource::path`] does not make.
    pub fn parse(path: &str) -> Result<(Self, u64), TrailError> {
        let Some(rest) = path.strip_prefix("tile/entries/") else {
            return Tile::parse(path).map(|(tile, width)| (Self::Hashes(tile), width));
        };
        let parsed = parse_index(rest).map(|(index, width)| (Self::Entries(index), width));
        let one = parsed.filter(|(this, width)| (1..=WIDTH).contains(width) && this.path(*width) == path);
        one.ok_or_else(|| TrailError::malformed("tile's path", format!("{path:?}")))
    }
}

/// Adds an entry. False, and nothing is added: it is longer than a bundle can say.
pub fn push(bundle: &mut Vec<u8>, leaf: &[u8]) -> bool {
    let Ok(length) = u16::try_from(leaf.len()) else { return false };
    bundle.extend(length.to_be_bytes());
    bundle.extend(leaf);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_has_one_path() {
        let hashes = |level, index| Resource::Hashes(Tile { level, index });
        for (path, expected) in [
            ("tile/entries/000", (Resource::Entries(0), 256)),
            ("tile/entries/x001/x234/067", (Resource::Entries(1_234_067), 256)),
            ("tile/entries/x001/234.p/8", (Resource::Entries(1_234), 8)),
            ("tile/0/273.p/112", (hashes(0, 273), 112)),
            ("tile/2/000.p/1", (hashes(2, 0), 1)),
        ] {
            let (resource, width) = Resource::parse(path).unwrap();
            assert_eq!((resource, width), expected, "{path}");
            assert_eq!(resource.path(width), path);
        }
        for wrong in [
            "",
            "tile/",
            "tile/entries",
            "tile/entries/",
            "tile/entries/0",
            "tile/entries/0000",
            "tile/entries/x000/001",
            "tile/entries/001/001",
            "tile/entries/000.p/0",
            "tile/entries/000.p/256",
            "tile/entries/000.p/08",
            "tile/entries/+00",
            "tile/entries/../000",
            "tile/64/000",
            "tile/00/000",
            "tile/entries/x999/x999/x999/x999/x999/x999/x999/999",
            "tile/entries/000.p/1.p/1",
        ] {
            assert!(Resource::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_too_long_is_not_cut() {
        let mut bundle = Vec::new();
        assert!(push(&mut bundle, b"ab") && push(&mut bundle, b"") && !push(&mut bundle, &[0; 65_536]));
        assert_eq!(bundle, b"\0\x02ab\0\0");
        assert!(push(&mut bundle, &[0; 65_535]));
    }
}
