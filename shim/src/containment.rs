//! What the shim sees of its sandbox before anybody hostile is there, for the runner to judge.
//!
//! The shim judges nothing: it says what it found, and "cannot be read" is a finding like any other. What was asked
//! for, and so what is a surprise, only the runner knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Paths of the kernel that tell about the host or have had holes; they read as empty. What is missing is skipped.
/// `/sys/fs/cgroup` stays: runtimes read their memory limit there. `/dev/mqueue` is writable for everybody where an
/// engine mounts it.
pub const MASKED: &[&str] = &[
    "/dev/mqueue",
    "/proc/acpi",
    "/proc/asound",
    "/proc/buddyinfo",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/block",
    "/sys/class",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/fs/ext4",
    "/sys/fs/fuse",
    "/sys/hypervisor",
    "/sys/kernel",
    "/sys/module",
];

/// What a call came to: `ok`, the error's name (`EPERM`), or `not tried`.
pub type Answer = String;

/// The shim's findings. All of it is small: some kilobytes as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Of `/proc/self/status`: the user, the groups, the capability sets, `NoNewPrivs`, `Seccomp`. And who these users
    /// are on the host: `UidMap`, `GidMap`.
    pub status: BTreeMap<String, String>,
    pub pid: u32,
    /// By kind, as the links in `/proc/self/ns` name them: `net:[4026531840]`.
    pub namespaces: BTreeMap<String, String>,
    /// Of `/proc/net/dev`.
    pub interfaces: Vec<String>,
    /// Lines of both routing tables that do not lead to the loopback.
    pub routes: Vec<String>,
    /// Addresses in `/etc/resolv.conf`.
    pub resolvers: Vec<String>,
    /// Attempts to reach somebody, by address.
    pub reached: BTreeMap<String, Answer>,
    pub mounts: Vec<Mount>,
    /// Entries of `/dev` with their types.
    pub devices: BTreeMap<String, String>,
    /// Unix sockets in the kernel's table, and those in the folders that are mounted in.
    pub sockets: Vec<String>,
    /// Of [`MASKED`]: those that tell something.
    pub unmasked: Vec<String>,
    /// By name: `core`, `nofile` and the like as `soft:hard`, and the control group's, as they stand there.
    pub limits: BTreeMap<String, String>,
    /// Calls that must be refused, by name.
    pub calls: BTreeMap<String, Answer>,
    /// What the finding out took, in microseconds.
    pub micros: u64,
}

/// A line of `/proc/self/mountinfo`, without what it says of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    pub at: String,
    /// The file system's type.
    pub kind: String,
    /// The mount's own options: `ro`, `nosuid`, …
    pub options: Vec<String>,
    /// `size=…` and `nr_inodes=…` of a tmpfs.
    pub size: Vec<String>,
    /// Whether this process may write there.
    pub writable: bool,
}
