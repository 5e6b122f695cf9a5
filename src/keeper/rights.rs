//! Of root's rights the keeper needs one: to read the address that a waiting call points at (CAP_SYS_PTRACE).

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

const NEEDED: CapabilitySet = CapabilitySet::SYS_PTRACE;

/// Gives up all others, and the way to any. Where it had some, the program begins anew without them: a thread's rights are
/// its own, and other threads are there already. To be called before anything else.
///
/// # Errors
/// The kernel's.
pub fn give_up_all_others() -> io::Result<()> {
    set_no_new_privs(true)?;
    let held = capabilities(None)?;
    if NEEDED.contains(held.permitted) {
        return Ok(());
    }
    // Root has again what is in the bounding set as soon as it executes a program. By number: a newer kernel has more
    // of them than names are known here.
    let mut fewer = false;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if capability != NEEDED && capability_is_in_bounding_set(capability).unwrap_or(false) {
            remove_capability_from_bounding_set(capability)?;
            fewer = true;
        }
    }
    clear_ambient_capability_set()?;
    let kept = held.permitted.intersection(NEEDED);
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    // It would come back as it is, again and again.
    if !fewer {
        return Err(io::Error::other("root's rights come back whenever a program is executed"));
    }
    let mut again = Command::new("/proc/self/exe");
    again.arg0("kage").args(std::env::args_os().skip(1));
    Err(again.exec())
}

/// A listener and a connection for each run are more than what a process may have open at first.
///
/// # Errors
/// The kernel's.
pub fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// Whether the kernel lets it read other users' programs, as far as rights go.
pub fn may_read_addresses() -> bool {
    let held = capabilities(None).is_ok_and(|held| held.effective.contains(NEEDED));
    // A developer's sandboxes are the developer's own; Yama, where there is one, can forbid even that.
    let own = || {
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        !rustix::process::geteuid().is_root() && scope.map_or(true, |scope| scope.trim() == "0")
    };
    held || own()
}
