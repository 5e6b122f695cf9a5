use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use secrecy::SecretBox;
use serde_json::{Value, json};

use crate::trail::canonical::leaf;
use crate::trail::checkpoint::Checkpoint;
use crate::trail::error::TrailError;
use crate::trail::export::*;
use crate::trail::note::{Kind, SignerKey};
use crate::trail::tile::{Tile, Tiles};
use crate::trail::tree::{self, Frontier, Hash, leaf_hash};

const ORIGIN: &str = "kage.example/audit";

fn key(seed: u8) -> SignerKey {
    SignerKey::new(ORIGIN, Kind::Log, &SecretBox::new(Box::new([seed; 32]))).unwrap()
}

fn entry(number: usize) -> Vec<u8> {
    let row = json!({ "id": format!("id-{number}"), "at": "2026-11-22T12:00:00.123456+00:00", "action": "task.submit",
        "actor_kind": "key", "actor_id": "k", "object": format!("task:{number}"), "outcome": "done",
        "details": { "n": number, "s": "é\n" }, "address": null });
    leaf(&row.to_string()).unwrap()
}

fn checkpoint(frontier: &Frontier) -> Checkpoint {
    Checkpoint { origin: ORIGIN.to_owned(), size: frontier.size(), root: frontier.root() }
}

/// A whole export of these entries with a checkpoint every third, signed by `key`.
fn export(entries: &[Vec<u8>], key: &SignerKey) -> Vec<u8> {
    let (mut frontier, mut body) = (Frontier::default(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        frontier.push(leaf_hash(entry));
        body.extend(whole_entry(index as u64, entry, &leaf_hash(entry)).unwrap());
        if index % 3 == 2 || index + 1 == entries.len() {
            body.extend(whole_checkpoint(&checkpoint(&frontier).sign(key).to_string()).unwrap());
        }
    }
    let mut all = whole_head(&checkpoint(&frontier)).unwrap();
    all.extend(body);
    all
}

fn part(entries: &[Vec<u8>], chosen: &[u64], key: &SignerKey) -> Vec<u8> {
    let leaves: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    let mut frontier = Frontier::default();
    leaves.iter().for_each(|leaf| frontier.push(*leaf));
    let mut tiles = Tiles::default();
    tiles.insert(Tile { level: 0, index: 0 }, leaves);
    let mut all = part_head(&checkpoint(&frontier).sign(key).to_string()).unwrap();
    for index in chosen {
        let proof = tree::hashes(&tree::inclusion(*index, frontier.size()).unwrap(), &tiles).unwrap();
        all.extend(part_entry(*index, &entries[*index as usize], &proof).unwrap());
    }
    all
}

fn verify(export: &[u8], known: &[Checkpoint]) -> Result<Verified, TrailError> {
    let mut reader = Reader::new(vec![key(1).verifier()], known.to_vec());
    let export =
        export.strip_suffix(b"\n").ok_or_else(|| TrailError::malformed("export", "no newline at its end"))?;
    for line in export.split(|byte| *byte == b'\n') {
        reader.line(line)?;
    }
    reader.end()
}

fn entries(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(entry).collect()
}

fn place(result: Result<Verified, TrailError>) -> String {
    match result {
        Err(TrailError::Tampered { place, .. }) => place,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ten_thousand_flipped_bits_are_all_seen() {
    let seed = 0x6b61_6765;
    let mut chance = StdRng::seed_from_u64(seed);
    let all = entries(4);
    for export in [export(&all, &key(1)), part(&all, &[0, 3], &key(1))] {
        verify(&export, &[]).unwrap();
        for _ in 0..5_000 {
            let (at, bit) = (chance.random_range(0..export.len()), chance.random_range(0..8));
            let mut flipped = export.clone();
            flipped[at] ^= 1 << bit;
            let seen = verify(&flipped, &[]);
            assert!(seen.is_err(), "byte {at} bit {bit}: {}", String::from_utf8_lossy(&flipped));
        }
    }
}

#[test]
fn the_first_bad_entry_is_named() {
    let all = entries(11);
    let good = export(&all, &key(1));
    assert_eq!(verify(&good, &[]).unwrap().entries, 11);
    let lines: Vec<Vec<u8>> = good.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        place(verify(&lines.concat(), &[]))
    };
    // Line 1 is the head, then three entries and a checkpoint each: entry 4 is line 6.
    let changed = String::from_utf8(lines[6].clone()).unwrap().replace("task:4", "task:5").into_bytes();
    assert_eq!(with(&|lines| lines[6] = changed.clone()), "entry 4");
    assert_eq!(with(&|lines| drop(lines.remove(6))), "entry 4");
    assert_eq!(with(&|lines| lines.swap(6, 7)), "entry 4");
    assert_eq!(with(&|lines| lines.insert(6, lines[6].clone())), "entry 5");
    assert_eq!(with(&|lines| drop(lines.pop())), "entry 9");
    assert_eq!(with(&|lines| lines.truncate(9)), "entry 6");
    // The same JSON in another form.
    let spaced = String::from_utf8(lines[6].clone()).unwrap().replacen(',', ", ", 1).into_bytes();
    assert_eq!(with(&|lines| lines[6] = spaced.clone()), "line 7");
    // A checkpoint less is no harm: the next one vouches for its entries.
    let mut fewer = lines.clone();
    fewer.remove(4);
    assert_eq!(verify(&fewer.concat(), &[]).unwrap().entries, 11);
}

#[test]
fn a_rewritten_past_is_found_between_two_checkpoints() {
    let (all, mut other) = (entries(11), entries(11));
    other[4] = entry(99);
    // Entry and hash changed together, the signed checkpoints as they were.
    let (good, bad) = (export(&all, &key(1)), export(&other, &key(1)));
    let signed: Vec<&[u8]> = good.split_inclusive(|byte| *byte == b'\n').collect();
    let mut mixed: Vec<&[u8]> = bad.split_inclusive(|byte| *byte == b'\n').collect();
    for (line, original) in mixed.iter_mut().zip(&signed) {
        if line.starts_with(b"{\"checkpoint\"") {
            *line = original;
        }
    }
    assert_eq!(place(verify(&mixed.concat(), &[])), "entries 3 to 5");
    // Signed again by another key.
    assert_eq!(place(verify(&export(&other, &key(2)), &[])), "line 5");
    // Signed again by the log's own key: only what was kept elsewhere tells.
    assert!(verify(&bad, &[]).is_ok());
    let anchor = |count: usize| {
        let mut frontier = Frontier::default();
        all[..count].iter().for_each(|entry| frontier.push(leaf_hash(entry)));
        checkpoint(&frontier)
    };
    assert!(verify(&bad, &[anchor(4)]).is_ok());
    assert_eq!(place(verify(&bad, &[anchor(4), anchor(7)])), "entries 4 to 6");
    // An older copy, whole and signed.
    assert!(verify(&export(&all[..6], &key(1)), &[]).is_ok());
    assert_eq!(place(verify(&export(&all[..6], &key(1)), &[anchor(7)])), "entry 6");
    assert!(verify(&good, &[anchor(4), anchor(7)]).is_ok());
}

#[test]
fn an_event_of_ocsf_has_what_is_required() {
    let entry: Value = serde_json::from_slice(&entry(3)).unwrap();
    let event = crate::trail::ocsf::event(3, &entry, "0.1.0").unwrap();
    for required in [
        "activity_id",
        "category_uid",
        "class_uid",
        "type_uid",
        "time",
        "severity_id",
        "metadata",
        "actor",
        "api",
        "src_endpoint",
    ] {
        assert!(!event[required].is_null(), "{required}: {event}");
    }
    assert_eq!(event["type_uid"], 600_301);
    assert_eq!(event["time"], 1_795_348_800_123_u64);
    assert_eq!(event["unmapped"]["entry"], entry);
}

/// From the outermost object on, with the deepest that a parser takes and one more, which is kept as text.
#[test]
fn an_entry_as_deep_as_any_can_be_verified() {
    for depth in 118..=130 {
        let row = format!("{{\"id\":\"d\",\"details\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let all = [entry(0), leaf(&row).unwrap(), entry(2)];
        for export in [export(&all, &key(1)), part(&all, &[0, 1, 2], &key(1))] {
            let found = verify(&export, &[]);
            assert!(found.as_ref().is_ok_and(|found| found.entries == 3), "{depth}: {found:?}");
        }
    }
    // Deeper than any entry: refused, and not by the end of the stack.
    let hostile = format!("{{\"entry\":{}", "[".repeat(1_000_000));
    assert!(Reader::new(vec![key(1).verifier()], Vec::new()).line(hostile.as_bytes()).is_err());
    // What looks like the fields beside an entry, within it.
    let row = json!({ "id": "x", "details": { "hash": "0", "index": 0, "proof": [], "s": ",\"hash\":\"0\",\"index\":0}" } });
    let all = [entry(0), leaf(&row.to_string()).unwrap()];
    for export in [export(&all, &key(1)), part(&all, &[1], &key(1))] {
        verify(&export, &[]).unwrap();
    }
}
