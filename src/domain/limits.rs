//! The hard limits of one run. Every number that an agent could drive up has one.

use std::collections::BTreeMap;

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
    /// Bytes that the worktree may grow by: of the overlay's upper layer; where it is a copy, of the whole.
    pub worktree_bytes: u64,
    /// Files, folders and links likewise.
    pub worktree_inodes: u64,
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

/// How a limit is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Nothing goes beyond it.
    Hard,
    /// It is looked at every few seconds: it may be passed for as long.
    Soft,
}

impl Limits {
    /// How each of them is held, by its name. Only a worktree's limits depend on the machine.
    pub fn held(&self, worktree: Enforcement) -> BTreeMap<String, Enforcement> {
        let serde_json::Value::Object(all) = serde_json::to_value(self).expect("plain struct") else {
            unreachable!("a struct is an object");
        };
        let of = |name: &str| if name.starts_with("worktree_") { worktree } else { Enforcement::Hard };
        all.into_iter().map(|(name, _)| (name.clone(), of(&name))).collect()
    }
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
            worktree_bytes: 4096 * MIB,
            worktree_inodes: 500_000,
            tmp_bytes: 512 * MIB,
            idle_secs: 600,
            output_bytes: 256 * MIB,
            result_files: 50_000,
            result_bytes: 512 * MIB,
            result_file_bytes: 64 * MIB,
        }
    }
}
