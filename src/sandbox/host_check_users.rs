//! Judges whose engine it is, and who the users of its containers are on the host.

use crate::sandbox::host_check::{Finding, Severity, add};
use crate::sandbox::host_check_facts::HostFacts;
use crate::sandbox::remap::Users;

/// Which engine speaks the API.
pub(super) fn engine(facts: &HostFacts, found: &mut Vec<Finding>) {
    if facts.is_podman {
        add(
            found,
            ("engine-podman", Severity::Danger),
            format!("the engine is Podman {}, which speaks Docker's API", facts.engine),
            "it takes no seccomp profile over this API, and leaves out without a word what Docker does: masked paths, \
             an IPC namespace that nobody can join, a size for every place that can be written",
            "point KAGE_RUNNER_DOCKER at a Docker engine; docs/runtimes.md says what was seen with Podman",
        );
    }
}

/// Who the sandboxes' users are outside.
pub(super) fn users(facts: &HostFacts, found: &mut Vec<Finding>) {
    let rootless = facts.is_rootless();
    match facts.users {
        Users::Unknown if rootless => add(
            found,
            ("rootless", Severity::Danger),
            "the engine runs without root",
            "a sandbox's user is a subordinate one of the engine's user, to whom only that user's own helpers can give \
             a worktree: no run could write its files. Limits hold only where control groups of version 2 are \
             delegated",
            "use an engine with root; with userns-remap who breaks out of a sandbox is nobody there too",
        ),
        Users::Unknown => add(
            found,
            ("userns-remap-unknown", Severity::Danger),
            "users inside are others outside (userns-remap), and who cannot be told from here",
            "worktrees cannot be given to the sandboxes' user, so no run could write its files",
            "see that the engine's data folder ends in UID.GID, and that the runner is in the host's own user \
             namespace (in a container: userns_mode: host)",
        ),
        Users::Shifted { uid, gid } if !facts.is_root => add(
            found,
            ("userns-remap-no-root", Severity::Danger),
            format!(
                "users inside are others outside (userns-remap: root is {uid}:{gid}), and the runner is not root"
            ),
            "only root can give worktrees to the sandboxes' user, so no run could write its files",
            "run the runner as root, or use an engine without userns-remap",
        ),
        Users::Shifted { uid, gid } => add(
            found,
            ("userns-remap", Severity::Info),
            format!("users inside are others outside (userns-remap: root is {uid}:{gid})"),
            "who breaks out of a sandbox is nobody on the host",
            "give these numbers to nobody else",
        ),
        Users::Same => add(
            found,
            ("users-shared", Severity::Info),
            "users inside are the same outside (neither userns-remap nor rootless)",
            "no process inside is root, and none can become it; but who breaks out through the kernel may do what \
             this number may on the host",
            "where it fits, use userns-remap; see that the sandboxes' user (KAGE_RUNNER_UID) owns nothing else",
        ),
    }
}
