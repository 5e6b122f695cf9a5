//! All processes of the sandbox: signal them, reap them, know when none is left.

use std::collections::HashMap;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid};

/// What the shim's place in the process tree lets it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processes {
    /// PID 1: everything else in the PID namespace is ours.
    Namespace,
    /// An ordinary process and subreaper: our descendants are ours.
    Descendants,
}

impl Processes {
    pub fn of_this_process() -> Self {
        if getpid().is_init() { Self::Namespace } else { Self::Descendants }
    }

    /// Sends a signal to every process but the shim.
    pub fn signal_all(self, signal: Signal) {
        // A process that is gone by now, or that may not be signalled, changes nothing here:
        // what counts is `none_left`.
        match self {
            // The group of PID 1 is, to kill(2), the number -1: every process, at one instant.
            Self::Namespace => {
                let _ = rustix::process::kill_process_group(Pid::INIT, signal);
            }
            Self::Descendants => {
                for pid in descendants(getpid()) {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
        }
    }

    /// Whether every process but the shim has ended and been reaped.
    pub fn none_left(self) -> bool {
        match self {
            Self::Namespace => rustix::process::test_kill_process_group(Pid::INIT) == Err(Errno::SRCH),
            // As subreaper, the shim has a child as long as it has any descendant.
            Self::Descendants => rustix::process::waitid(
                rustix::process::WaitId::All,
                rustix::process::WaitIdOptions::EXITED
                    | rustix::process::WaitIdOptions::NOHANG
                    | rustix::process::WaitIdOptions::NOWAIT,
            )
            .is_err_and(|error| error == Errno::CHILD),
        }
    }
}

/// Reaps every child that has ended.
pub fn reap() -> Vec<(Pid, WaitStatus)> {
    let mut ended = Vec::new();
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(child)) => ended.push(child),
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return ended,
        }
    }
}

/// Every process below `root`, by one pass over `/proc`; what is forked meanwhile is
/// found by the next pass.
fn descendants(root: Pid) -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some(parent) = parent_in_stat(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut unvisited = vec![root.as_raw_nonzero().get()];
    while let Some(parent) = unvisited.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.extend(Pid::from_raw(child));
            unvisited.push(child);
        }
    }
    found
}

/// The parent's PID in `/proc/PID/stat` (proc(5)). The second field, the program's name in
/// brackets, is chosen by the process and may hold blanks and brackets.
fn parent_in_stat(stat: &[u8]) -> Option<i32> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parent_in_stat;

    #[test]
    fn parent_is_found_behind_any_name() {
        assert_eq!(parent_in_stat(b"12 (bash) S 7 12 12 0 -1 4194304"), Some(7));
        assert_eq!(parent_in_stat(b"12 (a) R 99 (b) S 7 12 12"), Some(7));
        assert_eq!(parent_in_stat(b"12 (\xff\n)) S 7 12 12"), Some(7));
    }

    #[test]
    fn a_vanished_process_has_no_parent() {
        assert_eq!(parent_in_stat(b""), None);
        assert_eq!(parent_in_stat(b"12 (bash"), None);
        assert_eq!(parent_in_stat(b"12 (bash)"), None);
    }
}
