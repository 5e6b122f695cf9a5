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
            "backup",
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
            "metrics",
            "notifier",
            "retention",
            "runner",
            "sandbox",
            "secret",
            "sequencer",
            "telemetry",
            "traces",
            "trail",
            "wire",
        ],
    ),
    ("api", &["config", "db", "domain", "lifecycle", "metrics", "oidc", "traces", "trail", "wire"]),
    (
        "runner",
        &[
            "config",
            "db",
            "disk",
            "domain",
            "git",
            "image",
            "lifecycle",
            "metrics",
            "redact",
            "sandbox",
            "traces",
            "wire",
        ],
    ),
    (
        "gateway",
        &["config", "db", "dialect", "domain", "lifecycle", "metrics", "redact", "secret", "traces", "wire"],
    ),
    ("backup", &["db", "domain", "git", "trail"]),
    ("keeper", &["lifecycle", "sandbox"]),
    ("notifier", &["config", "db", "domain", "lifecycle", "wire"]),
    ("retention", &["config", "db", "lifecycle", "metrics"]),
    ("sequencer", &["config", "db", "domain", "lifecycle", "metrics", "trail"]),
    ("client", &["config", "domain", "wire"]),
    ("dialect", &["domain"]),
    ("kit", &["dialect", "domain", "image", "sandbox"]),
    ("image", &["domain", "sandbox"]),
    ("sandbox", &["domain", "metrics", "traces"]),
    ("git", &[]),
    ("disk", &[]),
    ("db", &["config", "domain", "metrics", "trail", "wire"]),
    ("config", &["domain", "secret"]),
    ("oidc", &["domain", "secret"]),
    ("redact", &["domain", "secret"]),
    ("secret", &[]),
    ("trail", &[]),
    ("wire", &["domain"]),
    ("domain", &[]),
    ("lifecycle", &[]),
    ("metrics", &["lifecycle"]),
    ("telemetry", &["traces"]),
    ("traces", &[]),
];

/// Sections of `config`, by who may read them.
const CONFIG_READERS: &[(&str, &[&str])] = &[
    ("api", &["api", "cli"]),
    ("edge", &["api", "cli"]),
    ("oidc", &["api", "cli"]),
    ("gateway", &["gateway", "cli"]),
    ("providers", &["gateway", "cli"]),
    ("policy", &["gateway", "cli"]),
    ("runner", &["runner", "cli"]),
    ("client", &["client", "cli"]),
    ("sequencer", &["sequencer", "cli"]),
    ("webhooks", &["notifier", "cli"]),
    ("retention", &["retention", "cli"]),
    ("watch", &["cli"]),
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

/// Statements that are about no tenant's things, or that are given what another one has found for the caller.
const NEEDS_NO_VISIBLE: &[&str] = &[
    // The whole database, the runners, the installed CLIs.
    "schema::state",
    "runners::alive",
    "runners::runtimes",
    "images::find",
    "notify::send",
    "audit::append",
    // The trail is of everything: its routes are for keys without limits (`Needs::Everything`).
    "trail::cosignatures",
    "trail::note",
    "trail::placed",
    // So are security events, and what became of telling them.
    "security_events::append",
    "security_events::list",
    "webhook_deliveries::of_events",
    "trail_tiles::content",
    // Seconds for which an entry has waited; of which one, nobody is told.
    "trail::lag",
    // Keys: `api/keys` asks what the caller reaches.
    "keys::change_alone",
    "keys::find",
    "keys::find_shown",
    "keys::hold",
    "keys::insert",
    "keys::is_taken",
    "keys::list",
    "keys::lock",
    "keys::none_yet",
    "keys::revoke",
    "keys::rotate",
    "keys::still_taken",
    "keys::touch",
    // Sessions: `api/sessions` asks what the caller reaches.
    "sessions::end",
    "sessions::find_shown",
    "sessions::insert",
    "sessions::list",
    "sessions::lock",
    "sessions::person",
    "sessions::touch",
    // Of a browser that is nobody yet.
    "sign_ins::begin",
    "sign_ins::take",
    // Of the caller's own key.
    "quotas::count_runs",
    "quotas::day_ends",
    "quotas::used",
    "queue_length::of_submitter",
    "tasks::find_idempotent",
    "tasks::remember_idempotent",
    // How many runs wait of all: nobody is told the number.
    "queue_length::in_all",
    // Numbers of events of tasks that are watched: they wake, and show nothing.
    "tasks::heads",
    // What is new: `submit` has looked for the repository and the CLIs as the caller sees them.
    "budgets::create",
    "tasks::insert",
    "repositories::insert",
    // Of rows that were found for the caller.
    "let_go::of_task",
    "task_view::to_wire",
];

/// The functions of `db` that the API calls, each with the file that does.
fn api_calls() -> BTreeSet<(String, String)> {
    let mut calls = BTreeSet::new();
    let mut folders = vec![Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api")).to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("sqlx::query"), "{}: statements are in src/db", path.display());
            assert!(!text.contains("EVERYTHING"), "{}: no request sees everything", path.display());
            for (at, _) in text.match_indices("db::") {
                let rest: String =
                    text[at + 4..].chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect();
                let called = text[at + 4 + rest.len()..].starts_with('(');
                let lower = rest.split("::").last().is_some_and(|last| last.starts_with(char::is_lowercase));
                if called && lower {
                    calls.insert((path.display().to_string(), rest));
                }
            }
        }
    }
    calls
}

#[test]
fn the_api_asks_for_what_its_caller_sees() {
    let calls = api_calls();
    assert!(calls.len() > 30, "only {} calls were found: is the pattern still right?", calls.len());
    let mut wrong = Vec::new();
    for (file, call) in &calls {
        if NEEDS_NO_VISIBLE.contains(&call.as_str()) {
            continue;
        }
        let Some((module, function)) = call.split_once("::") else {
            wrong.push(format!("{file}: {call}"));
            continue;
        };
        let source = format!("{}/src/db/{module}.rs", env!("CARGO_MANIFEST_DIR"));
        let source = fs::read_to_string(source).unwrap();
        let start = source.find(&format!("pub async fn {function}("));
        let start = start.unwrap_or_else(|| panic!("{file}: where is db::{call}?"));
        let end = start + source[start..].find("\n}\n").unwrap();
        let text = &source[start..end];
        let asks = text.contains("visible: &Visible")
            && text.contains("visible.repositories()")
            && (text.contains("sees_task(") || text.contains("sees_repository("));
        if !asks {
            wrong.push(format!("{file}: db::{call} takes no Visible, or does not ask it"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
