//! Network, files, rights: what a script inside can see and change.

use std::collections::BTreeSet;

use kage::sandbox::profile::container_body;
use kage::sandbox::seccomp::SeccompProfile;

use crate::support::{LABEL, LABEL_VALUE, UID, Walls, World};

#[tokio::test]
async fn there_is_no_network_but_a_silent_loopback() {
    let world = World::new().await;
    let look = "tail -n +3 /proc/net/dev | sed 's/:.*//; s/ //g'; tail -n +2 /proc/net/route";
    let plain = world.plain_output(Walls::Dockers, look).await;
    assert!(plain.contains("eth0"), "{plain}");
    assert_eq!(world.output(look).await, "lo\n");

    let script = "
        for to in 1.1.1.1 169.254.169.254 172.17.0.1 10.0.0.1; do
            (exec 3<>/dev/tcp/$to/80) 2>&1 | grep -om1 'Network is unreachable'
        done
        getent hosts example.com || echo unknown
        getent hosts localhost
        cat /etc/resolv.conf";
    let answers = world.output(script).await;
    let unreachable = "Network is unreachable\n".repeat(4);
    let rest = answers.strip_prefix(&unreachable).unwrap_or_else(|| panic!("{answers}"));
    assert!(
        rest.starts_with("unknown\n::1") && rest.contains("ip6-loopback\n# There is no resolver"),
        "{rest}"
    );
}

/// Our way starts faster than mode `none`. It must not isolate less.
#[tokio::test]
async fn network_disabled_isolates_as_mode_none_does() {
    let world = World::new().await;
    let script = "exec >/workspace/out 2>&1
        tail -n +3 /proc/net/dev; tail -n +2 /proc/net/route; cat /proc/net/if_inet6 /proc/net/arp /proc/net/unix
        perl -MSocket -e 'socket(S,PF_INET,SOCK_STREAM,0); bind(S,sockaddr_in(0,INADDR_LOOPBACK)) and listen(S,1) or die;
            my ($port)=sockaddr_in(getsockname(S)); socket(C,PF_INET,SOCK_STREAM,0);
            print connect(C,sockaddr_in($port,INADDR_LOOPBACK)) ? \"loopback works\\n\" : \"no loopback\\n\"'
        readlink /proc/self/ns/net >/workspace/ns";
    let mut seen = Vec::new();
    for (disabled, mode) in [(Some(true), Some("none")), (Some(true), None), (None, Some("none"))] {
        let spec = world.spec(script);
        let mut body = container_body(&spec, &SeccompProfile::built_in());
        body.network_disabled = disabled;
        body.labels.get_or_insert_default().insert(LABEL.to_owned(), LABEL_VALUE.to_owned());
        body.host_config.as_mut().expect("set").network_mode = mode.map(str::to_owned);
        let made = world.engine.api().create_container(None, body).await.expect("creates");
        let mut sandbox =
            kage::sandbox::container::Sandbox::adopt(&world.engine, &made.id).await.expect("adopts");
        sandbox.start().await.expect("starts");
        sandbox.wait().await.expect("ends");
        sandbox.remove().await.expect("is removed");
        let read = |name: &str| std::fs::read_to_string(spec.workspace.join(name)).expect("written");
        let host = std::fs::read_link("/proc/self/ns/net").expect("a link");
        assert_ne!(read("ns").trim(), host.to_string_lossy(), "a network namespace of its own");
        seen.push(read("out"));
    }
    assert!(seen[0].contains("lo:") && seen[0].contains("loopback works"), "{}", seen[0]);
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}

#[tokio::test]
async fn only_the_worktree_and_the_tmpfs_can_be_written() {
    let world = World::new().await;
    let write = "for d in / /etc /usr /var /run /root /opt /dev /sys /proc/sys/kernel /workspace /tmp; do
            touch $d/x 2>/dev/null && echo $d; done; true";
    let plain = world.plain_output(Walls::Dockers, write).await;
    assert!(plain.contains("/etc\n") && plain.contains("/usr\n"), "{plain}");
    assert_eq!(world.output(write).await, "/workspace\n/tmp\n");

    // Everything that the user could open for writing, wherever it is.
    let walk = "cd /; find / -path /proc -prune -o -path '/workspace/*' -prune -o ! -type l -writable -print 2>/dev/null | sort";
    let found = world.output(walk).await;
    let found: BTreeSet<&str> = found.lines().collect();
    let expected = [
        "/dev/full",
        "/dev/null",
        "/dev/ptmx",
        "/dev/pts/ptmx",
        "/dev/random",
        "/dev/tty",
        "/dev/urandom",
        "/dev/zero",
        "/home/agent",
        "/tmp",
        "/workspace",
    ];
    let surprising: Vec<_> = found.iter().filter(|path| !expected.contains(path)).collect();
    assert!(surprising.is_empty(), "{surprising:?}");
    for path in ["/home/agent", "/tmp", "/workspace"] {
        assert!(found.contains(path), "{path}");
    }
    let mounts = world.output("grep -E ' (/tmp|/home/agent) ' /proc/self/mounts").await;
    for mount in mounts.lines() {
        assert!(
            mount.contains("nosuid") && mount.contains("nodev") && mount.contains("size=8192k"),
            "{mount}"
        );
    }
    assert_eq!(mounts.lines().count(), 2);
}

#[tokio::test]
async fn every_process_is_without_any_right() {
    let world = World::new().await;
    let look = "sleep 1 & for s in /proc/[0-9]*/status; do grep -hE '^(Uid|Gid|Groups|Cap|NoNew|Seccomp:)' $s; done | sort -u";
    let plain = world.plain_output(Walls::Dockers, look).await;
    assert!(plain.contains("NoNewPrivs:\t0") && !plain.contains("CapEff:\t0000000000000000"), "{plain}");
    let ours = world.output(look).await;
    let mut expected = String::new();
    for set in ["Amb", "Bnd", "Eff", "Inh", "Prm"] {
        expected += &format!("Cap{set}:\t0000000000000000\n");
    }
    expected += &format!("Gid:\t{UID}\t{UID}\t{UID}\t{UID}\n");
    expected += &format!("Groups:\t{UID} \n");
    expected += &format!("NoNewPrivs:\t1\nSeccomp:\t2\nUid:\t{UID}\t{UID}\t{UID}\t{UID}\n");
    assert_eq!(ours.replace("Groups:\t \n", &format!("Groups:\t{UID} \n")), expected);
}

#[tokio::test]
async fn the_kernels_own_files_tell_nothing() {
    let world = World::new().await;
    let proc = "config.gz kallsyms cmdline interrupts key-users keys modules diskstats partitions buddyinfo bus fs irq \
        kcore timer_list acpi scsi iomem ioports slabinfo vmallocinfo pagetypeinfo kpagecount latency_stats sched_debug";
    let sys = "kernel firmware class block module fs/ext4 fs/fuse fs/bpf devices/virtual/dmi devices/virtual/powercap";
    let masked: Vec<String> = (proc.split_whitespace().map(|name| format!("/proc/{name}")))
        .chain(sys.split_whitespace().map(|name| format!("/sys/{name}")))
        .chain(["/dev/mqueue".to_owned()])
        .collect();
    let look: String = masked
        .iter()
        .map(|path| format!("if test -d {path}; then ls -A {path}; else cat {path} 2>/dev/null; fi | head -c 100 | wc -c\n"))
        .collect();
    let ours = world.output(&look).await;
    assert_eq!(ours.lines().count(), masked.len());
    for (path, bytes) in masked.iter().zip(ours.lines()) {
        assert_eq!(bytes, "0", "{path} can be read");
    }
    let open = world.plain_output(Walls::None, &look).await;
    let readable = open.lines().filter(|bytes| *bytes != "0").count();
    assert!(readable > 15, "only {readable} of the masked paths would tell anything on this host");

    let write = "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /sys/kernel/uevent_helper \
        /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs /proc/1/oom_score_adj_; do \
        (echo 0 >$f) 2>/dev/null && echo $f; done; true";
    assert_eq!(world.output(write).await, "");
}

#[tokio::test]
async fn the_engine_and_other_sockets_are_out_of_reach() {
    let world = World::new().await;
    let script = "find / -type s 2>/dev/null; ls /var/run/docker.sock /run/docker.sock /run/containerd 2>/dev/null; \
        cat /proc/1/cgroup | grep -cE '[0-9a-f]{64}'; hostname; ls /dev/shm 2>/dev/null; ls /dev | tr '\\n' ' '";
    let ours = world.output(script).await;
    assert_eq!(
        ours.trim(),
        "0\nsandbox\nfd full mqueue null ptmx pts random stderr stdin stdout tty urandom zero"
    );
}

#[tokio::test]
async fn a_manifest_can_ask_for_more_tmpfs() {
    let world = World::new().await;
    let mut spec = world.spec("touch /var/tmp/x /dev/shm/y && grep -cE ' (/var/tmp|/dev/shm) .*nosuid,nodev' /proc/self/mounts >out");
    spec.writable = vec!["/var/tmp".to_owned(), "/dev/shm".to_owned()];
    assert_eq!(world.run(&spec).await.exit_code, 0);
    assert_eq!(std::fs::read_to_string(spec.workspace.join("out")).expect("out"), "2\n");
}

#[tokio::test]
async fn nothing_of_ours_is_in_the_environment_or_the_command_line() {
    let world = World::new().await;
    let names = world.output("tr '\\0' '\\n' </proc/1/environ | cut -d= -f1 | sort | tr '\\n' ' '").await;
    // PATH of the image; HOSTNAME and HOME of the engine and the runtime.
    assert_eq!(names.trim(), "HOME HOSTNAME PATH");
}
