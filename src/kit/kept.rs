//! What is left of an attempt in a folder, for whoever wants to know why.

use std::path::Path;

use crate::kit::error::KitError;
use crate::kit::observed::Observed;

/// Writes what the CLI printed (`ID.output`, both streams; `ID.stdout`, what the filter was given), its events
/// (`ID.events.jsonl`), and what it asked the model (`ID.requests.jsonl`).
///
/// # Errors
/// [`KitError::File`].
pub fn keep(folder: &Path, id: &str, observed: &Observed) -> Result<(), KitError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(format!("{id}.{name}"));
        std::fs::write(&path, bytes).map_err(KitError::file(&path))
    };
    let lines = |values: Vec<String>| values.into_iter().map(|line| line + "\n").collect::<String>();
    write("output", &observed.output)?;
    write("stdout", &observed.stdout)?;
    let events = observed.events.iter().map(|event| event.to_json().to_string()).collect();
    write("events.jsonl", lines(events).as_bytes())?;
    let requests = observed.requests.iter().filter_map(|request| serde_json::to_string(request).ok());
    write("requests.jsonl", lines(requests.collect()).as_bytes())
}
