//! Judges the host beneath the sandboxes: what is known of its engine, runtime and kernel, and how they are set up. A
//! pure function over facts, which [`crate::sandbox::host_check_facts`] gathers.

use std::collections::BTreeSet;

use crate::sandbox::host_check_engine_escapes::ENGINE_ESCAPES;
use crate::sandbox::host_check_facts::HostFacts;
use crate::sandbox::host_check_kernel_escapes::KERNEL_ESCAPES;
use crate::sandbox::host_check_users::{engine, users};
use crate::sandbox::host_check_versions::{Component, Escape, Version, is_packaged};

/// In order: the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know; nothing must be done.
    Info,
    /// A wall less, or one that cannot be judged from here.
    Warning,
    /// A sandbox cannot be relied on: no runner starts unless the operator accepts it by its id.
    Danger,
}

impl Severity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Danger => "danger",
        }
    }
}

/// One thing about the host that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What `KAGE_RUNNER_ACCEPT_HOST` takes.
    pub id: &'static str,
    pub severity: Severity,
    pub seen: String,
    pub means: String,
    pub what_to_do: String,
}

impl Finding {
    /// In one line.
    pub fn text(&self) -> String {
        format!("{}: {}", self.severity.as_str(), self.words())
    }

    /// The same, where the severity is told otherwise.
    pub fn words(&self) -> String {
        format!("{}. It means: {}. What to do: {}.", self.seen, self.means, self.what_to_do)
    }
}

/// What a keeper of refused calls is found to be that has no right to read addresses where they are to be recorded.
pub fn addresses_unreadable() -> Finding {
    Finding {
        id: "addresses-unreadable",
        severity: Severity::Warning,
        seen: "the keeper of refused calls has no right to read other programs' memory (CAP_SYS_PTRACE)"
            .to_owned(),
        means:
            "that a sandbox's program wants to reach somebody is recorded, and whom it wants to reach is not"
                .to_owned(),
        what_to_do: "give `kage keeper` that right, or set KAGE_RUNNER_RECORD_ADDRESSES=false".to_owned(),
    }
}

/// The findings that keep a runner from starting: dangers that nobody has accepted.
pub fn refusals<'a>(findings: &'a [Finding], accepted: &[String]) -> Vec<&'a Finding> {
    let stands = |finding: &&Finding| {
        finding.severity == Severity::Danger && !accepted.iter().any(|id| id == finding.id)
    };
    findings.iter().filter(stands).collect()
}

/// Everything worth saying, the worst first.
pub fn judge(facts: &HostFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    versions(facts, &mut found);
    engine(facts, &mut found);
    walls_of_the_engine(facts, &mut found);
    control_groups(facts, &mut found);
    users(facts, &mut found);
    mandatory_access(facts, &mut found);
    socket(facts, &mut found);
    core_files(facts, &mut found);
    data_folder(facts, &mut found);
    found.sort_by_key(|finding| (std::cmp::Reverse(finding.severity), finding.id));
    found
}

pub(super) fn add(
    found: &mut Vec<Finding>,
    (id, severity): (&'static str, Severity),
    seen: impl Into<String>,
    means: impl Into<String>,
    what_to_do: impl Into<String>,
) {
    found.push(Finding {
        id,
        severity,
        seen: seen.into(),
        means: means.into(),
        what_to_do: what_to_do.into(),
    });
}

/// Every known escape.
pub fn escapes() -> impl Iterator<Item = &'static Escape> {
    ENGINE_ESCAPES.iter().chain(KERNEL_ESCAPES)
}

fn versions(facts: &HostFacts, found: &mut Vec<Finding>) {
    // `uname -r` of Debian's kernels names no patch level, the build's text does.
    let kernel = facts.kernel_build.split_once("Debian ").map_or(&*facts.kernel, |(_, version)| version);
    let is_runc = facts.runtime.contains("runc");
    let components = [
        (Component::Engine, "the engine", &*facts.engine, &*facts.engine),
        (Component::Containerd, "containerd", &*facts.containerd, &*facts.containerd_revision),
        (Component::Runc, "runc", if is_runc { &*facts.runc } else { "" }, &*facts.runc_revision),
        (Component::Kernel, "the kernel", kernel, &*facts.kernel_build),
    ];
    for (component, name, text, revision) in components {
        match Version::parse(text) {
            Some(version) => {
                for row in escapes().filter(|row| row.component == component && row.is_in(version)) {
                    found.extend(escape(row, name, text, revision));
                }
            }
            None if component == Component::Runc && !is_runc => add(
                found,
                ("runtime-other", Severity::Info),
                format!("sandboxes run with {:?}", facts.runtime),
                "its version is not known here, and so not whether it has known faults",
                "follow the announcements of that runtime",
            ),
            None => add(
                found,
                (unknown_id(component), Severity::Warning),
                format!("the version of {name} is {text:?}"),
                "it cannot be said whether it has known faults",
                "compare it by hand with the list in docs/security.md",
            ),
        }
    }
    if kernel == facts.kernel && is_distributions_kernel(&facts.kernel, &facts.kernel_build) {
        add(
            found,
            ("kernel-packaged", Severity::Info),
            format!("kernel {} is a distributor's ({})", facts.kernel, facts.kernel_build),
            "its number does not say which faults are fixed in it, so what is found by number is a warning only",
            "keep it up to date with the distribution",
        );
    }
}

const fn unknown_id(component: Component) -> &'static str {
    match component {
        Component::Engine => "engine-unknown",
        Component::Containerd => "containerd-unknown",
        Component::Runc => "runc-unknown",
        Component::Kernel => "kernel-unknown",
    }
}

fn is_distributions_kernel(release: &str, build: &str) -> bool {
    is_packaged(release)
        || ["Ubuntu", "Debian"].iter().any(|name| build.contains(name))
        || release.ends_with("-generic")
}

fn escape(row: &Escape, name: &str, text: &str, revision: &str) -> Option<Finding> {
    if row.packaged.iter().any(|good| revision.starts_with(good)) {
        return None;
    }
    let packaged = match row.component {
        // Debian's own text holds the number of the patch level, so it decides.
        Component::Kernel => !revision.contains("Debian ") && is_distributions_kernel(text, revision),
        _ => is_packaged(text) || is_packaged(revision),
    };
    let shown = if revision.is_empty() || revision == text {
        text.to_owned()
    } else {
        format!("{text} ({revision})")
    };
    let good = row.fixed.join(" or ");
    let (severity, doubt) = if packaged {
        (row.severity.min(Severity::Warning), ", unless the distributor has fixed it beneath this number")
    } else {
        (row.severity, "")
    };
    Some(Finding {
        id: row.id,
        severity,
        seen: format!(
            "{name} is {shown}, which by its number has {} (published {}){doubt}",
            row.cves, row.published
        ),
        means: row.means.to_owned(),
        what_to_do: format!(
            "update {name} to {good} or newer, or to a package whose changelog names the fix"
        ),
    })
}

fn walls_of_the_engine(facts: &HostFacts, found: &mut Vec<Finding>) {
    let option =
        |name: &str| facts.security_options.iter().any(|option| option.starts_with(&format!("name={name}")));
    if !option("seccomp") {
        add(
            found,
            ("seccomp-missing", Severity::Danger),
            "the engine has no seccomp",
            "no system call is refused: every fault of the kernel is within a sandbox's reach",
            "use an engine and a kernel with seccomp (CONFIG_SECCOMP_FILTER)",
        );
    }
    let missing: Vec<&str> = facts.limits.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        add(
            found,
            ("limits-missing", Severity::Danger),
            format!("the engine cannot limit {}", missing.join(", ")),
            "one sandbox can take the whole host from all others",
            "switch on the control groups that it names; for swap on old kernels boot with swapaccount=1",
        );
    }
    if !facts.authorization_plugins.is_empty() {
        add(
            found,
            ("engine-authorization-plugin", Severity::Info),
            format!(
                "authorization plugins judge the engine's calls: {}",
                facts.authorization_plugins.join(", ")
            ),
            "they were passed by before (CVE-2024-41110, CVE-2026-34040), so no wall of ours rests on them",
            "see that they allow what the runner asks for; rely on them for nothing",
        );
    }
    if !facts.live_restore && !facts.is_rootless() {
        add(
            found,
            ("live-restore-off", Severity::Info),
            "the engine's live-restore is off",
            "a restart of the engine ends all runs in their middle; the runner tries them again where it may",
            "set \"live-restore\": true in the engine's daemon.json if it is restarted often",
        );
    }
}

fn control_groups(facts: &HostFacts, found: &mut Vec<Finding>) {
    match &*facts.cgroup_version {
        "2" => {}
        "1" => add(
            found,
            ("cgroup-v1", Severity::Warning),
            "control groups are of version 1",
            "limits hold, but writes to disk are not counted to who made them, a fork bomb can't be ended as one, and \
             an escape with rights to mount could have the host run programs (release_agent); sandboxes have no such \
             right, and see these files read-only",
            "boot with systemd.unified_cgroup_hierarchy=1, or take a newer distribution",
        ),
        other => add(
            found,
            ("cgroup-missing", Severity::Danger),
            format!("the version of the control groups is {other:?}"),
            "nothing says that a sandbox's memory, CPU and processes are limited",
            "mount control groups, and start the engine anew",
        ),
    }
}

fn mandatory_access(facts: &HostFacts, found: &mut Vec<Finding>) {
    let named =
        |name: &str| facts.security_options.iter().any(|option| option.starts_with(&format!("name={name}")));
    let all = ["apparmor", "selinux"];
    let in_force: Vec<&str> = all.into_iter().filter(|name| named(name)).collect();
    if in_force.is_empty() {
        add(
            found,
            ("no-mandatory-access", Severity::Info),
            "the engine uses neither AppArmor nor SELinux",
            "one wall less behind the others: files of the kernel are held by masks and mounts alone",
            "install apparmor, boot with it, and start the engine anew",
        );
    }
}

fn socket(facts: &HostFacts, found: &mut Vec<Finding>) {
    let Some(socket) = facts.socket else { return };
    let shown = format!(
        "the engine's socket has mode {:04o}, user {}, group {}",
        socket.mode, socket.uid, socket.gid
    );
    // Who may write to it may connect; reading alone gives nothing (unix(7)).
    if socket.mode & 0o002 != 0 {
        add(
            found,
            ("socket-world", Severity::Danger),
            shown,
            "every user and every service of this host can use the engine, which is to be root",
            "chmod 0660 the socket, and find out who opened it",
        );
    } else if socket.mode & 0o020 != 0 && socket.gid != 0 {
        add(
            found,
            ("socket-group", Severity::Info),
            shown,
            "who is in that group can become root on this host; no sandbox is in it, nor sees the socket",
            "keep the group empty but for whom you would give root",
        );
    }
}

fn core_files(facts: &HostFacts, found: &mut Vec<Finding>) {
    if facts.core_pattern.starts_with('|') {
        add(
            found,
            ("core-pattern-pipe", Severity::Warning),
            format!("core files go to a program: {:?}", facts.core_pattern),
            "a process that crashes inside has the host run that program as root, over memory which the process \
             chose; the limit on core files does not hold for pipes",
            "sysctl kernel.core_pattern=core, or keep that program (systemd-coredump, apport) up to date",
        );
    }
}

fn data_folder(facts: &HostFacts, found: &mut Vec<Finding>) {
    let Some(mount) = &facts.data else {
        add(
            found,
            ("data-mount-unknown", Severity::Warning),
            "the mount of the data folder was not found",
            "it cannot be said what it lets programs do there",
            "look at KAGE_DATA_DIR with findmnt",
        );
        return;
    };
    let options: BTreeSet<&str> = mount.options.split(',').collect();
    let shown = format!("the data folder is on {} ({}, {})", mount.at, mount.kind, mount.options);
    if options.contains("ro") {
        add(
            found,
            ("data-read-only", Severity::Danger),
            shown,
            "nothing of a run can be kept",
            "mount it for writing",
        );
    } else if !(options.contains("nosuid") && options.contains("nodev")) {
        add(
            found,
            ("data-mount-plain", Severity::Info),
            shown,
            "set-user-id programs and devices would work there for whoever reaches these folders on the host; \
             sandboxes can make neither, and their worktrees are mounted without",
            "give KAGE_DATA_DIR a file system of its own, mounted nosuid,nodev",
        );
    }
}
