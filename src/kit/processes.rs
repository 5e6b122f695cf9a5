//! The processes of a container as the host sees them, and what its control group has counted.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;

use crate::sandbox::host_kill::names_container;

/// Bytes of each that are looked at.
const MOST_BYTES: u64 = 256 << 10;

/// Command line and environment of a process, NUL-separated as the kernel gives them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub command_line: Vec<u8>,
    pub environment: Vec<u8>,
}

/// Those that run now, without PID 1 (`shim`). Empty where the host's processes cannot be seen.
pub fn of_container(container_id: &str, shim: u32) -> BTreeSet<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let ours = pids.filter(|pid| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"));
        *pid != shim && cgroup.is_ok_and(|text| names_container(&text, container_id))
    });
    ours.map(|pid| Process {
        command_line: beginning(&format!("/proc/{pid}/cmdline")),
        environment: beginning(&format!("/proc/{pid}/environ")),
    })
    .collect()
}

/// As good as empty where it cannot be read.
fn beginning(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MOST_BYTES).read_to_end(&mut bytes);
    }
    bytes
}

/// Most bytes that the control group of a process has held, file cache included. None where the host does not show it.
pub fn memory_peak(pid: u32) -> Option<u64> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let read = |path: String| fs::read_to_string(path).ok()?.trim().parse().ok();
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.split(',').any(|name| name == "memory") {
            read(format!("/sys/fs/cgroup/memory{path}/memory.max_usage_in_bytes"))
        } else if controllers.is_empty() {
            read(format!("/sys/fs/cgroup{path}/memory.peak"))
        } else {
            None
        }
    })
}
