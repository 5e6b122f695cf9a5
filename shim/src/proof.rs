//! Looks around in the sandbox before the CLI is there. Every finding is made as the CLI would make it: by this
//! process, which has the CLI's user, rights, namespaces and filter.

mod calls;
mod kernel;
mod limits;
mod mounts;
mod network;

use std::collections::BTreeMap;
use std::time::Instant;

use kage_shim::containment::Facts;
use rustix::io::Errno;

/// Where an attempt was left out.
const NOT_TRIED: &str = "not tried";

/// Takes some milliseconds.
pub fn look() -> Facts {
    let began = Instant::now();
    let mut facts = Facts {
        status: kernel::status(),
        pid: std::process::id(),
        namespaces: kernel::namespaces(),
        interfaces: network::interfaces(),
        routes: network::routes(),
        resolvers: network::resolvers(),
        reached: BTreeMap::new(),
        mounts: mounts::mounts(),
        devices: mounts::devices(),
        sockets: mounts::sockets(),
        unmasked: kernel::unmasked(),
        limits: limits::limits(),
        calls: BTreeMap::new(),
        micros: 0,
    };
    // With another interface than the loopback the judgement is clear, and a packet would go out.
    let alone = facts.interfaces == ["lo"] && facts.routes.is_empty();
    facts.reached = network::reached(alone);
    facts.calls = calls::calls(facts.status.get("Seccomp").is_some_and(|mode| mode == "2"));
    facts.micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    facts
}

/// A small text file, or why it cannot be read: a finding too.
fn text(path: &str) -> Result<String, String> {
    use std::io::Read;
    const MOST: u64 = 1 << 20;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| format!("{path}: {error}"))?;
    file.take(MOST).read_to_end(&mut bytes).map_err(|error| format!("{path}: {error}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `ok`, or the error's name.
fn answer<T>(result: Result<T, Errno>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{:?}", nix::errno::Errno::from_raw(error.raw_os_error())),
    }
}
