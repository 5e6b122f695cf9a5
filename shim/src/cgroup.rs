//! What the kernel has counted in this sandbox's control group: processes ended for want of memory, and processes
//! not made for want of room.

use std::io::Read;

/// As the container sees its own cgroup: version 2, then version 1.
const MEMORY: [&str; 2] = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];
const PIDS: [&str; 2] = ["/sys/fs/cgroup/pids.events", "/sys/fs/cgroup/pids/pids.events"];

/// Since the cgroup was made; 0 where it cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Processes that the kernel ended for want of memory.
    pub oom_kills: u64,
    /// Processes and threads that were not made because of the limit.
    pub refused_forks: u64,
}

impl Counts {
    pub fn now() -> Self {
        Self { oom_kills: count(&MEMORY, "oom_kill "), refused_forks: count(&PIDS, "max ") }
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            oom_kills: self.oom_kills.saturating_sub(before.oom_kills),
            refused_forks: self.refused_forks.saturating_sub(before.refused_forks),
        }
    }
}

fn count(sources: &[&str], key: &str) -> u64 {
    sources.iter().find_map(|path| parse(&read_start(path)?, key)).unwrap_or(0)
}

fn read_start(path: &str) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Finds the line of `key`, which both versions of the interface have
/// (kernel: `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`, `cgroup-v1/pids.rst`).
fn parse(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn both_versions_are_understood() {
        let oom = "oom_kill ";
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", oom), Some(3));
        assert_eq!(parse("low 0\nhigh 5\nmax 9\noom 2\noom_kill 1\noom_group_kill 7\n", oom), Some(1));
        assert_eq!(parse("max 41\n", "max "), Some(41));
    }

    #[test]
    fn anything_else_is_no_count() {
        for text in ["", "oom_kill", "oom_kill x\n", "oom_kill_disable 4\n", "oom_kill -1\n"] {
            assert_eq!(parse(text, "oom_kill "), None, "{text:?}");
        }
    }
}
