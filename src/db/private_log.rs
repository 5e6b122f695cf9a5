//! Why a private cluster does not start, in the words of its own log.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Of the log's end, in bytes.
const END: u64 = 64 * 1024;
/// Of a line, in characters.
const WIDTH: usize = 300;

/// The last line with which a server has given up since the log was so long; none where it cannot be read.
pub(super) fn last_words(log: &Path, since: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    let since = if since <= length { since } else { 0 };
    file.seek(SeekFrom::Start(since.max(length.saturating_sub(END)))).ok()?;
    let mut bytes = Vec::new();
    file.take(END).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let last = text.lines().rev().find(|line| is_end(line))?;
    Some(last.chars().filter(|letter| !letter.is_control()).take(WIDTH).collect())
}

/// What a server that starts or ends tells who asks is FATAL too, for the asker.
fn is_end(line: &str) -> bool {
    line.contains("PANIC:  ")
        || line.contains("FATAL:  ") && !line.contains("FATAL:  the database system is ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_reason_since_the_start_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        assert_eq!(last_words(&log, 0), None);
        let old = "FATAL:  of last week\n";
        let new = "LOG:  starting\nPANIC:  could not\u{1b} locate a valid checkpoint record\n\
                   FATAL:  the database system is starting up\nLOG:  shut down\n";
        fs::write(&log, format!("{old}{new}")).expect("writes");
        let told = Some("PANIC:  could not locate a valid checkpoint record".to_owned());
        assert_eq!(last_words(&log, old.len() as u64), told);
        fs::write(&log, old).expect("writes");
        assert_eq!(last_words(&log, old.len() as u64), None);
        fs::write(&log, format!("{}{new}", "x".repeat(200_000))).expect("writes");
        assert_eq!(last_words(&log, 0), told);
    }
}
