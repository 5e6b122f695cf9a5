use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;

use crate::trail::error::TrailError;
use crate::trail::tile::{self, Tile, Tiles, WIDTH};
use crate::trail::tree::*;

/// The leaves of RFC 6962's reference tests, and the roots of their trees.
const LEAVES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

/// A tree in tiles that keeps all of them.
struct Whole {
    tiles: Tiles,
    roots: Vec<Hash>,
}

fn grown(leaves: impl IntoIterator<Item = Hash>) -> Whole {
    let (mut levels, mut edge, mut frontier) = (vec![Vec::new()], Tiles::default(), Frontier::default());
    let mut roots = vec![frontier.root()];
    for (index, leaf) in leaves.into_iter().enumerate() {
        levels[0].push(leaf);
        for (level, _, hash) in edge.push(index as u64, leaf).unwrap() {
            levels.resize(levels.len().max(usize::from(level) + 1), Vec::new());
            levels[usize::from(level)].push(hash);
        }
        frontier.push(leaf);
        roots.push(frontier.root());
    }
    let mut tiles = Tiles::default();
    for (level, hashes) in levels.iter().enumerate() {
        assert_eq!(hashes.len() as u64, tile::stored(level as u8, frontier.size()));
        for (index, hashes) in hashes.chunks(WIDTH as usize).enumerate() {
            let tile = Tile { level: level as u8, index: index as u64 };
            assert_eq!(tile.width(frontier.size()), hashes.len() as u64);
            tiles.insert(tile, hashes.to_vec());
        }
    }
    Whole { tiles, roots }
}

fn numbered(count: u64) -> Whole {
    grown((0..count).map(|number| leaf_hash(&number.to_be_bytes())))
}

impl Whole {
    /// Only the tiles that are said to be needed.
    fn only(&self, ranges: &[Range]) -> Tiles {
        let mut few = Tiles::default();
        for tile in tile::needed(ranges) {
            few.insert(tile, self.tiles.get(tile).unwrap().to_vec());
        }
        few
    }

    fn inclusion(&self, index: u64, size: u64) -> Vec<Hash> {
        let ranges = inclusion(index, size).unwrap();
        hashes(&ranges, &self.only(&ranges)).unwrap()
    }

    fn consistency(&self, old: u64, new: u64) -> Vec<Hash> {
        let ranges = consistency(old, new).unwrap();
        hashes(&ranges, &self.only(&ranges)).unwrap()
    }
}

fn peer(count: u64) -> MemoryBackedTree<sha2::Sha256, [u8; 8]> {
    let mut tree = MemoryBackedTree::new();
    (0..count).for_each(|number| tree.push(number.to_be_bytes()));
    tree
}

fn bytes(proof: &[Hash]) -> Vec<u8> {
    proof.concat()
}

#[test]
fn has_the_roots_of_rfc_6962() {
    let leaves = LEAVES.map(|leaf| leaf_hash(&hex::decode(leaf).unwrap()));
    let whole = grown(leaves);
    assert_eq!(hex::encode(empty_root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(whole.roots[0], empty_root());
    for (size, expected) in ROOTS.iter().enumerate() {
        assert_eq!(hex::encode(whole.roots[size + 1]), *expected);
        assert_eq!(root(size as u64 + 1, &whole.tiles).unwrap(), whole.roots[size + 1]);
    }
    // The reference's own proofs: leaf 1 of 1, 1 of 8, 6 of 8, 3 of 3, 2 of 5.
    assert!(whole.inclusion(0, 1).is_empty());
    let path = |index, size| whole.inclusion(index, size).iter().map(hex::encode).collect::<Vec<_>>();
    assert_eq!(
        path(0, 8),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ]
    );
    assert_eq!(path(2, 3), ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]);
    let consistency: Vec<String> = whole.consistency(6, 8).iter().map(hex::encode).collect();
    assert_eq!(
        consistency,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
}

/// All proofs of all small trees: what `ct-merkle` makes, and nothing that is near it holds.
#[test]
fn proofs_are_those_of_another_implementation() {
    const SIZE: u64 = 40;
    let whole = numbered(SIZE);
    for size in 0..=SIZE {
        let peer = peer(size);
        let root = whole.roots[size as usize];
        assert_eq!(peer.root().as_bytes().as_slice(), root);
        for index in 0..size {
            let proof = whole.inclusion(index, size);
            assert_eq!(bytes(&proof), peer.prove_inclusion(index as usize).as_bytes());
            let leaf = leaf_hash(&index.to_be_bytes());
            verify_inclusion(&leaf, index, size, &proof, &root).unwrap();
            for other in (0..size + 2).filter(|other| *other != index) {
                assert!(verify_inclusion(&leaf, other, size, &proof, &root).is_err(), "{index} as {other}");
            }
        }
        for old in 0..=size {
            let proof = whole.consistency(old, size);
            if old > 0 {
                assert_eq!(bytes(&proof), peer.prove_consistency((size - old) as usize).as_bytes());
            }
            let was = whole.roots[old as usize];
            verify_consistency((old, &was), (size, &root), &proof).unwrap();
            for other in (0..=size).filter(|other| *other != old) {
                assert!(verify_consistency((other, &was), (size, &root), &proof).is_err());
            }
        }
    }
    assert!(inclusion(0, 0).is_err() && inclusion(5, 5).is_err() && consistency(6, 5).is_err());
    assert!(inclusion(0, u64::MAX).is_err());
}

#[test]
fn proofs_across_tiles_hold() {
    const SIZE: u64 = 66_000;
    let whole = numbered(SIZE);
    let root = whole.roots[SIZE as usize];
    for index in [0, 1, 255, 256, 257, 65_535, 65_536, 65_791, 65_792, SIZE - 1] {
        let proof = whole.inclusion(index, SIZE);
        verify_inclusion(&leaf_hash(&index.to_be_bytes()), index, SIZE, &proof, &root).unwrap();
        let proof = whole.consistency(index + 1, SIZE);
        verify_consistency((index + 1, &whole.roots[index as usize + 1]), (SIZE, &root), &proof).unwrap();
    }
    assert_eq!(Frontier::of(SIZE, &whole.tiles).unwrap().root(), root);
    let missing = Frontier::of(SIZE, &Tiles::default());
    assert!(matches!(missing, Err(TrailError::HashMissing { .. })));
}

#[test]
fn tiles_have_the_paths_of_the_specification() {
    let path = |level, index, width| Tile { level, index }.path(width);
    assert_eq!(path(0, 0, 256), "tile/0/000");
    assert_eq!(path(0, 1_234_067, 256), "tile/0/x001/x234/067");
    assert_eq!(path(1, 273, 112), "tile/1/273.p/112");
    // The specification's example: a tree of 70,000 has these partial tiles.
    assert_eq!(Tile { level: 0, index: 273 }.width(70_000), 112);
    assert_eq!(Tile { level: 1, index: 1 }.width(70_000), 17);
    assert_eq!(Tile { level: 2, index: 0 }.width(70_000), 1);
    assert_eq!(Tile { level: 8, index: 0 }.width(u64::MAX), 0);
    for wrong in [
        "tile/0/0",
        "tile/0/1000",
        "tile/00/000",
        "tile/0/x000/001",
        "tile/0/001.p/0",
        "tile/0/001.p/256",
        "tile/0/001.p/+1",
        "tile/64/001",
        "tile/0/x001",
        "tile/0/",
        "tile/0/000/",
        "/tile/0/000",
        "tile/-1/000",
    ] {
        assert!(Tile::parse(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_path_is_read_as_it_was_made(level in 0u8..=63, index: u64, width in 1u64..=256) {
        let tile = Tile { level, index };
        prop_assert_eq!(Tile::parse(&tile.path(width)).unwrap(), (tile, width));
    }

    #[test]
    fn any_path_is_read_or_refused(path in "(tile/)?[0-9x/.p]{0,40}") {
        if let Ok((tile, width)) = Tile::parse(&path) {
            prop_assert_eq!(tile.path(width), path);
        }
    }

    #[test]
    fn one_bit_undoes_a_proof(size in 2u64..300, place: u64, bit in 0usize..256, hash: usize) {
        let whole = numbered(size);
        let (index, root) = (place % size, whole.roots[size as usize]);
        let leaf = leaf_hash(&index.to_be_bytes());
        let flip = |proof: &mut Vec<Hash>| {
            let at = hash % proof.len();
            proof[at][bit / 8] ^= 1 << (bit % 8);
        };
        let mut proof = whole.inclusion(index, size);
        verify_inclusion(&leaf, index, size, &proof, &root).unwrap();
        let mut cut = proof.clone();
        cut.pop();
        prop_assert!(verify_inclusion(&leaf, index, size, &cut, &root).is_err());
        cut = proof.clone();
        cut.push(leaf);
        prop_assert!(verify_inclusion(&leaf, index, size, &cut, &root).is_err());
        flip(&mut proof);
        prop_assert!(verify_inclusion(&leaf, index, size, &proof, &root).is_err());

        let old = index + 1;
        let was = whole.roots[old as usize];
        let mut proof = whole.consistency(old, size);
        verify_consistency((old, &was), (size, &root), &proof).unwrap();
        if old < size {
            let mut other = was;
            other[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(verify_consistency((old, &other), (size, &root), &proof).is_err());
            prop_assert!(verify_consistency((old, &was), (size, &other), &proof).is_err());
            flip(&mut proof);
            prop_assert!(verify_consistency((old, &was), (size, &root), &proof).is_err());
        }
    }

    #[test]
    fn nonsense_is_refused_without_a_panic(
        index: u64, old: u64, size: u64, proof in prop::collection::vec(any::<Hash>(), 0..70), leaf: Hash, root: Hash
    ) {
        prop_assert!(verify_inclusion(&leaf, index, size, &proof, &root).is_err());
        prop_assert!(verify_consistency((old, &leaf), (size, &root), &proof).is_err());
    }
}
