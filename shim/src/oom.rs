//! How often the kernel ended a process of this sandbox for want of memory.

use std::io::Read;

/// As the container sees its own cgroup: version 2, then version 1.
const SOURCES: [&str; 2] = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];

/// The cgroup's count, or 0 where it cannot be read.
pub fn kills() -> u64 {
    SOURCES.iter().find_map(|path| parse(&read_start(path)?)).unwrap_or(0)
}

fn read_start(path: &str) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Finds the line `oom_kill N`, which both versions of the interface have
/// (kernel: `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`).
fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn version_1_is_understood() {
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
    }

    #[test]
    fn version_2_is_understood() {
        assert_eq!(parse("low 0\nhigh 5\nmax 9\noom 2\noom_kill 1\noom_group_kill 7\n"), Some(1));
    }

    #[test]
    fn anything_else_is_no_count() {
        for text in ["", "oom_kill", "oom_kill x\n", "oom_kill_disable 4\n", "oom_kill -1\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
