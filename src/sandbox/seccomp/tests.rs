use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::sandbox::seccomp::rules::Argument;

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

fn by_action(rules: &[Rule], action: &str) -> BTreeSet<String> {
    rules.iter().filter(|rule| rule.action == action).flat_map(|rule| rule.names.clone()).collect()
}

#[test]
fn allows_few_calls_and_none_that_is_forbidden() {
    let forbidden: BTreeSet<String> = FORBIDDEN.split_whitespace().map(str::to_owned).collect();
    for architecture in Architecture::ALL {
        for told in [Told::Nothing, Told::Refused, Told::RefusedAndAddresses] {
            let allowed = by_action(&rules(&TABLE, architecture, told), "SCMP_ACT_ALLOW");
            assert!((180..=235).contains(&allowed.len()), "{} calls are allowed", allowed.len());
            let both: Vec<_> = allowed.intersection(&forbidden).collect();
            assert!(both.is_empty(), "{both:?}");
        }
    }
}

#[test]
fn every_call_of_the_architecture_is_allowed_or_told() {
    for architecture in Architecture::ALL {
        let rules = rules(&TABLE, architecture, Told::RefusedAndAddresses);
        let whole = |action: &str| -> BTreeSet<String> {
            let plain = rules.iter().filter(|rule| rule.action == action && rule.args.is_empty());
            plain.flat_map(|rule| rule.names.clone()).collect()
        };
        let (allowed, told) = (by_action(&rules, "SCMP_ACT_ALLOW"), whole("SCMP_ACT_NOTIFY"));
        assert_eq!(allowed.intersection(&told).collect::<Vec<_>>(), Vec::<&String>::new());
        let known: BTreeSet<String> = architecture.calls().map(str::to_owned).collect();
        assert_eq!(allowed.union(&told).cloned().collect::<BTreeSet<_>>(), known);
        // runc refuses a filter that asks before `write`: it needs that call to hand the listener over.
        assert!(!told.contains("write"));
    }
}

/// A name with a slip in it would silently be left out.
#[test]
fn every_name_in_the_table_is_a_call_and_has_one_place_and_a_reason() {
    let known: BTreeSet<&str> = Architecture::ALL.iter().flat_map(|one| one.calls()).collect();
    let forms = || TABLE.allow_if.iter().chain(&TABLE.report).map(|form| (&form.call, &form.why));
    let reasons =
        TABLE.allow.iter().chain(forms()).chain(TABLE.answer.iter().map(|one| (&one.call, &one.why)));
    for (call, why) in reasons {
        assert!(known.contains(call.as_str()), "no such call: {call}");
        assert!(why.len() > 4, "{call}: {why:?}");
    }
    let conditional: BTreeSet<&String> = TABLE.allow_if.iter().map(|form| &form.call).collect();
    for form in &TABLE.report {
        assert!(
            conditional.contains(&form.call),
            "{} is not allowed in any form: it is told anyway",
            form.call
        );
    }
    let special: BTreeSet<&String> = TABLE.answer.iter().map(|one| &one.call).collect();
    for call in TABLE.allow.keys() {
        assert!(!conditional.contains(call) && !special.contains(call), "{call} is named twice");
    }
    assert!(conditional.is_disjoint(&special));
    for one in &TABLE.observe {
        assert!(TABLE.allow.contains_key(&one.call), "{} is not allowed: it is told anyway", one.call);
        assert!(one.why.len() > 4 && one.sizes.iter().all(|size| *size < 256), "{one:?}");
    }
}

#[test]
fn rules_compare_for_equality_only_and_can_match() {
    for rule in Architecture::ALL.iter().flat_map(|one| rules(&TABLE, *one, Told::RefusedAndAddresses)) {
        for argument in &rule.args {
            match argument.op {
                "SCMP_CMP_EQ" => assert_eq!(argument.value_two, None),
                "SCMP_CMP_MASKED_EQ" => {
                    let want = argument.value_two.expect("a masked comparison has a second value");
                    assert_eq!(want & !argument.value, 0, "{:?} can never match", rule.names);
                }
                other => panic!("{:?} compares by {other}", rule.names),
            }
        }
    }
}

fn holds(argument: &Argument, value: u64) -> bool {
    match argument.value_two {
        None => value == argument.value,
        Some(want) => value & argument.value == want,
    }
}

/// libseccomp does not say which of two rules wins.
#[test]
fn no_arguments_meet_rules_that_differ() {
    for architecture in Architecture::ALL {
        let mut forms: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for rule in rules(&TABLE, architecture, Told::RefusedAndAddresses)
            .into_iter()
            .filter(|rule| !rule.args.is_empty())
        {
            forms.entry(rule.names[0].clone()).or_default().push(rule);
        }
        assert!(forms.len() >= 8);
        for (call, rules) in forms {
            for (at, one) in rules.iter().enumerate() {
                let other =
                    rules[at + 1..].iter().find(|other| other.action != one.action && meet(one, other));
                assert_eq!(other, None, "{call}: {one:?}");
            }
        }
    }
}

/// Whether some arguments fit both.
fn meet(one: &Rule, other: &Rule) -> bool {
    let pattern = |argument: &Argument| match argument.value_two {
        None => (u64::MAX, argument.value),
        Some(want) => (argument.value, want),
    };
    one.args.iter().all(|a| {
        other.args.iter().filter(|b| b.index == a.index).all(|b| {
            let ((mask_a, value_a), (mask_b, value_b)) = (pattern(a), pattern(b));
            (value_a ^ value_b) & mask_a & mask_b == 0
        })
    })
}

#[test]
fn what_is_split_is_exactly_the_rest() {
    let form = TABLE.report.iter().find(|form| form.call == "clone").expect("clone is told");
    let rules: Vec<Rule> = rules(&TABLE, Architecture::NATIVE, Told::RefusedAndAddresses)
        .into_iter()
        .filter(|rule| rule.names == [form.call.clone()] && rule.action == "SCMP_ACT_NOTIFY")
        .collect();
    for flags in (0..32).map(|bit| 1_u64 << bit).chain([0, 17, 0x7e02_0011, 0x1000_0000 | 0x2000_0000]) {
        let met = rules.iter().filter(|rule| holds(&rule.args[0], flags)).count();
        assert_eq!(met, usize::from(flags & 0x7e02_0000 != 0), "{flags:#x}");
    }
}

#[test]
fn who_listens_is_sent_and_not_part_of_the_hash() {
    let one = SeccompProfile::reporting(Told::Refused, Path::new("/a/socket"), "one");
    let two = SeccompProfile::reporting(Told::Refused, Path::new("/b/socket"), "two");
    assert_eq!((one.told(), SeccompProfile::built_in().told()), (Told::Refused, Told::Nothing));
    assert_eq!(one.hash(), two.hash());
    assert_ne!(one.hash(), SeccompProfile::built_in().hash());
    let sent: serde_json::Value = serde_json::from_str(one.json()).expect("JSON");
    assert_eq!(
        (sent["listenerPath"].as_str(), sent["listenerMetadata"].as_str()),
        (Some("/a/socket"), Some("one"))
    );
    assert_eq!(sent["architectures"], serde_json::json!([Architecture::NATIVE.seccomp_name()]));
    let plain = SeccompProfile::built_in();
    assert!(!plain.json().contains("NOTIFY") && !plain.json().contains("listener"));
    assert_eq!(plain, SeccompProfile::built_in(), "the same bytes each time");
}

#[test]
fn calls_that_programs_try_get_an_answer_of_their_own() {
    assert_eq!(answer(Some("bpf")), table::Answer { errno: 1, quiet: false });
    assert_eq!(answer(None), table::Answer { errno: 1, quiet: false });
    assert_eq!(answer(Some("clone3")), table::Answer { errno: 38, quiet: true });
    assert_eq!(answer(Some("setxattr")), table::Answer { errno: 95, quiet: true });
}

/// Golden files: every change to what a sandbox may call shows up in review.
#[test]
fn the_files_are_what_the_table_makes() {
    for architecture in Architecture::ALL {
        let file = File::new(architecture, Told::Refused);
        let rules: Vec<String> = file.syscalls.iter().map(pretty).collect();
        let head = serde_json::to_string(&File { syscalls: Vec::new(), ..file }).expect("JSON");
        let head = head.strip_suffix("[]}").expect("the rules come last");
        let text = format!("{head}[\n{}\n]}}\n", rules.join(",\n"));
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("seccomp/{}.json", architecture.name()));
        if std::env::var_os("KAGE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &text).expect("is written");
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "{} is not what the table makes: see seccomp/table.toml", path.display());
    }
}

/// A rule a line; long lists of names a name a line.
fn pretty(rule: &Rule) -> String {
    let text = serde_json::to_string(rule).expect("JSON");
    if rule.names.len() == 1 {
        format!("  {text}")
    } else {
        format!("  {}", text.replace("\",\"", "\",\n    \""))
    }
}
