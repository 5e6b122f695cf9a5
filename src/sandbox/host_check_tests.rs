//! The judging of hosts: each known-bad one is found, and a good one is left in peace.

use crate::sandbox::host_check::{Finding, Severity, judge, refusals};
use crate::sandbox::host_check_facts::{HostFacts, MountFacts, SocketFacts};
use crate::sandbox::host_check_good;
use crate::sandbox::remap::Users;

/// Everything as it should be.
fn good() -> HostFacts {
    HostFacts {
        engine: "29.5.1".to_owned(),
        is_podman: false,
        users: Users::Shifted { uid: 100_000, gid: 100_000 },
        is_root: true,
        containerd: "v2.2.5".to_owned(),
        containerd_revision: "dea7da592f5d1d2b7755e3a161be07f43fad8f75".to_owned(),
        runc: "1.4.3".to_owned(),
        runc_revision: "v1.4.3-0-g59923ef".to_owned(),
        kernel: "6.18.44".to_owned(),
        kernel_build: "#1 SMP PREEMPT_DYNAMIC".to_owned(),
        runtime: "runc".to_owned(),
        security_options: ["name=apparmor", "name=seccomp,profile=builtin", "name=userns", "name=cgroupns"]
            .map(str::to_owned)
            .into(),
        cgroup_version: "2".to_owned(),
        limits: vec![("memory", true), ("swap", true), ("CPU time", true), ("processes", true)],
        live_restore: true,
        authorization_plugins: Vec::new(),
        socket: Some(SocketFacts { mode: 0o660, uid: 0, gid: 0 }),
        core_pattern: "core".to_owned(),
        data: Some(MountFacts {
            at: "/var/lib/kage".to_owned(),
            kind: "ext4".to_owned(),
            options: "rw,nosuid,nodev,relatime".to_owned(),
        }),
    }
}

fn found(facts: &HostFacts) -> Vec<(&'static str, Severity)> {
    judge(facts).iter().map(|finding| (finding.id, finding.severity)).collect()
}

/// Of the changed host: what is found that a good one has not.
fn after(change: impl FnOnce(&mut HostFacts)) -> Vec<(&'static str, Severity)> {
    let mut facts = good();
    change(&mut facts);
    found(&facts).into_iter().filter(|one| one.0 != "userns-remap").collect()
}

#[test]
fn a_good_host_is_told_of_nothing_to_do() {
    assert_eq!(found(&good()), [("userns-remap", Severity::Info)]);
}

/// What is well is named, and only while it is well.
#[test]
fn what_was_looked_at_is_named_until_it_is_found_wanting() {
    let names = |facts: &HostFacts| {
        let named = host_check_good::good(facts, &judge(facts));
        named.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    let all = [
        "engine",
        "containerd",
        "runc",
        "kernel",
        "seccomp",
        "limits",
        "cgroups",
        "mandatory-access",
        "socket",
        "core-files",
        "data-folder",
    ];
    assert_eq!(names(&good()), all);
    type Change = fn(&mut HostFacts);
    let cases: &[(&str, Change)] = &[
        ("runc", |facts| facts.runc = "1.1.11".to_owned()),
        ("seccomp", |facts| facts.security_options.retain(|one| !one.contains("seccomp"))),
        ("limits", |facts| facts.limits[1].1 = false),
        ("cgroups", |facts| facts.cgroup_version = "1".to_owned()),
        ("mandatory-access", |facts| facts.security_options.retain(|one| one != "name=apparmor")),
        ("socket", |facts| facts.socket = Some(SocketFacts { mode: 0o666, uid: 0, gid: 0 })),
        ("core-files", |facts| facts.core_pattern = "|/usr/bin/x".to_owned()),
        ("data-folder", |facts| facts.data = None),
    ];
    for (name, change) in cases {
        let mut facts = good();
        change(&mut facts);
        let left: Vec<&str> = all.into_iter().filter(|one| one != name).collect();
        assert_eq!(names(&facts), left, "{name}");
    }
}

#[test]
fn each_weakness_is_found_by_its_id() {
    use Severity::{Danger, Info, Warning};
    type Change = fn(&mut HostFacts);
    let cases: &[(Change, &str, Severity)] = &[
        (|facts| facts.security_options.retain(|one| !one.contains("seccomp")), "seccomp-missing", Danger),
        (|facts| facts.limits[1].1 = false, "limits-missing", Danger),
        (|facts| facts.cgroup_version = "1".to_owned(), "cgroup-v1", Warning),
        (|facts| facts.cgroup_version.clear(), "cgroup-missing", Danger),
        (|facts| facts.security_options.retain(|one| one != "name=apparmor"), "no-mandatory-access", Info),
        (|facts| facts.users = Users::Same, "users-shared", Info),
        (|facts| facts.users = Users::Unknown, "userns-remap-unknown", Danger),
        (|facts| facts.is_root = false, "userns-remap-no-root", Danger),
        (
            |facts| {
                facts.users = Users::Unknown;
                facts.security_options.push("name=rootless".to_owned());
            },
            "rootless",
            Danger,
        ),
        (|facts| facts.is_podman = true, "engine-podman", Danger),
        (|facts| facts.live_restore = false, "live-restore-off", Info),
        (|facts| facts.authorization_plugins.push("casbin".to_owned()), "engine-authorization-plugin", Info),
        (|facts| facts.socket.as_mut().expect("set").mode = 0o666, "socket-world", Danger),
        (|facts| facts.socket.as_mut().expect("set").mode = 0o602, "socket-world", Danger),
        (|facts| facts.socket.as_mut().expect("set").gid = 999, "socket-group", Info),
        (
            |facts| facts.core_pattern = "|/usr/lib/systemd/systemd-coredump %P".to_owned(),
            "core-pattern-pipe",
            Warning,
        ),
        (|facts| facts.data = None, "data-mount-unknown", Warning),
        (
            |facts| facts.data.as_mut().expect("set").options = "ro,nosuid,nodev".to_owned(),
            "data-read-only",
            Danger,
        ),
        (
            |facts| facts.data.as_mut().expect("set").options = "rw,nosuid".to_owned(),
            "data-mount-plain",
            Info,
        ),
        (|facts| facts.runtime = "crun".to_owned(), "runtime-other", Info),
        (|facts| facts.runc.clear(), "runc-unknown", Warning),
        (|facts| facts.kernel = "odd".to_owned(), "kernel-unknown", Warning),
        (|facts| facts.kernel = "4.8.2".to_owned(), "kernel-2016-5195", Danger),
        (|facts| facts.kernel = "6.3.10".to_owned(), "kernel-2023-3269", Danger),
        (|facts| facts.kernel = "5.16.10".to_owned(), "kernel-2022-0847", Warning),
        (|facts| facts.engine = "20.10.8".to_owned(), "engine-2021-41091", Warning),
        (|facts| facts.containerd = "1.7.28".to_owned(), "containerd-2024-25621", Info),
    ];
    for (change, id, severity) in cases {
        let seen = after(change);
        assert!(seen.contains(&(id, *severity)), "{id}: {seen:?}");
    }
}

#[test]
fn an_upstream_runc_with_known_escapes_is_a_danger_and_a_packaged_one_a_warning() {
    let runc = |version: &str, revision: &str| {
        let mut seen = after(|facts| {
            facts.runc = version.to_owned();
            facts.runc_revision = revision.to_owned();
        });
        seen.retain(|one| one.0.starts_with("runc") && one.1 != Severity::Info);
        seen
    };
    let (danger, warning) = (Severity::Danger, Severity::Warning);
    assert_eq!(
        runc("1.1.11", "v1.1.11-0-g4bccb38c"),
        [("runc-2024-21626", danger), ("runc-2025-31133", danger)]
    );
    assert_eq!(runc("1.2.7", "v1.2.7-0-gabcdef"), [("runc-2025-31133", danger)]);
    for good in ["1.2.8", "1.3.3", "1.4.0", "1.5.0"] {
        assert_eq!(runc(good, "v"), [], "{good}");
    }
    // Debian 12 has the fix of the first under an old number; Debian 13 is behind the second by its number.
    assert_eq!(runc("1.1.5+ds1", "1.1.5+ds1-1+deb12u1"), [("runc-2025-31133", warning)]);
    assert_eq!(
        runc("1.1.5+ds1", "1.1.5+ds1-1"),
        [("runc-2024-21626", warning), ("runc-2025-31133", warning)]
    );
    assert_eq!(runc("1.1.15+ds1", "1.1.15+ds1-2+b4"), [("runc-2025-31133", warning)]);
    assert_eq!(
        runc("1.0.0-rc6", ""),
        [
            ("runc-2019-5736", danger),
            ("runc-2021-30465", danger),
            ("runc-2025-31133", danger),
            ("runc-2023-27561", warning)
        ]
    );
}

#[test]
fn a_socket_that_others_can_only_read_is_closed_to_them() {
    assert_eq!(after(|facts| facts.socket.as_mut().expect("set").mode = 0o755), []);
    assert_eq!(after(|facts| facts.socket = None), []);
}

/// Stock Debian 12 and 13, kept up to date, start with their weaknesses said.
#[test]
fn a_stock_debian_is_no_danger() {
    for (engine, runc, runc_revision, kernel, build) in [
        (
            "20.10.24+dfsg1",
            "1.1.5+ds1",
            "1.1.5+ds1-1+deb12u1",
            "6.1.0-51-amd64",
            "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-09-08)",
        ),
        (
            "26.1.5+dfsg1",
            "1.1.15+ds1",
            "1.1.15+ds1-2+b4",
            "6.12.94+deb13-amd64",
            "#1 SMP PREEMPT_DYNAMIC Debian 6.12.94-1 (2026-09-08)",
        ),
    ] {
        let mut facts = good();
        facts.engine = engine.to_owned();
        facts.runc = runc.to_owned();
        facts.runc_revision = runc_revision.to_owned();
        facts.kernel = kernel.to_owned();
        facts.kernel_build = build.to_owned();
        facts.cgroup_version = "1".to_owned();
        facts.live_restore = false;
        facts.security_options = vec!["name=seccomp,profile=builtin".to_owned()];
        let findings = judge(&facts);
        assert_eq!(refusals(&findings, &[]), Vec::<&Finding>::new());
        assert!(findings.iter().any(|finding| finding.id == "runc-2025-31133"), "{findings:#?}");
        assert!(!findings.iter().any(|finding| finding.id.starts_with("kernel")), "{findings:#?}");
    }
}

/// The patch level that Debian names in the build's text decides, as `uname -r` does not hold it.
#[test]
fn debians_kernel_is_judged_by_its_own_number() {
    let seen = after(|facts| {
        facts.kernel = "6.1.0-9-amd64".to_owned();
        facts.kernel_build = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.27-1 (2023-05-08)".to_owned();
    });
    assert!(seen.contains(&("kernel-2023-3269", Severity::Danger)), "{seen:?}");
    // One that was not updated for long.
    let seen = after(|facts| {
        facts.kernel = "6.1.0-28-amd64".to_owned();
        facts.kernel_build = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)".to_owned();
    });
    assert!(seen.contains(&("kernel-2025-38236", Severity::Danger)), "{seen:?}");
    assert!(!seen.contains(&("kernel-2023-3269", Severity::Danger)), "{seen:?}");
    let seen = after(|facts| {
        facts.kernel = "5.15.0-20-generic".to_owned();
        facts.kernel_build = "#20-Ubuntu SMP".to_owned();
    });
    assert!(seen.contains(&("kernel-2022-0847", Severity::Warning)), "{seen:?}");
    assert!(seen.contains(&("kernel-packaged", Severity::Info)), "{seen:?}");
}

#[test]
fn only_dangers_refuse_and_each_can_be_accepted_by_its_id() {
    let mut facts = good();
    facts.socket = Some(SocketFacts { mode: 0o666, uid: 0, gid: 0 });
    facts.runc = "1.2.0".to_owned();
    facts.cgroup_version = "1".to_owned();
    let findings = judge(&facts);
    let ids = |accepted: &[&str]| {
        let accepted: Vec<String> = accepted.iter().map(|&id| id.to_owned()).collect();
        refusals(&findings, &accepted).iter().map(|finding| finding.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]), ["runc-2025-31133", "socket-world"]);
    assert_eq!(ids(&["socket-world", "cgroup-v1"]), ["runc-2025-31133"]);
    assert_eq!(ids(&["socket-world", "runc-2025-31133"]), [] as [&str; 0]);
    assert_eq!(ids(&["runc", "*", "all", ""]), ["runc-2025-31133", "socket-world"]);
    assert_eq!(findings[0].severity, Severity::Danger, "the worst comes first");
    for finding in &findings {
        assert!(![&finding.seen, &finding.means, &finding.what_to_do].iter().any(|text| text.is_empty()));
    }
}
