//! Another date for one process: a library that is loaded before the system's (`scripts/host faketime`).

use std::path::PathBuf;

/// Where it is, if this machine has it.
pub fn library() -> Option<PathBuf> {
    let machine = std::env::consts::ARCH;
    let path = PathBuf::from(format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"));
    path.exists().then_some(path)
}

/// Settings of a process whose date is off by so many seconds; none without the library.
pub fn settings(seconds: i64) -> Vec<(&'static str, String)> {
    let Some(library) = library() else { return Vec::new() };
    vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", format!("{seconds:+}")),
        // Timers go on as they are: it is the date that is wrong.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}
