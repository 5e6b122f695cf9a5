//! An export: canonical JSON, a line each, that needs nothing but the log's public key to be verified.
//!
//! A whole one has every entry with its hash, and every checkpoint after its last entry. A part has its checkpoint at its head, and
//! an inclusion proof with each entry. Every byte counts: another form of the same JSON is refused.

use serde_json::{Map, Value, json};

use crate::trail::canonical::{canonical, parse};
use crate::trail::checkpoint::{self, Checkpoint};
use crate::trail::error::TrailError;
use crate::trail::follow::Follower;
use crate::trail::note::VerifierKey;
use crate::trail::tree::{Hash, leaf_hash, verify_inclusion};

const WHOLE: &str = "kage-audit-whole/1";
const PART: &str = "kage-audit-part/1";
/// How the line of an entry begins.
const ENTRY: &[u8] = b"{\"entry\":";

fn line(value: &Value) -> Result<Vec<u8>, TrailError> {
    let mut line = canonical(value)?;
    line.push(b'\n');
    Ok(line)
}

/// A line of an entry: what is beside it comes after it. The entry goes out as the text that it is: it may be nested as
/// deep as a parser goes, and with this line around it no parser would read it.
fn entry_line(entry: &[u8], beside: &Value) -> Result<Vec<u8>, TrailError> {
    parse(entry)?;
    let beside = line(beside)?;
    Ok([ENTRY, entry, b",", &beside[1..]].concat())
}

/// A line in canonical form, to the byte; an entry in it is parsed by itself.
fn read(line: &[u8]) -> Result<Value, TrailError> {
    let Some(rest) = line.strip_prefix(ENTRY) else { return parse(line) };
    let split = |mark: &[u8], fields: &[&str]| {
        let at = rest.windows(mark.len()).rposition(|window| window == mark)?;
        // The comma becomes the brace before it.
        let beside = parse(&[b"{", &rest[at + 1..]].concat()).ok()?;
        let Value::Object(beside) = beside else { return None };
        beside.keys().eq(fields).then_some((&rest[..at], beside))
    };
    let found =
        split(b",\"hash\":", &["hash", "index"]).or_else(|| split(b",\"index\":", &["index", "proof"]));
    let unexpected = || TrailError::malformed("line of this export", "what is beside the entry is not known");
    let (entry, beside) = found.ok_or_else(unexpected)?;
    let mut all = Map::from_iter([("entry".to_owned(), parse(entry)?)]);
    all.extend(beside);
    Ok(Value::Object(all))
}

/// First line of a whole export.
///
/// # Errors
/// None that these values cause.
pub fn whole_head(checkpoint: &Checkpoint) -> Result<Vec<u8>, TrailError> {
    line(&json!({ "format": WHOLE, "origin": checkpoint.origin, "size": checkpoint.size }))
}

/// # Errors
/// [`TrailError::Malformed`] if `entry` is not a canonical form.
pub fn whole_entry(index: u64, entry: &[u8], hash: &Hash) -> Result<Vec<u8>, TrailError> {
    entry_line(entry, &json!({ "hash": hex::encode(hash), "index": index }))
}

/// # Errors
/// None that these values cause.
pub fn whole_checkpoint(note: &str) -> Result<Vec<u8>, TrailError> {
    line(&json!({ "checkpoint": note }))
}

/// First line of a part.
///
/// # Errors
/// None that these values cause.
pub fn part_head(note: &str) -> Result<Vec<u8>, TrailError> {
    line(&json!({ "format": PART, "checkpoint": note }))
}

/// # Errors
/// [`TrailError::Malformed`] if `entry` is not a canonical form.
pub fn part_entry(index: u64, entry: &[u8], proof: &[Hash]) -> Result<Vec<u8>, TrailError> {
    let proof: Vec<String> = proof.iter().map(hex::encode).collect();
    entry_line(entry, &json!({ "index": index, "proof": proof }))
}

/// What an export turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The last checkpoint in it.
    pub checkpoint: Checkpoint,
    /// How many entries it has.
    pub entries: u64,
    pub whole: bool,
}

enum State {
    Head,
    Whole { follower: Follower, origin: String, size: u64, last: Option<Checkpoint> },
    Part { checkpoint: Checkpoint, entries: u64, after: Option<u64> },
}

/// Reads an export line by line.
pub struct Reader {
    keys: Vec<VerifierKey>,
    /// Checkpoints from elsewhere that the log must have passed through, smallest first.
    known: Vec<Checkpoint>,
    state: State,
    lines: u64,
}

impl Reader {
    pub fn new(keys: Vec<VerifierKey>, mut known: Vec<Checkpoint>) -> Self {
        known.sort_by_key(|checkpoint| checkpoint.size);
        Self { keys, known, state: State::Head, lines: 0 }
    }

    /// One line without its newline.
    ///
    /// # Errors
    /// [`TrailError`] names the line or the entry.
    pub fn line(&mut self, bytes: &[u8]) -> Result<(), TrailError> {
        self.lines += 1;
        let place = format!("line {}", self.lines);
        let value = read(bytes).map_err(|error| TrailError::tampered(&place, error))?;
        let object = value.as_object().ok_or_else(|| TrailError::tampered(&place, "no object"))?;
        let fields: Vec<&str> = object.keys().map(String::as_str).collect();
        let said = self.step(&value, &fields);
        said.map_err(|error| match error {
            TrailError::Tampered { .. } => error,
            other => TrailError::tampered(&place, other),
        })
    }

    fn step(&mut self, value: &Value, fields: &[&str]) -> Result<(), TrailError> {
        let unexpected = || TrailError::malformed("line of this export", fields.join(", "));
        match &mut self.state {
            State::Head => self.state = head(value, fields, &self.keys)?,
            State::Whole { follower, origin, size, last } => match fields {
                ["entry", "hash", "index"] => {
                    let (index, entry) = indexed(value)?;
                    follower.entry(index, id(value), &entry, &hash(&value["hash"])?)?;
                    let read = follower.size();
                    for known in self.known.iter().filter(|known| known.size == read) {
                        follower.anchor(known)?;
                    }
                }
                ["checkpoint"] => {
                    let checkpoint = checkpoint::open_by_any(string(&value["checkpoint"])?, &self.keys)?;
                    let later = last.as_ref().is_none_or(|last| last.size < checkpoint.size);
                    if checkpoint.origin != *origin || checkpoint.size > *size || !later {
                        return Err(TrailError::malformed("checkpoint of this export", checkpoint.size));
                    }
                    if checkpoint.size == 0 {
                        return Err(TrailError::malformed("checkpoint", "of nothing"));
                    }
                    follower.checkpoint(&checkpoint)?;
                    *last = Some(checkpoint);
                }
                _ => return Err(unexpected()),
            },
            State::Part { checkpoint, entries, after } => {
                if *fields != ["entry", "index", "proof"] {
                    return Err(unexpected());
                }
                let (index, entry) = indexed(value)?;
                if after.is_some_and(|after| index <= after) {
                    let place = format!("entry {index}");
                    return Err(TrailError::tampered(place, "it is there twice, or out of order"));
                }
                let proof = value["proof"].as_array().ok_or_else(unexpected)?;
                let proof: Vec<Hash> = proof.iter().map(hash).collect::<Result<_, _>>()?;
                let leaf = leaf_hash(&entry);
                verify_inclusion(&leaf, index, checkpoint.size, &proof, &checkpoint.root).map_err(|_| {
                    TrailError::tampered(
                        format!("entry {index}"),
                        format!("{} is not as it was recorded", id(value)),
                    )
                })?;
                *entries += 1;
                *after = Some(index);
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`TrailError::Tampered`] if it ends too early.
    pub fn end(self) -> Result<Verified, TrailError> {
        let known = self.known.last().map_or(0, |known| known.size);
        match self.state {
            State::Head => Err(TrailError::tampered("line 1", "an empty file")),
            State::Whole { follower, size, last, .. } => {
                follower.end(known.max(size))?;
                let checkpoint = last.ok_or_else(|| TrailError::tampered("line 2", "no checkpoint"))?;
                Ok(Verified { checkpoint, entries: follower.size(), whole: true })
            }
            State::Part { checkpoint, entries, .. } => {
                // A part of an older tree says nothing of what came later, which is no fault.
                for known in self.known.iter().filter(|known| known.size == checkpoint.size) {
                    if known.root != checkpoint.root {
                        let place = format!("checkpoint of {} entries", known.size);
                        return Err(TrailError::tampered(place, "another one is known"));
                    }
                }
                Ok(Verified { checkpoint, entries, whole: false })
            }
        }
    }
}

fn head(value: &Value, fields: &[&str], keys: &[VerifierKey]) -> Result<State, TrailError> {
    match (fields, value["format"].as_str()) {
        (["format", "origin", "size"], Some(WHOLE)) => {
            let origin = string(&value["origin"])?.to_owned();
            let expected = keys.first().map_or("", VerifierKey::name);
            if origin != expected {
                return Err(TrailError::Origin { expected: expected.to_owned(), found: origin });
            }
            Ok(State::Whole {
                follower: Follower::default(),
                origin,
                size: number(&value["size"])?,
                last: None,
            })
        }
        (["checkpoint", "format"], Some(PART)) => {
            let checkpoint = checkpoint::open_by_any(string(&value["checkpoint"])?, keys)?;
            Ok(State::Part { checkpoint, entries: 0, after: None })
        }
        _ => Err(TrailError::malformed("export", "its first line is not one that is known")),
    }
}

fn indexed(value: &Value) -> Result<(u64, Vec<u8>), TrailError> {
    Ok((number(&value["index"])?, canonical(&value["entry"])?))
}

fn id(value: &Value) -> &str {
    value["entry"]["id"].as_str().unwrap_or("an entry without an id")
}

fn string(value: &Value) -> Result<&str, TrailError> {
    value.as_str().ok_or_else(|| TrailError::malformed("export", "no text where one is due"))
}

fn number(value: &Value) -> Result<u64, TrailError> {
    value.as_u64().ok_or_else(|| TrailError::malformed("export", "no number where one is due"))
}

/// In lower case: one form.
fn hash(value: &Value) -> Result<Hash, TrailError> {
    let malformed = || TrailError::malformed("hash", "64 hexadecimal digits in lower case");
    let text = value.as_str().ok_or_else(malformed)?;
    let bytes: Hash = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)?;
    if hex::encode(bytes) == text { Ok(bytes) } else { Err(malformed()) }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
