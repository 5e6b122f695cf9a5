//! The file anchor: a line of JSON a checkpoint, appended and forced to the disk.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

/// A line is shorter.
const TAIL: u64 = 256 * 1024;

/// # Errors
/// What the system says.
pub fn append(path: &Path, note: &str) -> Result<(), String> {
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o644).open(path).map_err(said)?;
    let mut line = format!("{}\n", json!({ "checkpoint": note }));
    // A crash in the middle of a line leaves its beginning: the next one begins on a line of its own.
    if torn(&mut file).map_err(said)? {
        line.insert(0, '\n');
    }
    file.write_all(line.as_bytes()).map_err(said)?;
    file.sync_all().map_err(said)
}

fn torn(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != [b'\n'])
}

/// The last whole line's note.
///
/// # Errors
/// What the system says, or that the file holds no checkpoint although it is not empty.
pub fn last(path: &Path) -> Result<Option<String>, String> {
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(said(error)),
    };
    let length = file.metadata().map_err(said)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).map_err(said)?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).map_err(said)?;
    let lines = tail.split(|byte| *byte == b'\n').rev();
    let note = lines.filter_map(note_of).next();
    if note.is_none() && length > 0 {
        return Err(format!("{}: no checkpoint in it", path.display()));
    }
    Ok(note)
}

/// The note of a line, if it is one of ours and whole.
pub fn note_of(line: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(line).ok()?;
    Some(value["checkpoint"].as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_hides_neither_what_was_before_nor_what_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoints");
        assert_eq!(last(&path).unwrap(), None);
        append(&path, "one\n").unwrap();
        append(&path, "two\n").unwrap();
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"checkpoint\":\"thr").unwrap();
        assert_eq!(last(&path).unwrap().as_deref(), Some("two\n"));
        append(&path, "four\n").unwrap();
        assert_eq!(last(&path).unwrap().as_deref(), Some("four\n"));
        std::fs::write(&path, "nothing of ours\n").unwrap();
        assert!(last(&path).is_err());
    }
}
