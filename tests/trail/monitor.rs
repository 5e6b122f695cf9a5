//! A monitor of a C2SP tlog-tiles log, written from the specifications alone: nothing of ours is used, so that what we serve
//! is what others can read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use sha2::{Digest as _, Sha256};

type Hash = [u8; 32];

/// What a log serves: a path below its prefix, and its bytes.
pub type Served<'a> = dyn Fn(&str) -> Option<Vec<u8>> + 'a;

/// Its entries, each proven to be under the signed root.
pub fn entries(served: &Served<'_>, vkey: &str) -> Result<Vec<Vec<u8>>, String> {
    let note = served("checkpoint").ok_or("no checkpoint")?;
    let (size, root) = open(&String::from_utf8(note).map_err(|error| error.to_string())?, vkey)?;
    let mut entries = Vec::new();
    let mut level: Vec<Hash> = Vec::new();
    for (path, width) in tiles("entries", size) {
        let bundle = served(&path).ok_or(format!("no {path}"))?;
        let mut rest = bundle.as_slice();
        for _ in 0..width {
            let (length, after) = rest.split_first_chunk::<2>().ok_or(format!("{path} is short"))?;
            let length = usize::from(u16::from_be_bytes(*length));
            let entry = after.get(..length).ok_or(format!("{path} is short"))?;
            level.push(Sha256::new().chain_update([0]).chain_update(entry).finalize().into());
            entries.push(entry.to_vec());
            rest = &after[length..];
        }
        if !rest.is_empty() {
            return Err(format!("{path} is long"));
        }
    }
    if mth(&level) != root {
        return Err("the entries are not those that were signed".to_owned());
    }
    // The tiles of hashes say the same.
    for number in 0.. {
        for (index, (path, width)) in tiles(&number.to_string(), level.len()).into_iter().enumerate() {
            let expected = level[index * 256..index * 256 + width].concat();
            if served(&path) != Some(expected) {
                return Err(format!("{path} has other hashes"));
            }
        }
        level = level.chunks_exact(256).map(mth).collect();
        if level.is_empty() {
            return Ok(entries);
        }
    }
    unreachable!("each level is shorter");
}

/// Paths and widths of a level with so many hashes.
fn tiles(level: &str, hashes: usize) -> Vec<(String, usize)> {
    let path = |index: usize| {
        assert!(index < 1_000_000, "more than a test has");
        let number = if index < 1000 {
            format!("{index:03}")
        } else {
            format!("x{:03}/{:03}", index / 1000, index % 1000)
        };
        format!("tile/{level}/{number}")
    };
    let full = (0..hashes / 256).map(|index| (path(index), 256));
    let last = (!hashes.is_multiple_of(256))
        .then(|| (format!("{}.p/{}", path(hashes / 256), hashes % 256), hashes % 256));
    full.chain(last).collect()
}

/// RFC 6962, section 2.1.
fn mth(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        more => {
            let (left, right) = more.split_at(more.len().next_power_of_two() / 2);
            Sha256::new().chain_update([1]).chain_update(mth(left)).chain_update(mth(right)).finalize().into()
        }
    }
}

/// Size and root of a signed note, by the log's key.
fn open(note: &str, vkey: &str) -> Result<(usize, Hash), String> {
    let mut parts = vkey.splitn(3, '+');
    let (name, id, key) =
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let key = STANDARD.decode(key).map_err(|error| error.to_string())?;
    let key: Hash = key.strip_prefix(&[1]).and_then(|key| key.try_into().ok()).ok_or("no Ed25519 key")?;
    let key = VerifyingKey::from_bytes(&key).map_err(|error| error.to_string())?;
    let (text, signatures) = note.split_once("\n\n").ok_or("no note")?;
    let text = format!("{text}\n");
    let of_log = |line: &str| {
        let rest = line.strip_prefix("\u{2014} ")?.strip_prefix(name)?.strip_prefix(' ')?;
        let bytes = STANDARD.decode(rest).ok()?;
        let signature = bytes.strip_prefix(hex::decode(id).ok()?.as_slice())?;
        let signature = Signature::from_slice(signature).ok()?;
        key.verify(text.as_bytes(), &signature).ok()
    };
    signatures.lines().find_map(of_log).ok_or("not signed by the log")?;
    let lines: Vec<&str> = text.lines().collect();
    let [origin, size, root] = lines.as_slice() else { return Err("another form".to_owned()) };
    if *origin != name {
        return Err("another log".to_owned());
    }
    let root = STANDARD.decode(root).ok().and_then(|root| root.try_into().ok()).ok_or("no root")?;
    Ok((size.parse().map_err(|_| "no size")?, root))
}
