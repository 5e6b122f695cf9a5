//! No credential where it does not belong, and what the CLI touches besides its work.

use std::collections::BTreeSet;

use crate::kit::observed::Observed;
use crate::kit::report::{Item, Need, counted};
use crate::kit::secrets::{self, Known};

/// Paths of one report.
const MOST_PATHS: usize = 40;

/// How many items there are.
pub const COUNT: usize = 3;

pub fn items(observed: &Observed, image_environment: &[String], known: &[Known]) -> Vec<Item> {
    let mut found = BTreeSet::new();
    let mut look = |place: &str, bytes: &[u8]| {
        found.extend(secrets::find(bytes, known).into_iter().map(|what| format!("{what} in {place}")));
    };
    look("the output", &observed.output);
    for process in &observed.processes {
        look("a command line", &process.command_line);
        look("an environment", &process.environment);
    }
    for entry in observed.changed.iter().chain(observed.written.iter().flatten()) {
        look(&entry.path, &entry.bytes);
    }
    let unseen =
        if observed.processes.is_empty() { "; its processes could not be seen from here" } else { "" };
    let unseen_files =
        if observed.written.is_none() { "; /tmp and HOME could not be seen from here" } else { "" };
    let title = "no credential in environment, arguments, files or output";
    let credential = if found.is_empty() {
        let looked_at = counted(observed.processes.len(), "process", "processes");
        observed.item(
            "no-credential",
            Need::Must,
            title,
            Ok(format!("{looked_at} looked at{unseen}{unseen_files}")),
        )
    } else {
        let found = found.into_iter().collect::<Vec<_>>().join("; ");
        Item::new("no-credential", Need::Must, title, Err(found))
    };
    vec![credential, image_item(image_environment, known), hosts(observed)]
}

/// The image's ENV never reaches the CLI, but whoever has the image can read it.
fn image_item(environment: &[String], known: &[Known]) -> Item {
    let bad: Vec<&str> = environment
        .iter()
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let secret = !value.is_empty() && secrets::names_a_secret(name);
            (secret || !secrets::find(value.as_bytes(), known).is_empty()).then_some(name)
        })
        .collect();
    let seen = if bad.is_empty() { Ok(String::new()) } else { Err(format!("ENV {}", bad.join(", "))) };
    Item::new("image-environment", Need::Must, "no credential in the image's own environment", seen)
}

fn hosts(observed: &Observed) -> Item {
    let title = "looks up no host's name";
    match &observed.hosts_asked {
        None => Item::not_measured(
            "hosts",
            Need::Should,
            title,
            "the sandbox's network cannot be entered from here",
        ),
        Some(names) if names.is_empty() => observed.item("hosts", Need::Should, title, Ok(String::new())),
        Some(names) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let detail = format!("{} (nobody answers there; a setting may switch it off)", names.join(", "));
            Item::new("hosts", Need::Should, title, Err(detail))
        }
    }
}

/// Outside the worktree, the deepest folders that hold it all.
pub fn paths_written(observed: &Observed) -> Vec<String> {
    let mut paths = BTreeSet::new();
    for entry in observed.written.iter().flatten() {
        let parts: Vec<&str> = entry.path.split('/').collect();
        // /home/agent/.cli/…  /tmp/x/…
        let kept = if entry.path.starts_with("/home/") { 5 } else { 3 };
        let more = if parts.len() > kept { "/…" } else { "" };
        paths.insert(format!("{}{more}", parts[..parts.len().min(kept)].join("/")));
    }
    paths.into_iter().take(MOST_PATHS).collect()
}
