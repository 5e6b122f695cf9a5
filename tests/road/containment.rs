//! The probes of docs/security.md that concern the sandbox, as runs through the public API: what the agent finds from
//! inside, and beside it what the host sees of its processes. Numbers are those of the list there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::support::tasks::{shell, string};
use crate::support::{TestKage, docker, eventually};

/// Runs a script to its good end; its standard output.
pub async fn output(kage: &TestKage, script: &str) -> String {
    let done = kage.run(&shell(&format!("{script}\necho x >done"))).await;
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&done["id"]))).await.text();
    assert_eq!(done["runs"][0]["state"], "succeeded", "{log}\n{done:#}");
    log
}

/// A Python program in a script.
pub fn python(program: &str) -> String {
    format!("python3 - <<'END_OF_PROGRAM' 2>&1\n{program}\nEND_OF_PROGRAM")
}

/// The same in a container with nothing of ours, on the host's network and with its processes.
pub fn unguarded(program: &str) -> String {
    let image = std::env::var("KAGE_TEST_IMAGE").expect("./test sets it");
    let label = ["--label", "kage.test=road-containment"];
    let walls =
        ["--privileged", "--network", "host", "--pid", "host", "--user", "0:0", "--entrypoint", "python3"];
    docker(&[&["run", "--rm"][..], &label, &walls, &[&image, "-c", program]].concat())
}

/// A run that lives until the world ends: its task's id, and its first process on the host.
pub async fn living(kage: &TestKage, script: &str) -> (String, u64) {
    let id =
        string(&kage.submit(&shell(&format!("{script}\necho begun; sleep 1000"))).await["id"]).to_owned();
    kage.says(&id, "shell", "begun").await;
    let containers = kage.containers();
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &containers[0]]);
    (id, pid.trim().parse().expect("a number"))
}

/// Ends what [`living`] began.
pub async fn end(kage: &TestKage, id: &str) {
    kage.delete(&format!("/api/v1/tasks/{id}")).await;
    kage.ended(id).await;
}

/// Every process in the process namespace of this one.
pub fn processes(pid: u64) -> Vec<u64> {
    let namespace = |pid: u64| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(pid).expect("these tests are root on the engine's host");
    let all = fs::read_dir("/proc")
        .expect("reads")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|pid: &u64| namespace(*pid).as_ref() == Some(&wanted)).collect()
}

pub fn status(pid: u64) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[tokio::test]
async fn probe_13_every_process_is_without_any_right_as_the_host_sees_it() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    // Children of several kinds: forked, in a session of their own, and orphaned.
    let script = "sleep 500 & setsid sleep 501 & (sleep 502 & ) ; python3 -c 'import os, time; os.fork(); time.sleep(503)' &";
    let (id, pid) = living(&kage, script).await;
    let all = eventually("all of them run", async || Some(processes(pid)).filter(|all| all.len() >= 7)).await;
    for pid in all {
        let status = status(pid);
        let none = "0000000000000000";
        for (field, expected) in [
            ("CapInh", none),
            ("CapPrm", none),
            ("CapEff", none),
            ("CapBnd", none),
            ("CapAmb", none),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Uid", "10001\t10001\t10001\t10001"),
            ("Gid", "10001\t10001\t10001\t10001"),
        ] {
            assert_eq!(
                status.get(field).map(String::as_str),
                Some(expected),
                "{field} of {:?}",
                status.get("Name")
            );
        }
        assert!(["", "10001"].contains(&&*status["Groups"]), "{status:?}");
    }
    end(&kage, &id).await;
}

#[tokio::test]
async fn probe_19_only_the_worktree_and_two_tmpfs_can_be_written() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let (id, pid) = living(&kage, "").await;
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("reads");
    let mut mounts = BTreeMap::new();
    for line in table.lines() {
        let (mount, rest) = line.split_once(" - ").expect("mountinfo");
        let fields: Vec<&str> = mount.split(' ').collect();
        // What is mounted later covers what was there.
        mounts.insert(fields[4], (fields[5], rest.split(' ').next().expect("a kind")));
    }
    let of_the_kernel = |kind: &str| ["proc", "sysfs", "cgroup", "cgroup2"].contains(&kind);
    // A masked file is the null device.
    let masked = |at: &str, kind: &str| at.starts_with("/proc/") && kind == "tmpfs";
    let writable: BTreeMap<&str, &str> = mounts
        .into_iter()
        .filter(|(at, (options, kind))| {
            options.starts_with("rw") && !of_the_kernel(kind) && !masked(at, kind)
        })
        .map(|(at, (options, _))| (at, options))
        .collect();
    // Folders of root's, which the walk below finds closed: the devices', and that of control groups of version 1.
    let of_root = ["/dev", "/dev/pts", "/sys/fs/cgroup"];
    let paths: BTreeSet<&str> = writable.keys().copied().filter(|at| !of_root.contains(at)).collect();
    assert_eq!(paths, BTreeSet::from(["/home/agent", "/tmp", "/workspace"]), "{table}");
    for at in ["/home/agent", "/tmp", "/workspace"] {
        assert!(writable[at].contains("nosuid") && writable[at].contains("nodev"), "{at}: {}", writable[at]);
    }

    end(&kage, &id).await;

    let walk = "find / -path /proc -prune -o -path '/workspace/*' -prune -o ! -type l -writable -print 2>/dev/null | sort";
    let found = output(&kage, walk).await;
    let devices = [
        "/dev/full",
        "/dev/null",
        "/dev/ptmx",
        "/dev/pts/ptmx",
        "/dev/random",
        "/dev/tty",
        "/dev/urandom",
        "/dev/zero",
    ];
    let surprising: Vec<&str> = found
        .lines()
        .filter(|path| !devices.contains(path) && !["/home/agent", "/tmp", "/workspace"].contains(path))
        .collect();
    assert_eq!(surprising, [] as [&str; 0], "{found}");
}

const DEVICES: &str = "
import os, errno
print(' '.join(sorted(os.listdir('/dev'))))
for name in ['kvm', 'fuse', 'net/tun', 'mem', 'kmsg', 'sda', 'vda', 'loop0', 'loop-control', 'mapper/control', 'vhost-net', 'snapshot']:
    try:
        os.open('/dev/' + name, os.O_RDONLY | os.O_NONBLOCK); print('opened', name)
    except OSError as error:
        pass
made = 0
for major in list(range(1, 12)) + [43, 65, 179, 202, 252, 253, 254, 259]:
    for kind in [0o060000, 0o020000]:
        try:
            os.mknod('/tmp/device', 0o666 | kind, os.makedev(major, 0)); made += 1; os.unlink('/tmp/device')
        except OSError as error:
            assert error.errno == errno.EPERM, error
print('made', made)
";

#[tokio::test]
async fn probe_20_no_device_but_the_harmless_ones() {
    let open = unguarded(DEVICES);
    assert!(!open.contains("made 0") && open.contains("opened"), "{open}");
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let seen = output(&kage, &python(DEVICES)).await;
    assert_eq!(seen, "fd full mqueue null ptmx pts random stderr stdin stdout tty urandom zero\nmade 0\n");
}

const KERNEL_FILES: &str = "
import os, glob
for path in ['/proc/' + name for name in 'config.gz kallsyms cmdline interrupts key-users keys modules diskstats partitions buddyinfo bus fs irq kcore kmsg timer_list acpi scsi iomem ioports slabinfo vmallocinfo pagetypeinfo kpagecount kpageflags sched_debug sysrq-trigger'.split()] + ['/sys/' + name for name in 'kernel firmware class block module fs/ext4 fs/bpf devices/virtual/dmi devices/virtual/powercap'.split()]:
    try:
        if os.path.isdir(path): told = len(os.listdir(path))
        else: told = len(os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 100))
        if told: print('read', path)
    except OSError: pass
for path in ['/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sys/vm/drop_caches', '/proc/sys/kernel/modprobe', '/sys/kernel/uevent_helper', '/sys/power/state', '/sys/module/kernel/parameters/panic'] + glob.glob('/sys/fs/cgroup/**/release_agent', recursive=True) + glob.glob('/sys/fs/cgroup/**/cgroup.procs', recursive=True) + glob.glob('/sys/fs/cgroup/**/memory.limit_in_bytes', recursive=True) + glob.glob('/sys/fs/cgroup/**/memory.max', recursive=True):
    if os.path.exists(path):
        try: os.close(os.open(path, os.O_WRONLY)); print('wrote', path)
        except OSError: pass
";

#[tokio::test]
async fn probe_21_the_kernels_files_tell_nothing_and_take_nothing() {
    let open = unguarded(KERNEL_FILES);
    assert!(
        open.matches("read ").count() > 10 && open.contains("wrote /proc/sys/kernel/core_pattern"),
        "{open}"
    );
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    assert_eq!(output(&kage, &python(KERNEL_FILES)).await, "");
}

/// Prints every place that a link of /proc leads to, and what can be opened beneath the roots of processes.
const LINKS: &str = "
import os, glob
for pattern in ['cwd', 'root', 'exe', 'fd/*', 'map_files/*', 'task/*/cwd', 'task/*/root']:
    for link in glob.glob('/proc/[0-9]*/' + pattern):
        try: print('link', os.readlink(link))
        except OSError: pass
here = os.stat('/')
for pid in os.listdir('/proc'):
    if pid.isdigit():
        try:
            root = os.stat('/proc/' + pid + '/root/')
            if (root.st_dev, root.st_ino) != (here.st_dev, here.st_ino): print('another root', pid)
            if os.path.exists('/proc/' + pid + '/root/var/lib/docker'): print('the host', pid)
        except OSError: pass
";

#[tokio::test]
async fn probe_22_no_link_of_proc_leads_to_the_host() {
    let open = unguarded(LINKS);
    assert!(open.contains("another root") && open.contains("the host"), "{open}");
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let seen = output(&kage, &python(LINKS)).await;
    let data = kage.folder.to_str().expect("UTF-8");
    for line in seen.lines() {
        let to = line.strip_prefix("link ").unwrap_or_else(|| panic!("{line}"));
        let inside = [
            "/workspace",
            "/usr/",
            "/dev/null",
            "/proc/",
            "/tmp/",
            "/run/kage-shim",
            "pipe:[",
            "socket:[",
            "anon_inode:",
        ];
        assert!(to == "/" || inside.iter().any(|start| to.starts_with(start)), "{line}");
        assert!(!to.contains(data) && !to.contains("docker"), "{line}");
    }
    assert!(seen.lines().count() > 5, "{seen}");
}

const SOCKETS: &str = "
import os, socket
found = []
for top, folders, files in os.walk('/'):
    if top.startswith('/proc/'): folders.clear(); continue
    for name in files:
        path = os.path.join(top, name)
        try:
            if (os.lstat(path).st_mode & 0o170000) == 0o140000: found.append(path)
        except OSError: pass
print(sorted(found))
reached = []
for path in ['/var/run/docker.sock', '/run/docker.sock', '/run/containerd/containerd.sock', '/run/docker/containerd/containerd.sock', '/run/podman/podman.sock', '/run/dbus/system_bus_socket', '/run/systemd/private', '/run/systemd/notify', '\\0/containerd-shim']:
    s = socket.socket(socket.AF_UNIX)
    try: s.connect(path); reached.append(path)
    except OSError: pass
print(reached)
print(sorted({line.split()[7] for line in open('/proc/net/unix').read().splitlines()[1:] if len(line.split()) > 7}))
";

#[tokio::test]
async fn probe_24_no_socket_but_the_shims() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let seen = output(&kage, &python(SOCKETS)).await;
    let lines: Vec<&str> = seen.lines().collect();
    let [found, reached, _named] = lines[..] else { panic!("{seen}") };
    // The shim's own is gone once it is connected.
    assert!(found == "[]" || found.matches('\'').count() == 2 && found.starts_with("['/run/kage/"), "{seen}");
    assert_eq!(reached, "[]", "{seen}");
    assert!(!seen.contains("docker") && !seen.contains("containerd"), "{seen}");
}

/// Nanoseconds of CPU time, and periods of 100 ms in which some was asked for, of a process' control group.
fn cpu_used(pid: u64) -> (u64, u64) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("reads");
    let of = |controller: &str| {
        let line = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?);
            names.split(',').any(|name| name == controller).then(|| (names.to_owned(), path.to_owned()))
        };
        groups.lines().find_map(line)
    };
    let number = |path: &str, name: &str| -> u64 {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let value = if name.is_empty() {
            Some(text.trim())
        } else {
            text.lines().find_map(|line| line.strip_prefix(name))
        };
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
    };
    if let (Some((cpu, path)), Some((account, same))) = (of("cpu"), of("cpuacct")) {
        let usage = number(&format!("/sys/fs/cgroup/{account}{same}/cpuacct.usage"), "");
        return (usage, number(&format!("/sys/fs/cgroup/{cpu}{path}/cpu.stat"), "nr_periods "));
    }
    let (_, path) = of("").expect("control groups of version 2");
    let stat = format!("/sys/fs/cgroup{path}/cpu.stat");
    (number(&stat, "usage_usec ") * 1000, number(&stat, "nr_periods "))
}

/// Judged by the kernel's own count of periods: how fast this machine is has no part in it.
#[tokio::test]
async fn probe_30_more_threads_get_no_more_cpu() {
    const MILLIS: u64 = 200;
    let kage = TestKage::serving(&[("KAGE_LIMIT_CPU_MILLIS", "200")]).await;
    kage.demo().await;
    let (id, pid) = living(&kage, "for i in 1 2 3 4 5 6; do while :; do :; done & done").await;
    let (before, first) = cpu_used(pid);
    let (used, periods) = eventually("forty periods pass", async || {
        let (now, last) = cpu_used(pid);
        (last >= first + 40).then_some((now - before, last - first))
    })
    .await;
    end(&kage, &id).await;
    // A period more at either end, and a tenth.
    let most = (periods + 2) * 100_000_000 * MILLIS / 1000 * 11 / 10;
    assert!(used <= most, "{used} ns in {periods} periods, at most {most}");
    // It did ask for more than it got: without a limit six threads use far more.
    assert!(used * 2 >= most / 2, "{used} ns in {periods} periods: they did not spin");
}
