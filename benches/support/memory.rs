//! What the kernel says of a process's memory.

use std::fs;

use anyhow::{Context as _, Result};

/// A field of `/proc/PID/status`, such as `VmHWM`, in bytes.
pub fn field(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("no field {name}"))? * 1024)
}

/// Bytes as MB.
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
