//! The hard limits of one run. Every number that an agent could drive up has one.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of memory; swap is off, so this is all there is.
    pub memory_bytes: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Open files of one process.
    pub open_files: u32,
    /// Bytes of one file that a process writes.
    pub file_bytes: u64,
    /// Bytes of the tmpfs at `/tmp`, and again of the one at HOME.
    pub tmp_bytes: u64,
    /// Seconds without any output.
    pub idle_secs: u64,
    /// Bytes of standard output and standard error together.
    pub output_bytes: u64,
    /// Files that a result may hold changed.
    pub result_files: u64,
    /// Bytes of all changed files together.
    pub result_bytes: u64,
    /// Bytes of one changed file.
    pub result_file_bytes: u64,
}

const MIB: u64 = 1024 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 2048 * MIB,
            cpu_millis: 2000,
            pids: 512,
            open_files: 4096,
            file_bytes: 2048 * MIB,
            tmp_bytes: 512 * MIB,
            idle_secs: 600,
            output_bytes: 256 * MIB,
            result_files: 50_000,
            result_bytes: 512 * MIB,
            result_file_bytes: 64 * MIB,
        }
    }
}
