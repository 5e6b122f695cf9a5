//! The second way to end a container: its processes, on the host, without the engine.
//!
//! A hostile container can make the engine's own calls hang. The kernel still knows which processes
//! are in its control group, and SIGKILL to PID 1 of its namespace ends all of them.

use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Sends SIGKILL to every process of a container, found by its control group.
///
/// Returns how many were signalled. 0 may also mean that the host's processes cannot be seen from
/// here (a runner in a container without `pid: host`).
///
/// # Errors
/// Only if `/proc` cannot be read.
pub fn kill_all(container_id: &str) -> io::Result<usize> {
    let mut killed = 0;
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if belongs(pid, container_id) && kill(pid, container_id) {
            killed += 1;
        }
    }
    Ok(killed)
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

/// Whether a `/proc/PID/cgroup` file names the container, as a whole part of a path: `/docker/ID` (cgroupfs)
/// or `docker-ID.scope`, `libpod-ID.scope` (systemd).
pub fn names_container(cgroup: &str, container_id: &str) -> bool {
    let is_id = container_id.len() == 64 && container_id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id
        && cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
            path.split('/').any(|part| {
                let part = part.strip_suffix(".scope").unwrap_or(part);
                let part =
                    part.strip_prefix("docker-").or_else(|| part.strip_prefix("libpod-")).unwrap_or(part);
                part == container_id
            })
        })
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
