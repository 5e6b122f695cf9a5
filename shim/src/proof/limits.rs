//! The limits in force on this process, and so on all that it starts.

use std::collections::BTreeMap;

use rustix::process::{Resource, getrlimit};

use crate::proof::text;

const RESOURCES: [(&str, Resource); 3] =
    [("core", Resource::Core), ("nofile", Resource::Nofile), ("fsize", Resource::Fsize)];

/// The control group as it sees itself: version 2, then version 1.
const GROUP: [(&str, [&str; 2]); 4] = [
    ("memory", ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]),
    ("swap", ["/sys/fs/cgroup/memory.swap.max", "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"]),
    ("pids", ["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"]),
    ("cpu", ["/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"]),
];

/// `soft:hard` of each resource; of the group, `v2 ` or `v1 ` and what stands there.
pub fn limits() -> BTreeMap<String, String> {
    let number = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let of_process = RESOURCES.into_iter().map(|(name, resource)| {
        let limit = getrlimit(resource);
        (name.to_owned(), format!("{}:{}", number(limit.current), number(limit.maximum)))
    });
    let of_group = GROUP.into_iter().filter_map(|(name, [second, first])| {
        let value = |version: &str, path: &str| Some(format!("{version} {}", text(path).ok()?.trim()));
        Some((name.to_owned(), value("v2", second).or_else(|| value("v1", first))?))
    });
    let period = text("/sys/fs/cgroup/cpu/cpu.cfs_period_us").ok();
    let period = period.map(|period| ("cpu_period".to_owned(), period.trim().to_owned()));
    // Where there is no swap, its limit may be missing.
    let swap = text("/proc/meminfo").ok().and_then(|table| {
        let total = table.lines().find_map(|line| line.strip_prefix("SwapTotal:"))?;
        Some(("host_swap".to_owned(), total.trim().to_owned()))
    });
    of_process.chain(of_group).chain(period).chain(swap).collect()
}
