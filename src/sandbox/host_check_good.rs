//! What of the host was looked at and is as it should be: an operator sees that it was looked at. The counterpart of
//! [`crate::sandbox::host_check::judge`], over the same facts.

use crate::sandbox::host_check::{Finding, Severity, escapes};
use crate::sandbox::host_check_facts::HostFacts;
use crate::sandbox::host_check_versions::{Component, Version};

/// Name and words of each thing without a warning of `findings`.
pub fn good(facts: &HostFacts, findings: &[Finding]) -> Vec<(&'static str, String)> {
    let mut good = versions(facts, findings);
    let is_said = |ids: &[&str]| {
        let serious = |finding: &&Finding| finding.severity > Severity::Info;
        findings.iter().filter(serious).any(|finding| ids.contains(&finding.id))
    };
    let mut add = |name: &'static str, ids: &[&str], words: Option<String>| {
        if let Some(words) = words.filter(|_| !is_said(ids)) {
            good.push((name, words));
        }
    };
    let limits: Vec<&str> = facts.limits.iter().map(|(name, _)| *name).collect();
    let socket = facts.socket.map(|it| format!("mode {:04o}: not open to every user", it.mode));
    let data = facts.data.as_ref().map(|it| format!("{} on {}, can be written", it.kind, it.at));
    let walls: Vec<&str> = ["apparmor", "selinux"].into_iter().filter(|name| has(facts, name)).collect();
    add("seccomp", &["seccomp-missing"], Some("the engine filters system calls".to_owned()));
    add("limits", &["limits-missing"], Some(format!("the engine limits {}", limits.join(", "))));
    add("cgroups", &["cgroup-v1", "cgroup-missing"], Some(format!("version {}", facts.cgroup_version)));
    add("mandatory-access", &[], (!walls.is_empty()).then(|| walls.join(", ")));
    add("socket", &["socket-world"], socket);
    add(
        "core-files",
        &["core-pattern-pipe"],
        Some(format!("not handed to a program ({:?})", facts.core_pattern)),
    );
    add("data-folder", &["data-read-only"], data);
    good
}

fn has(facts: &HostFacts, name: &str) -> bool {
    facts.security_options.iter().any(|option| option.starts_with(&format!("name={name}")))
}

fn versions(facts: &HostFacts, findings: &[Finding]) -> Vec<(&'static str, String)> {
    let components = [
        (Component::Engine, "engine", &facts.engine),
        (Component::Containerd, "containerd", &facts.containerd),
        (Component::Runc, "runc", &facts.runc),
        (Component::Kernel, "kernel", &facts.kernel),
    ];
    let mut good = Vec::new();
    for (component, name, text) in components {
        let known = escapes().filter(|row| row.component == component);
        let ids: Vec<&str> = known.map(|row| row.id).collect();
        let is_found = findings.iter().any(|finding| ids.contains(&finding.id));
        let is_used = component != Component::Runc || facts.runtime.contains("runc");
        if is_used && !is_found && Version::parse(text).is_some() {
            good.push((name, format!("{text}: none of the {} known faults of our table", ids.len())));
        }
    }
    good
}
