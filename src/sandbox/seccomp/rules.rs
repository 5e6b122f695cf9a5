//! From the table to the rules of one architecture, in Docker's format.
//!
//! Rules for one call must not overlap where their actions differ: libseccomp does not say which of them wins. What
//! "none of these values" means is therefore split into comparisons of which at most one holds.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::sandbox::seccomp::architecture::Architecture;
use crate::sandbox::seccomp::table::{Condition, Form, Observed, REFUSED, Table, Told};

const ALLOW: &str = "SCMP_ACT_ALLOW";
const NOTIFY: &str = "SCMP_ACT_NOTIFY";
const ERRNO: &str = "SCMP_ACT_ERRNO";

/// A socket address has at most 128 bytes.
const SIZE_BITS: u32 = 8;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    pub names: Vec<String>,
    pub action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    pub index: u32,
    /// The value, or the mask.
    pub value: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_two: Option<u64>,
    pub op: &'static str,
}

/// The rules of one architecture.
pub fn rules(table: &Table, architecture: Architecture, told: Told) -> Vec<Rule> {
    let known: BTreeSet<&str> = architecture.calls().collect();
    let here = |name: &str| known.contains(name);
    let observed: Vec<&Observed> = match told {
        Told::RefusedAndAddresses => table.observe.iter().filter(|one| here(&one.call)).collect(),
        Told::Nothing | Told::Refused => Vec::new(),
    };
    let whole = |name: &&String| here(name) && !observed.iter().any(|one| one.call == **name);
    let mut rules = vec![plain(table.allow.keys().filter(whole).cloned().collect(), ALLOW)];
    let of_forms = |forms: &[Form], action| -> Vec<Rule> {
        forms
            .iter()
            .filter(|form| here(&form.call))
            .flat_map(|form| ways(&form.call, &form.when, action))
            .collect()
    };
    rules.extend(of_forms(&table.allow_if, ALLOW));
    for one in &observed {
        let (arg, not) = (one.size, one.sizes.clone());
        rules.extend(ways(&one.call, &[Condition::Not { arg, not, bits: SIZE_BITS }], ALLOW));
    }
    if told == Told::Nothing {
        // Those with the default answer need no rule: runtimes may refuse one.
        let answers = table.answer.iter().filter(|answer| here(&answer.call) && answer.errno != REFUSED);
        rules.extend(
            answers.map(|answer| Rule {
                errno_ret: Some(answer.errno),
                ..plain(vec![answer.call.clone()], ERRNO)
            }),
        );
        return rules;
    }
    let forms = table.allow_if.iter().map(|form| form.call.as_str());
    let named: BTreeSet<&str> = table.allow.keys().map(String::as_str).chain(forms).collect();
    rules.push(plain(known.difference(&named).map(|name| (*name).to_owned()).collect(), NOTIFY));
    rules.extend(of_forms(&table.report, NOTIFY));
    for one in &observed {
        for is in &one.sizes {
            let condition = Condition::Is { arg: one.size, is: *is, mask: None };
            rules.extend(ways(&one.call, &[condition], NOTIFY));
        }
    }
    rules
}

fn plain(names: Vec<String>, action: &'static str) -> Rule {
    Rule { names, action, errno_ret: None, args: Vec::new() }
}

/// One rule for each way in which all conditions can hold.
fn ways(call: &str, when: &[Condition], action: &'static str) -> Vec<Rule> {
    let mut ways: Vec<Vec<Argument>> = vec![Vec::new()];
    for condition in when {
        let here = arguments(condition);
        ways = ways
            .iter()
            .flat_map(|way| here.iter().map(|argument| [way.as_slice(), &[*argument]].concat()))
            .collect();
    }
    ways.into_iter().map(|args| Rule { args, ..plain(vec![call.to_owned()], action) }).collect()
}

fn arguments(condition: &Condition) -> Vec<Argument> {
    match condition {
        Condition::Is { arg, is, mask: None } => vec![equal(*arg, *is)],
        Condition::Is { arg, is, mask: Some(mask) } => vec![masked(*arg, *mask, *is)],
        Condition::NotMasked { arg, not, mask } => split(*arg, *mask, 0, 0, not),
        Condition::Not { arg, not, bits } => {
            let low = (1 << bits) - 1;
            split(*arg, low, u64::from(u32::MAX) & !low, 0, not)
        }
    }
}

/// All values whose bits in `fixed` are `value`, but for those in `but`, as comparisons of which at most one holds.
/// `open`: the bits that differ from value to value.
fn split(index: u32, open: u64, fixed: u64, value: u64, but: &[u64]) -> Vec<Argument> {
    if but.is_empty() {
        return vec![masked(index, fixed, value)];
    }
    let Some(top) = open.checked_ilog2() else { return Vec::new() };
    let bit = 1 << top;
    let side = |set: u64| {
        let inside: Vec<u64> = but.iter().copied().filter(|one| one & bit == set).collect();
        split(index, open & !bit, fixed | bit, value | set, &inside)
    };
    [side(0), side(bit)].concat()
}

fn equal(index: u32, value: u64) -> Argument {
    Argument { index, value, value_two: None, op: "SCMP_CMP_EQ" }
}

fn masked(index: u32, mask: u64, value: u64) -> Argument {
    Argument { index, value: mask, value_two: Some(value), op: "SCMP_CMP_MASKED_EQ" }
}
