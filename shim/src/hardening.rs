//! What the shim does to itself before it meets anybody.

use std::io;
use std::os::fd::RawFd;

use rustix::process::{DumpableBehavior, Resource, getpid, getrlimit};

/// Descriptors above this are not looked for when `/proc` cannot be listed.
const MAX_BLIND_CLOSE: u64 = 65_536;

/// Makes this process unreadable to others of its user, drops inherited descriptors,
/// and makes it the reaper of all its descendants.
///
/// # Errors
/// When the kernel refuses; the shim must then not go on.
pub fn harden() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    close_inherited();
    if !getpid().is_init() {
        rustix::process::set_child_subreaper(Some(getpid()))?;
    }
    // Refused when this is a session's leader already: then there is nothing to do.
    let _ = rustix::process::setsid();
    Ok(())
}

fn close_inherited() {
    // Collected first: the listing has a descriptor of its own, closed by then.
    let listed: Option<Vec<RawFd>> = std::fs::read_dir("/proc/self/fd").ok().map(|entries| {
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    });
    let descriptors = listed.unwrap_or_else(|| {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(MAX_BLIND_CLOSE).min(MAX_BLIND_CLOSE);
        (0..RawFd::try_from(limit).unwrap_or(RawFd::MAX)).collect()
    });
    for descriptor in descriptors.into_iter().filter(|&descriptor| descriptor > 2) {
        // EBADF: the listing's own, or a number that was not open.
        let _ = nix::unistd::close(descriptor);
    }
}
