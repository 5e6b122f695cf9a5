//! The table's own form.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `seccomp/table.toml`.
pub const TEXT: &str = include_str!("../../../seccomp/table.toml");

/// EPERM: the answer to every call that is not allowed, but for those under `[[answer]]`.
pub const REFUSED: u16 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Calls that are allowed whatever their arguments are; with the reason.
    pub allow: BTreeMap<String, String>,
    pub allow_if: Vec<Form>,
    pub answer: Vec<Special>,
    /// Refused forms of calls under `allow_if` that are told.
    pub report: Vec<Form>,
    /// Allowed calls that are looked at.
    pub observe: Vec<Observed>,
}

/// One form of a call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Form {
    pub call: String,
    /// All of them hold.
    pub when: Vec<Condition>,
    pub why: String,
}

/// What an argument is compared with; `arg` counts from 0.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Condition {
    /// Its bits in `mask` (all, if there is none) are this.
    Is { arg: u32, is: u64, mask: Option<u64> },
    /// Its bits in `mask` are none of these.
    NotMasked { arg: u32, not: Vec<u64>, mask: u64 },
    /// As a 32-bit number it is below two to the power of `bits`, and none of these.
    Not { arg: u32, not: Vec<u64>, bits: u32 },
}

/// A call that programs try and do without.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Special {
    pub call: String,
    pub errno: u16,
    /// Ordinary programs try it: no alarm.
    pub quiet: bool,
    pub why: String,
}

/// An allowed call whose socket address is read before the kernel carries it out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observed {
    pub call: String,
    /// The argument that points to the address.
    pub address: u32,
    /// The argument with its size.
    pub size: u32,
    /// Sizes with which it is looked at; below 256.
    pub sizes: Vec<u64>,
    pub why: String,
}

/// What of a sandbox's calls is told to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    /// What is refused.
    Refused,
    /// What is refused, and which addresses programs want to reach.
    RefusedAndAddresses,
}

/// What a refused call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub errno: u16,
    /// Counted, but no alarm.
    pub quiet: bool,
}

impl Table {
    /// # Errors
    /// The place and what is wrong there.
    pub fn read(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}
