//! The seccomp profile: which system calls a sandbox may make. `seccomp/table.toml` says which, and why.
//!
//! [`table`] reads it, [`rules`] makes an architecture's rules from it, [`architecture`] knows the calls by name and
//! number. The files `seccomp/<architecture>.json` are what comes of it, for the reader; a test compares them.

pub mod architecture;
pub mod rules;
pub mod table;

use std::path::Path;
use std::sync::LazyLock;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::sandbox::seccomp::architecture::Architecture;
use crate::sandbox::seccomp::rules::{Rule, rules};
use crate::sandbox::seccomp::table::{Table, Told};

static TABLE: LazyLock<Table> =
    LazyLock::new(|| Table::read(table::TEXT).expect("the built-in table is valid; a test reads it"));

/// A profile as it is sent to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompProfile {
    json: String,
    hash: String,
    told: Told,
}

/// Docker's format.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: &'static str,
    default_errno_ret: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener_metadata: Option<String>,
    architectures: [&'static str; 1],
    syscalls: Vec<Rule>,
}

impl File {
    fn new(architecture: Architecture, told: Told) -> Self {
        Self {
            default_action: "SCMP_ACT_ERRNO",
            default_errno_ret: table::REFUSED,
            listener_path: None,
            listener_metadata: None,
            architectures: [architecture.seccomp_name()],
            syscalls: rules(&TABLE, architecture, told),
        }
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always serialise")
    }
}

impl SeccompProfile {
    /// The profile for the machine's own architecture, for a runtime that cannot tell of refused calls.
    pub fn built_in() -> Self {
        let json = File::new(Architecture::NATIVE, Told::Nothing).json();
        Self { hash: hash(&json), json, told: Told::Nothing }
    }

    /// The same, whose refused calls are told to a listener: the runtime connects to `socket` as a sandbox starts,
    /// and hands over the kernel's descriptor with these words.
    pub fn reporting(told: Told, socket: &Path, metadata: &str) -> Self {
        let mut file = File::new(Architecture::NATIVE, told);
        // Who listens is no part of what is refused.
        let hash = hash(&file.json());
        file.listener_path = Some(socket.to_string_lossy().into_owned());
        file.listener_metadata = Some(metadata.to_owned());
        Self { hash, json: file.json(), told }
    }

    /// The engine's JSON, without reasons.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// `sha256:` of the rules.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// What a listener is told.
    pub fn told(&self) -> Told {
        self.told
    }
}

/// The arguments of an allowed call that are looked at: the address's, and its size's. `None`: it is not an allowed call.
pub fn observed(name: Option<&str>) -> Option<(usize, usize)> {
    let found = TABLE.observe.iter().find(|one| name == Some(one.call.as_str()))?;
    Some((found.address as usize, found.size as usize))
}

/// What a call that is not allowed gets for an answer.
pub fn answer(name: Option<&str>) -> table::Answer {
    let special = name.and_then(|name| TABLE.answer.iter().find(|answer| answer.call == name));
    special.map_or(table::Answer { errno: table::REFUSED, quiet: false }, |special| table::Answer {
        errno: special.errno,
        quiet: special.quiet,
    })
}

fn hash(json: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(json.as_bytes())))
}

#[cfg(test)]
mod tests;
