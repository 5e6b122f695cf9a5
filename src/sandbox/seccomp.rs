//! The seccomp profile: which system calls a sandbox may make. `seccomp/sandbox.json` is the table.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const TABLE: &str = include_str!("../../seccomp/sandbox.json");

/// The kernel's name for the only architecture whose calls are answered; all others kill the process.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "SCMP_ARCH_AARCH64";

/// A profile as it is sent to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompProfile {
    json: String,
    hash: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Table {
    #[serde(skip_serializing)]
    #[expect(dead_code, reason = "for the reader; its presence is checked")]
    comment: String,
    default_action: String,
    default_errno_ret: u32,
    #[serde(default)]
    architectures: Vec<String>,
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    /// Why the rule is there. Not sent: the engine would store it with every container.
    #[serde(skip_serializing)]
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader; its presence is checked"))]
    comment: String,
    names: Vec<String>,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    args: Vec<Argument>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_two: Option<u64>,
    op: String,
}

impl SeccompProfile {
    /// The profile that is built into this program, for the machine's own architecture.
    pub fn built_in() -> Self {
        let mut table: Table =
            serde_json::from_str(TABLE).expect("the built-in table is valid; a test reads it");
        table.architectures = vec![ARCHITECTURE.to_owned()];
        let json = serde_json::to_string(&table).expect("strings and numbers always serialise");
        let hash = format!("sha256:{}", hex::encode(Sha256::digest(json.as_bytes())));
        Self { json, hash }
    }

    /// The engine's JSON, without comments.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// `sha256:` of [`SeccompProfile::json`].
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn table() -> Table {
        serde_json::from_str(TABLE).expect("valid JSON without unknown fields")
    }

    /// Calls that must never be allowed, under any argument.
    const FORBIDDEN: &str = "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd keyctl add_key \
        request_key bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register mount umount umount2 \
        mount_setattr move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick unshare setns chroot pivot_root \
        name_to_handle_at open_by_handle_at memfd_secret modify_ldt splice tee vmsplice shmget shmat shmctl shmdt semget \
        semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify \
        mq_getsetattr io_setup io_submit io_getevents io_pgetevents io_destroy io_cancel fanotify_init fanotify_mark \
        init_module finit_module delete_module create_module query_module get_kernel_syms kexec_load kexec_file_load \
        swapon swapoff reboot clock_settime settimeofday stime adjtimex clock_adjtime syslog quotactl quotactl_fd acct \
        iopl ioperm statmount listmount sethostname setdomainname vhangup nfsservctl lookup_dcookie uselib ustat sysfs \
        _sysctl seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self move_pages migrate_pages mbind \
        set_mempolicy get_mempolicy set_mempolicy_home_node sched_setscheduler sched_setparam sched_setattr ioprio_set \
        setfsuid setfsgid setgroups capset clone3 openat2 setxattr lsetxattr fsetxattr removexattr socketcall ipc \
        process_mrelease cachestat map_shadow_stack remap_file_pages vm86 vm86old";

    #[test]
    fn allows_few_calls_and_none_that_is_forbidden() {
        let table = table();
        assert_eq!((table.default_action.as_str(), table.default_errno_ret), ("SCMP_ACT_ERRNO", 1));
        assert!(table.architectures.is_empty(), "the architecture is added when the table is loaded");
        let allowed: BTreeSet<&str> = table
            .syscalls
            .iter()
            .filter(|rule| rule.action == "SCMP_ACT_ALLOW")
            .flat_map(|rule| rule.names.iter().map(String::as_str))
            .collect();
        assert!(allowed.len() <= 235, "{} calls are allowed", allowed.len());
        let forbidden: BTreeSet<&str> = FORBIDDEN.split_whitespace().collect();
        let both: Vec<_> = allowed.intersection(&forbidden).collect();
        assert!(both.is_empty(), "{both:?}");
    }

    #[test]
    fn every_rule_has_a_reason_and_compares_for_equality_only() {
        let table = table();
        let mut unconditional = BTreeSet::new();
        for rule in &table.syscalls {
            assert!(
                rule.comment.len() > 8 && rule.comment.ends_with('.'),
                "{:?}: {:?}",
                rule.names,
                rule.comment
            );
            match rule.action.as_str() {
                "SCMP_ACT_ALLOW" => assert_eq!(rule.errno_ret, None),
                "SCMP_ACT_ERRNO" => assert!(rule.errno_ret.is_some()),
                other => panic!("action {other}"),
            }
            for argument in &rule.args {
                match argument.op.as_str() {
                    "SCMP_CMP_EQ" => assert_eq!(argument.value_two, None),
                    "SCMP_CMP_MASKED_EQ" => {
                        let want = argument.value_two.expect("a masked comparison has a second value");
                        assert_eq!(want & !argument.value, 0, "{:?} can never match", rule.names);
                    }
                    other => panic!("{:?} compares by {other}", rule.names),
                }
            }
            for name in &rule.names {
                if rule.args.is_empty() {
                    assert!(unconditional.insert(name.clone()), "{name} is named twice");
                }
            }
        }
        for rule in table.syscalls.iter().filter(|rule| !rule.args.is_empty()) {
            for name in &rule.names {
                assert!(!unconditional.contains(name), "{name} is allowed whatever its arguments are");
            }
        }
    }

    #[test]
    fn serves_one_architecture_and_no_comments() {
        let profile = SeccompProfile::built_in();
        let served: serde_json::Value = serde_json::from_str(profile.json()).expect("JSON");
        assert_eq!(served["architectures"], serde_json::json!([ARCHITECTURE]));
        assert!(!profile.json().contains("comment"));
        assert_eq!(profile, SeccompProfile::built_in(), "the same bytes each time");
        assert_eq!(profile.hash().len(), "sha256:".len() + 64);
    }

    /// Golden file: every change to what a sandbox may call shows up in review.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_profile_that_is_served() {
        let mut served: serde_json::Value =
            serde_json::from_str(SeccompProfile::built_in().json()).expect("JSON");
        served.sort_all_objects();
        let rules = served["syscalls"].as_array().expect("rules");
        let lines: Vec<String> = rules.iter().map(ToString::to_string).collect();
        let head = format!("{} {}", served["defaultAction"], served["architectures"]);
        insta::assert_snapshot!("seccomp_profile", format!("{head}\n{}", lines.join("\n")));
    }
}
