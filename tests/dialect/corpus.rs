//! The fuzz targets' own bodies, over the corpus and over what a few thousand random changes make of it: the
//! same on every machine, for the changes are drawn from a fixed seed.

#[path = "../../fuzz/src/bodies.rs"]
pub(crate) mod bodies;

use std::fs;
use std::path::Path;

use kage::dialect::request::check;
use kage::domain::model::Dialect;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::{call_of, strict};

const CHANGES: usize = 400;

/// Pieces that mean something to one of the dialects.
const WORDS: &[&str] = &[
    "\"tools\":",
    "\"type\":",
    "\"web_search\"",
    "\"url\"",
    "\"https://evil.example\"",
    "\"file_id\":\"f\"",
    "null",
    "{}",
    "[]",
    "1e400",
    "-1",
    "18446744073709551616",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\"container\":\"c\",",
    "\"n\":2,",
    "\"stream\":true,",
    "\"googleSearch\":{},",
    "\"file_data\":{},",
    "\"fileData\":{},",
    "\"max_tokens\":999999,",
    "\"usage\":",
    "data: ",
    "\n\n",
    "\r",
    "[DONE]",
    "\"store\":true,",
    "\"image_url\":\"http://x\"",
    "\"source\":{\"type\":\"url\"}",
    "\u{feff}",
    "..",
    "%2e",
];

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut seeds: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "no corpus for {target}");
    seeds
}

fn change(bytes: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => {
                drop(bytes.drain(at..(at + random.random_range(1..30)).min(bytes.len())))
            }
            2 => bytes.truncate(at),
            3 if at < bytes.len() => {
                let end = (at + random.random_range(1..60)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                // Where a value or a key may begin, a word most often still makes a request.
                let places =
                    bytes.iter().enumerate().filter(|(_, b)| matches!(b, b'{' | b'[' | b':' | b',' | b'\n'));
                let places: Vec<usize> = places.map(|(place, _)| place + 1).collect();
                let at = places.choose(random).copied().unwrap_or(at);
                let word = WORDS.choose(random).expect("there are words");
                bytes.splice(at..at, word.bytes());
            }
        }
    }
}

fn run(target: &str, seed: u64, body: impl Fn(&[u8])) {
    let mut random = StdRng::seed_from_u64(seed);
    for (name, bytes) in corpus(target) {
        body(&bytes);
        for round in 0..CHANGES {
            let mut changed = bytes.clone();
            change(&mut changed, &mut random);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&changed)));
            let shown = String::from_utf8_lossy(&changed);
            assert!(outcome.is_ok(), "{target}/{name}, change {round}: {shown:?}");
        }
    }
}

#[test]
fn requests_of_every_dialect() {
    for (seed, dialect) in Dialect::ALL.into_iter().enumerate() {
        run(&format!("request_{dialect}"), seed as u64, |bytes| bodies::request(dialect, bytes));
    }
}

#[test]
fn answers_of_every_dialect() {
    run("usage", 5, bodies::usage);
}

#[test]
fn paths_of_every_dialect() {
    run("path", 6, bodies::path);
}

/// Recorded from the real CLIs, their texts shortened: nothing that they need is taken away.
#[test]
fn what_real_clis_send_goes_on() {
    let mut seen = 0;
    for dialect in Dialect::ALL {
        for (name, bytes) in corpus(&format!("request_{dialect}")) {
            let Some(cli) = name.strip_suffix(".json").and_then(|name| name.rsplit_once('-')) else {
                continue;
            };
            let out = check(dialect, &call_of(dialect), &bytes, &strict()).unwrap();
            let expected: &[&str] = match cli.0 {
                "claude-code" => &["metadata"],
                // Its web search would run at the provider.
                "codex" => &["client_metadata", "tool web_search"],
                "qwen-code-anthropic" => &["max_tokens over 32000", "thinking.budget_tokens over 16000"],
                "qwen-code" => &["max_tokens over 32000"],
                "gemini" | "opencode" | "aider" | "ollama-aider" | "ollama" => &[],
                // Made by hand.
                _ => continue,
            };
            seen += 1;
            assert_eq!(out.removed, expected, "{name}");
        }
    }
    assert!(seen >= 12, "only {seen} recordings were found");
}
