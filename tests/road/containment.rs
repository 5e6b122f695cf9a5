//! The probes of docs/security.md that concern the sandbox, as runs through the public API: what the agent finds from
//! inside, and beside it what the host sees of its processes. Numbers are those of the list there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::bench::{Live, Verdict, section_5};
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, docker, engine, eventually};

/// Runs a script to its good end; its standard output.
async fn output(kage: &TestKage, script: &str) -> String {
    let done = kage.run(&shell(&format!("{script}\necho x >done"))).await;
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&done["id"]))).await.text();
    assert_eq!(done["runs"][0]["state"], "succeeded", "{log}\n{done:#}");
    log
}

/// A Python program in a script.
fn python(program: &str) -> String {
    format!("python3 - <<'END_OF_PROGRAM' 2>&1\n{program}\nEND_OF_PROGRAM")
}

/// The same in a container with nothing of ours, on the host's network and with its processes.
fn unguarded(program: &str) -> String {
    let image = std::env::var("KAGE_TEST_IMAGE").expect("./test sets it");
    let label = ["--label", "kage.test=road-containment"];
    let walls =
        ["--privileged", "--network", "host", "--pid", "host", "--user", "0:0", "--entrypoint", "python3"];
    docker(&[&["run", "--rm"][..], &label, &walls, &[&image, "-c", program]].concat())
}

/// A run that lives until the world ends: its task's id, and its first process on the host.
async fn living(kage: &TestKage, script: &str) -> (String, u64) {
    let id =
        string(&kage.submit(&shell(&format!("{script}\necho begun; sleep 1000"))).await["id"]).to_owned();
    kage.says(&id, "shell", "begun").await;
    let containers = kage.containers();
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &containers[0]]);
    (id, pid.trim().parse().expect("a number"))
}

/// Ends what [`living`] began.
async fn end(kage: &TestKage, id: &str) {
    kage.delete(&format!("/api/v1/tasks/{id}")).await;
    kage.ended(id).await;
}

/// Every process in the process namespace of this one.
fn processes(pid: u64) -> Vec<u64> {
    let namespace = |pid: u64| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(pid).expect("these tests are root on the engine's host");
    let all = fs::read_dir("/proc")
        .expect("reads")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|pid: &u64| namespace(*pid).as_ref() == Some(&wanted)).collect()
}

fn status(pid: u64) -> BTreeMap<String, String> {
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

/// Leaves a mark in every place that two sandboxes could share, and looks for the other's.
fn neighbour(own: &str, other: &str) -> String {
    python(&format!(
        "
import os, socket, subprocess, sys, time
own, other = '{own}', '{other}'
for folder in ['/workspace', '/tmp', os.environ['HOME']]:
    open(folder + '/' + own, 'w').write(own)
held = socket.socket(socket.AF_UNIX); held.bind('\\0' + own); held.listen()
port = socket.socket(); port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); port.bind(('127.0.0.1', 4711)); port.listen()
child = subprocess.Popen(['sleep', '900'], env={{'MARK': own}})
print('planted', own, flush=True)
time.sleep(6)
found = []
for top, folders, files in os.walk('/'):
    if top.startswith(('/proc', '/sys')): folders.clear(); continue
    found += [os.path.join(top, name) for name in files if name == other]
for pid in filter(str.isdigit, os.listdir('/proc')):
    for name in ['environ', 'cmdline']:
        try:
            if other.encode() in open('/proc/' + pid + '/' + name, 'rb').read() and int(pid) not in (os.getpid(), os.getppid()): found.append('process ' + pid)
        except OSError: pass
try: socket.socket(socket.AF_UNIX).connect('\\0' + other); found.append('abstract socket')
except OSError: pass
if other in open('/proc/net/unix').read(): found.append('unix')
listeners = [line for line in open('/proc/net/tcp').read().splitlines()[1:] if line.split()[3] == '0A']
if len(listeners) != 1: found.append('listeners ' + str(listeners))
child.kill()
print('found', found, flush=True)
"
    ))
}

#[tokio::test]
async fn probe_38_two_runs_see_nothing_of_each_other() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let first = shell(&format!("{}\necho x >x", neighbour("needle-one", "needle-two")));
    let second = shell(&format!("{}\necho x >x", neighbour("needle-two", "needle-one")));
    let (first, second) = (kage.submit(&first).await, kage.submit(&second).await);
    let ids = [string(&first["id"]), string(&second["id"])];
    kage.says(ids[0], "shell", "planted").await;
    kage.says(ids[1], "shell", "planted").await;
    // Both live now: each looks a few seconds after it has left its mark.
    for (id, own, other) in [(ids[0], "needle-one", "needle-two"), (ids[1], "needle-two", "needle-one")] {
        let done = kage.ended(id).await;
        assert_eq!(done["runs"][0]["state"], "succeeded", "{done:#}");
        let log = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await.text();
        assert_eq!(log, format!("planted {own}\nfound []\n"));
        // What is told of one run has nothing of the other.
        let events = kage.events(id, "").await;
        let told: Vec<&Value> =
            events.iter().map(|event| &event.data).filter(|data| data.get("stream").is_some()).collect();
        assert!(
            !told.is_empty()
                && told.iter().all(|data| !data.to_string().contains(&format!("planted {other}")))
        );
    }
    let overlap: bool =
        sqlx::query_scalar("SELECT (SELECT max(started_at) FROM runs) < (SELECT min(finished_at) FROM runs)")
            .fetch_one(kage.pool())
            .await
            .expect("two runs");
    assert!(overlap, "they did not run at the same time");
}

/// Tries everything that could leave; prints one line for each that is not refused as it must be.
fn network(port: u16) -> String {
    format!(
        "
import socket, errno, os
names = [name for _, name in socket.if_nameindex()] if hasattr(socket, 'if_nameindex') else []
print('interfaces', sorted(line.split(':')[0].strip() for line in open('/proc/net/dev').read().splitlines()[2:]))
print('routes', len(open('/proc/net/route').read().splitlines()[1:]))
gone = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EHOSTUNREACH)
for to in ['1.1.1.1', '8.8.8.8', '169.254.169.254', '172.17.0.1', '10.0.0.1', '192.168.0.1', '255.255.255.255', '224.0.0.1']:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_INET, kind); s.settimeout(2)
        try:
            s.connect((to, {port})); s.send(b'x'); print('sent', to, kind)
        except OSError as error:
            if error.errno not in gone + (errno.EACCES,): print('not unreachable', to, kind, error)
for to in ['2606:4700::1111', 'fe80::1%lo', 'fd00:ec2::254', 'ff02::1%lo']:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            s = socket.socket(socket.AF_INET6, kind); s.settimeout(2)
            s.connect((to.split('%')[0], {port}, 0, 1)); s.send(b'x'); print('sent', to, kind)
        except OSError as error:
            if error.errno not in gone + (errno.EINVAL, errno.EPERM): print('not unreachable', to, kind, error)
for to, family in [('127.0.0.1', socket.AF_INET), ('127.0.0.53', socket.AF_INET), ('::1', socket.AF_INET6)]:
    try:
        s = socket.socket(family); s.settimeout(2); s.connect((to, {port})); s.send(b'x'); print('sent', to)
    except OSError as error:
        if error.errno not in gone + (errno.ECONNREFUSED,): print('not refused', to, error)
for family, kind, protocol in [(socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_INET, socket.SOCK_DGRAM, 1), (17, socket.SOCK_RAW, 0), (40, socket.SOCK_STREAM, 0)]:
    try: socket.socket(family, kind, protocol); print('opened', family, kind)
    except OSError: pass
for name in ['example.com', 'host.docker.internal', 'gateway.docker.internal', 'metadata.google.internal']:
    try: print('resolved', name, socket.getaddrinfo(name, 80))
    except OSError: pass
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_41_nothing_leaves() {
    // A service of the host's on every address: it must never hear of a run.
    let listener = TcpListener::bind("0.0.0.0:0").expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let heard = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut one in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = one.read(&mut [0; 1]);
        }
    });
    let program = network(port);
    let open = unguarded(&program);
    assert!(open.contains("sent 127.0.0.1") && open.contains("opened"), "{open}");
    eventually("the host's service hears it", async || (heard.load(Ordering::SeqCst) > 0).then_some(()))
        .await;
    let before = heard.load(Ordering::SeqCst);

    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let seen = output(&kage, &python(&program)).await;
    assert_eq!(seen, "interfaces ['lo']\nroutes 0\n");
    assert_eq!(heard.load(Ordering::SeqCst), before);
}

/// What the engine says, in its own words.
async fn inspect(id: &str) -> Value {
    let path = engine().trim_start_matches("unix://").to_owned();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().unix_socket(path).build().expect("a client");
    let answer =
        client.get(format!("http://engine/v1.45/containers/{id}/json")).send().await.expect("answers");
    answer.json().await.expect("JSON")
}

#[tokio::test]
async fn probes_39_and_40_a_live_runs_container_is_the_golden_one_and_passes_the_benchmark() {
    let limits = [
        ("KAGE_LIMIT_PIDS", "64"),
        ("KAGE_LIMIT_TMP_BYTES", "8388608"),
        ("KAGE_LIMIT_MEMORY_BYTES", "268435456"),
    ];
    let kage = TestKage::serving(&limits).await;
    kage.demo().await;
    let (id, pid) = living(&kage, "").await;
    let live = inspect(&kage.containers()[0]).await;

    // The snapshot is of a sandbox that a test made; a runner's may differ in nothing but what is named here.
    let snapshot = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/sandbox/snapshots/sandbox__golden__inspect.snap"
    ));
    let snapshot = snapshot.expect("reads");
    let golden: Value =
        serde_json::from_str(snapshot.splitn(3, "---").nth(2).expect("a body")).expect("JSON");
    let host = |value: &Value| {
        let mut fields = value["HostConfig"].as_object().expect("fields").clone();
        let mounts = fields.remove("Mounts").expect("mounts");
        fields.remove("SecurityOpt").expect("options");
        (fields.into_iter().collect::<BTreeMap<_, _>>(), mounts)
    };
    let ((ours, mounts), (expected, golden_mounts)) = (host(&live), host(&golden));
    for (name, value) in &ours {
        assert_eq!(Some(value), expected.get(name), "HostConfig.{name}");
    }
    assert_eq!(ours.len(), expected.len());
    // Without a model there is one mount less; each of the others is bound in the same way.
    let shape = |mounts: &Value| -> BTreeMap<String, String> {
        let all = mounts.as_array().expect("a list").iter();
        let one = |mount: &Value| {
            let mut mount = mount.clone();
            mount.as_object_mut().expect("fields").remove("Source");
            mount.sort_all_objects();
            (string(&mount["Target"]).to_owned(), mount.to_string())
        };
        all.map(one).filter(|(target, _)| target != "/run/model").collect()
    };
    assert_eq!(shape(&mounts), shape(&golden_mounts));
    let options: Vec<&str> =
        live["HostConfig"]["SecurityOpt"].as_array().expect("a list").iter().map(string).collect();
    assert!(
        options.len() == 2 && options[0] == "no-new-privileges:true" && options[1].starts_with("seccomp={")
    );

    let names: Vec<String> =
        processes(pid).into_iter().filter_map(|pid| status(pid).remove("Name")).collect();
    let shares = |kind: &str| {
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).expect("a namespace");
        link(&pid.to_string()) == link("self")
    };
    let info: Value = serde_json::from_str(&docker(&["info", "--format", "{{json .}}"])).expect("JSON");
    let checks =
        section_5(&Live { inspect: &live, info: &info, processes: &names, shares_namespace: &shares });
    let warned: Vec<String> = checks
        .iter()
        .filter(|check| check.verdict == Verdict::Warn)
        .map(|check| format!("{} {}", check.number, check.title))
        .collect();
    assert_eq!(warned, [] as [&str; 0]);
    assert!(names.iter().any(|name| name == "sleep") && checks.len() == 32);
    end(&kage, &id).await;
}
