//! The second way to end a container: its processes, on the host, without the engine.
//!
//! A hostile container can make the engine's own calls hang. The kernel still knows which processes
//! are in its control group, and SIGKILL to PID 1 of its namespace ends all of them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::sandbox::host_cgroup;

/// The inode of the first process namespace, the host's own (kernel: `PROC_PID_INIT_INO`).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// More than one round only if processes are made while others are being ended.
const ROUNDS: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Ends every process of a container, found by its control group: through the group itself where the kernel and our
/// rights allow it, and by a signal to each.
///
/// Returns how many were signalled. 0 may also mean that the host's processes cannot be seen from
/// here (a runner in a container without `pid: host`).
///
/// # Errors
/// Only if `/proc` cannot be read.
pub fn kill_all(container_id: &str) -> io::Result<usize> {
    let members = members(container_id)?;
    let cgroups: BTreeSet<String> = members.iter().map(|(_, cgroup)| cgroup.clone()).collect();
    host_cgroup::kill(&cgroups, container_id);
    let _stopped = host_cgroup::Stopped::new(&cgroups, container_id);
    // Read anew: none is made any more.
    Ok(self::members(container_id)?
        .into_iter()
        .filter(|(pid, _)| kill(*pid, container_id))
        .count()
        .max(members.len()))
}

/// Ends every process of a container, and says whether certainly none is left. Waits up to a second. `false` where the
/// host's processes cannot all be seen from here.
pub fn end(container_id: &str) -> bool {
    let sees_all = fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.as_os_str() == FIRST_NAMESPACE);
    for _ in 0..ROUNDS {
        match kill_all(container_id) {
            Ok(0) => return sees_all,
            Ok(_) => std::thread::sleep(PAUSE),
            Err(_) => return false,
        }
    }
    false
}

/// Process ids with what `/proc/PID/cgroup` says of them. A process that has ended and is not yet reaped is none.
fn members(container_id: &str) -> io::Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup"))
            && names_container(&text, container_id)
            && !is_zombie(pid)
        {
            found.push((pid, text));
        }
    }
    Ok(found)
}

/// The state follows the name, which may itself hold parentheses (`man 5 proc_pid_stat`).
fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// A descriptor first, then the check again: a number that was reused meanwhile is not killed.
fn kill(pid: i32, container_id: &str) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    belongs(pid.as_raw_nonzero().get(), container_id) && pidfd_send_signal(&handle, Signal::KILL).is_ok()
}

fn belongs(pid: i32, container_id: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| names_container(&text, container_id))
}

/// Whether a `/proc/PID/cgroup` file names the container, as a whole part of a path.
pub fn names_container(cgroup: &str, container_id: &str) -> bool {
    let mut paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.any(|path| host_cgroup::of_container(path, container_id).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_container_by_a_whole_part_of_a_path() {
        let id = "0123456789abcdef".repeat(4);
        for yes in [
            format!("0::/docker/{id}\n"),
            format!("12:pids:/\n5:memory:/docker/{id}\n0::/\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/machine.slice/libpod-{id}.scope/container\n"),
        ] {
            assert!(names_container(&yes, &id), "{yes}");
        }
        for no in [
            "0::/\n".to_owned(),
            format!("0::/docker/{id}0\n"),
            format!("0::/docker/x{id}\n"),
            format!("0::/docker/{}\n", &id[..63]),
            format!("{id}\n"),
        ] {
            assert!(!names_container(&no, &id), "{no}");
        }
        assert!(!names_container("0::/\n", ""), "an empty id must not match everything");
        assert!(!names_container("0::/docker/abc\n", "abc"));
    }
}
