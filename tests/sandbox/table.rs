//! The table "attack, Docker's default, ours" of docs/security.md: every attack is made in a plain `docker run` as
//! root, in one as the sandbox's user, and in a sandbox. Nothing in the table is written by hand but the attacks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use base64::Engine as _;
use kage::disk::image::{Images, release};

use crate::generated::{Place, generated};
use crate::support::{UID, Walls, World, probe};

/// What is tried, and a script that succeeds where it succeeds. `$P` is the probe; `got NAME` asks for a call that it
/// tried, `socket NAME` for a socket that it opened.
struct Attack {
    /// Of the list of probes in docs/security.md.
    probe: u32,
    what: &'static str,
    script: &'static str,
}

const fn attack(probe: u32, what: &'static str, script: &'static str) -> Attack {
    Attack { probe, what, script }
}

const ATTACKS: &[Attack] = &[
    attack(2, "trace another program (`ptrace`)", "got ptrace"),
    attack(2, "read another program's memory (`process_vm_readv`)", "got process_vm_readv"),
    attack(
        2,
        "move pages between files without a copy (`splice`, `vmsplice`: Dirty Pipe)",
        "got splice && got vmsplice",
    ),
    attack(2, "name files by handle (`name_to_handle_at`)", "got name_to_handle_at"),
    attack(2, "queue work for the kernel (`io_uring_setup`)", "got io_uring_setup"),
    attack(2, "change the processor's tables (`modify_ldt`)", "got modify_ldt"),
    attack(2, "load a BPF program (`bpf`)", "got bpf"),
    attack(2, "use kernel keyrings (`keyctl`, `add_key`)", "got keyctl && got add_key"),
    attack(2, "make shared memory that outlives its process (`shmget`)", "got shmget"),
    attack(2, "mount (`mount`, `fsopen`)", "got mount || got fsopen"),
    attack(2, "change the root (`chroot`)", "perl -e 'chroot(\"/tmp\") or exit 1'"),
    attack(3, "make a user namespace (`clone`, `unshare`)", "got clone_newuser || got unshare"),
    attack(4, "open a raw or packet socket", "socket socket_2_3_1 || socket socket_17_3_0"),
    attack(
        6,
        "speak with the firewall, audit and others over netlink",
        "socket netlink_12 || socket netlink_16 || socket netlink_9",
    ),
    attack(6, "open an ICMP or MPTCP socket", "socket socket_2_2_1 || socket socket_2_1_262"),
    attack(8, "type into a terminal (`TIOCSTI`)", "got ioctl_tiocsti"),
    attack(9, "make a set-user-ID program", "got chmod_setuid"),
    attack(10, "call through the 32-bit entry", "$P architecture | grep -q '^int80 0'"),
    attack(11, "make a device node", "mknod /tmp/disk b 7 0"),
    attack(11, "make an overlay's whiteout", "got mknod_whiteout"),
    attack(13, "have a capability", "grep -qE '^Cap(Eff|Prm|Bnd):\\s0*[1-9a-f]' /proc/self/status"),
    attack(13, "be root", "test $(id -u) = 0"),
    attack(
        13,
        "gain rights by a program (no `no_new_privs`)",
        "grep -qE '^NoNewPrivs:\\s0' /proc/self/status",
    ),
    attack(19, "write to the image's files", "touch /usr/x || touch /etc/x || touch /var/x"),
    attack(19, "have a place in memory without a limit (`/dev/shm`)", "touch /dev/shm/x"),
    attack(21, "read the kernel's symbols", "test -n \"$(head -c 1 /proc/kallsyms)\""),
    attack(
        21,
        "read the host's command line and disks",
        "test -n \"$(head -c 1 /proc/cmdline)\" && test -n \"$(ls /sys/block /sys/class/block)\"",
    ),
    attack(
        21,
        "read the host's interrupts and keys",
        "test -n \"$(head -c 1 /proc/interrupts)\" && test -r /proc/key-users",
    ),
    attack(
        21,
        "write the kernel's settings",
        "(echo core >/proc/sys/kernel/core_pattern) || (echo h >/proc/sysrq-trigger)",
    ),
    attack(
        21,
        "write control groups (`release_agent`, `cgroup.procs`)",
        "for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do test -e $f && (echo 0 >$f) && exit 0; done; false",
    ),
    attack(
        22,
        "reach the host's files through /proc",
        "for p in /proc/[0-9]*; do test -e $p/root/var/lib/docker && exit 0; done; false",
    ),
    attack(22, "learn paths of the host (`mountinfo`)", "grep -q docker /proc/self/mountinfo"),
    attack(
        22,
        "learn its own container's id",
        "grep -qE '[0-9a-f]{64}' /proc/self/cgroup /etc/hostname || hostname | grep -qE '^[0-9a-f]{12}$'",
    ),
    attack(
        24,
        "find a socket of the engine or another's",
        "test -n \"$(find / -xdev -type s)\" || test -S /var/run/docker.sock",
    ),
    attack(
        27,
        "run 150 processes at once",
        "perl -e 'for (1..150) { my $p = fork; exit 1 unless defined $p; if (!$p) { sleep 20; exit } push @p, $p } kill 9, @p'",
    ),
    attack(28, "use 300 MB of memory", "perl -e '$x = \"a\" x (300 << 20)'"),
    attack(31, "write 64 MB to /tmp", "head -c 64M /dev/zero >/tmp/big"),
    attack(
        31,
        "make 5000 files in /tmp",
        "mkdir /tmp/many && perl -e 'for (1..5000) { open(F, \">\", \"/tmp/many/$_\") or exit 1 }'",
    ),
    attack(
        31,
        "write 128 MB to the worktree",
        "head -c 128M /dev/zero >/workspace/big; s=$?; rm -f /workspace/big; test $s = 0",
    ),
    attack(
        31,
        "make 5000 files in the worktree",
        "mkdir /workspace/many && perl -e 'for (1..5000) { open(F, \">\", \"/workspace/many/$_\") or exit 1 }'; s=$?; rm -rf /workspace/many; test $s = 0",
    ),
    attack(
        31,
        "make a file of 3 GB, with or without content",
        "truncate -s 3G /workspace/sparse; s=$?; rm -f /workspace/sparse; test $s = 0",
    ),
    attack(
        31,
        "hold 5000 files open in a process",
        "perl -e 'for (1..5000) { open($f[$_], \"<\", \"/dev/null\") or exit 1 }'",
    ),
    attack(32, "leave a core file", "test \"$(ulimit -Hc)\" != 0"),
    attack(38, "see other containers on a network", "grep -q eth0 /proc/net/dev"),
    attack(41, "send to the metadata address", "$P leaves 169.254.169.254 | grep -q ' 0$'"),
    attack(41, "send to the Internet", "$P leaves 1.1.1.1 | grep -q ' 0$'"),
    attack(41, "send to the host (docker0)", "$P leaves 172.17.0.1 | grep -q ' 0$'"),
    attack(
        41,
        "learn which resolver the host uses",
        "grep -E '^nameserver' /etc/resolv.conf | grep -qv '127\\.0\\.0\\.1$'",
    ),
];

fn script() -> String {
    let probe = base64::engine::general_purpose::STANDARD.encode(fs::read(probe()).expect("reads"));
    let mut text = format!(
        "exec 4>&1 1>/dev/null 2>&1\ncd /tmp; mkdir d; cd d\nP=/workspace/probe\nbase64 -d >$P <<'END'\n{probe}\nEND\nchmod 755 $P\n\
         $P calls >../calls; $P sockets >../sockets\n\
         got() {{ grep -qE \"^$1 \" /tmp/calls && ! grep -qE \"^$1 (1|38)$\" /tmp/calls; }}\n\
         socket() {{ grep -q \"^$1 \" /tmp/sockets; }}\n"
    );
    for (index, attack) in ATTACKS.iter().enumerate() {
        text += &format!("if ( {} ); then echo {index} 1 >&4; else echo {index} 0 >&4; fi\n", attack.script);
    }
    text + "rm -rf /tmp/big /tmp/many; exit 0\n"
}

fn outcomes(text: &str) -> BTreeMap<usize, bool> {
    let line = |line: &str| {
        let (index, works) = line.split_once(' ')?;
        Some((index.parse().ok()?, works == "1"))
    };
    let outcomes: BTreeMap<usize, bool> = text.lines().filter_map(line).collect();
    assert_eq!(outcomes.len(), ATTACKS.len(), "{text}");
    outcomes
}

/// A worktree's own file system, as the runner gives one to each run; it is taken off at the end.
struct Room(PathBuf);

impl Drop for Room {
    fn drop(&mut self) {
        release(&self.0).expect("it is ours");
    }
}

/// What a script wrote that ran in a sandbox with a worktree of 64 MB and 3000 files.
async fn in_a_sandbox(world: &World, script: &str) -> String {
    let mut spec = world.spec(&format!("exec >/workspace/out 2>/workspace/err\n{script}"));
    let images = Images::open(&world.path("images"), 64 << 20, 3000).expect("a file system of its own");
    let room = Room(images.mount(&world.path("room"), "disk").expect("mounted"));
    spec.workspace = room.0.join("tree");
    fs::create_dir(&spec.workspace).expect("mkdir");
    chown(&spec.workspace, Some(UID), Some(UID)).expect("these tests need to be root");
    let ended = world.run(&spec).await;
    let read = |name: &str| fs::read_to_string(spec.workspace.join(name)).unwrap_or_default();
    assert_eq!(ended.exit_code, 0, "{}\n{}", read("out"), read("err"));
    read("out")
}

/// What a sandbox cannot keep from its processes, and why that is bearable is said beside the table.
const REMAIN: &[&str] = &["learn paths of the host (`mountinfo`)"];

#[tokio::test]
async fn every_attack_fails_here_and_most_work_elsewhere() {
    let world = World::new().await;
    let script = script();
    let root = outcomes(&world.plain_output(Walls::Dockers, &script).await);
    let user = outcomes(&world.plain_output(Walls::DockersUser, &script).await);
    let ours = outcomes(&in_a_sandbox(&world, &script).await);
    let word = |works: bool| if works { "works" } else { "refused" };
    let mut text = "| probe | attack | Docker's default | the same, not as root | ours |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for (index, attack) in ATTACKS.iter().enumerate() {
        let (root, user, ours) = (word(root[&index]), word(user[&index]), word(ours[&index]));
        text += &format!("| {} | {} | {root} | {user} | {ours} |\n", attack.probe, attack.what);
    }
    println!("{text}");
    for (index, attack) in ATTACKS.iter().enumerate() {
        assert!(!ours[&index] || REMAIN.contains(&attack.what), "works in a sandbox: {}", attack.what);
    }
    let shown = root.values().filter(|works| **works).count();
    assert!(shown * 3 >= ATTACKS.len() * 2, "only {shown} of {} work without us", ATTACKS.len());
    generated("attacks", &text, Place::of(&world.engine).await);
}
