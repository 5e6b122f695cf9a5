//! The import table of docs/architecture.md, held: each room may import only what is listed for it.
//! The trust zones are part of it: `api` never sees an engine or a repository, roles never see one another.

#![expect(clippy::unwrap_used, reason = "a test that cannot read the sources fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const TABLE: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "api",
            "client",
            "config",
            "db",
            "dialect",
            "domain",
            "gateway",
            "image",
            "keeper",
            "kit",
            "lifecycle",
            "runner",
            "sandbox",
            "secret",
            "telemetry",
            "wire",
        ],
    ),
    ("api", &["config", "db", "domain", "lifecycle", "wire"]),
    ("runner", &["config", "db", "disk", "domain", "git", "image", "lifecycle", "redact", "sandbox", "wire"]),
    ("gateway", &["config", "db", "dialect", "domain", "lifecycle", "redact", "secret", "wire"]),
    ("keeper", &["lifecycle", "sandbox"]),
    ("client", &["config", "domain", "wire"]),
    ("dialect", &["domain"]),
    ("kit", &["dialect", "domain", "image", "sandbox"]),
    ("image", &["domain", "sandbox"]),
    ("sandbox", &["domain"]),
    ("git", &[]),
    ("disk", &[]),
    ("db", &["config", "domain", "wire"]),
    ("config", &["domain", "secret"]),
    ("redact", &["domain", "secret"]),
    ("secret", &[]),
    ("wire", &["domain"]),
    ("domain", &[]),
    ("lifecycle", &[]),
    ("telemetry", &[]),
];

/// Sections of `config`, by who may read them.
const CONFIG_READERS: &[(&str, &[&str])] = &[
    ("api", &["api", "cli"]),
    ("gateway", &["gateway", "cli"]),
    ("providers", &["gateway", "cli"]),
    ("policy", &["gateway", "cli"]),
    ("runner", &["runner", "cli"]),
    ("client", &["client", "cli"]),
];

/// (file, room, room that it imports, next path segment).
fn imports() -> Vec<(String, String, String, Option<String>)> {
    let mut found = Vec::new();
    visit(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    assert!(found.len() > 100, "only {} imports were found: is the pattern still right?", found.len());
    found
}

fn visit(folder: &Path, found: &mut Vec<(String, String, String, Option<String>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
            let first = relative.components().next().unwrap().as_os_str().to_string_lossy();
            let room = first.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            for (prefix, _) in text.match_indices("crate::").chain(text.match_indices("kage::")) {
                // `crate::` inside `other_crate::…` or a longer word is none of ours.
                let before = text[..prefix].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let rest = text[prefix..].split_once("::").unwrap().1;
                let mut segments = rest.split("::").map(word);
                let target = segments.next().flatten();
                let Some(target) = target else {
                    // A group: `crate::{a::b, c}`; each entry at its top level counts.
                    for target in group(rest) {
                        found.push((relative.display().to_string(), room.clone(), target, None));
                    }
                    continue;
                };
                found.push((relative.display().to_string(), room.clone(), target, segments.next().flatten()));
            }
        }
    }
}

/// The rooms named at the top level of `{a::b, c::{d, e}}`.
fn group(text: &str) -> Vec<String> {
    let Some(text) = text.strip_prefix('{') else { return Vec::new() };
    let (mut depth, mut start, mut rooms) = (0, true, Vec::new());
    for (index, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                rooms.extend(word(&text[index..]));
                start = false;
            }
            _ => {}
        }
    }
    rooms
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let table: BTreeMap<&str, BTreeSet<&str>> =
        TABLE.iter().map(|(room, allowed)| (*room, allowed.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for (file, room, target, _) in imports() {
        if room == "lib" || room == target || target == "MAX" {
            continue;
        }
        let allowed =
            table.get(room.as_str()).unwrap_or_else(|| panic!("{file}: room {room} is not in the table"));
        if table.contains_key(target.as_str()) && !allowed.contains(target.as_str()) {
            wrong.push(format!("{file}: {room} imports {target}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The keeper has no engine: of the sandbox it knows what answers refused calls, which knows nothing of the rest.
#[test]
fn the_keeper_sees_nothing_of_the_engine() {
    const PARTS: [&str; 2] = ["refusals", "seccomp"];
    let is_part = |file: &str| {
        file.starts_with("keeper/") || PARTS.iter().any(|part| file.starts_with(&format!("sandbox/{part}/")))
    };
    let imports = imports();
    let seen: Vec<_> =
        imports.iter().filter(|(file, _, target, _)| is_part(file) && target == "sandbox").collect();
    assert!(seen.len() > 10, "only {} imports were found: is the pattern still right?", seen.len());
    let wrong: Vec<_> = seen
        .iter()
        .filter(|(_, _, _, part)| !part.as_deref().is_some_and(|part| PARTS.contains(&part)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_role_reads_its_own_configuration_only() {
    let mut wrong = Vec::new();
    for (file, room, target, section) in imports() {
        let (true, Some(section)) = (target == "config" && room != "config", section) else { continue };
        if let Some((_, readers)) = CONFIG_READERS.iter().find(|(name, _)| *name == section)
            && !readers.contains(&room.as_str())
        {
            wrong.push(format!("{file}: {room} reads config::{section}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_table_has_no_circle() {
    let mut left: BTreeMap<&str, BTreeSet<&str>> =
        TABLE.iter().map(|(room, allowed)| (*room, allowed.iter().copied().collect())).collect();
    while !left.is_empty() {
        let free: Vec<&str> = left.iter().filter(|(_, to)| to.is_empty()).map(|(room, _)| *room).collect();
        assert!(!free.is_empty(), "a circle among {:?}", left.keys());
        for room in free {
            left.remove(room);
            left.values_mut().for_each(|to| {
                to.remove(room);
            });
        }
    }
}
