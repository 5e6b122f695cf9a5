//! `kage-shim`: PID 1 of a sandbox. See the library's documentation for the protocol.

mod args;
mod bridge;
mod cgroup;
mod child;
mod connection;
mod copies;
mod ending;
mod hardening;
mod lane;
mod output;
mod processes;
mod proof;
mod relay;
mod room;
mod run;
mod signals;
mod stdin;
mod supervisor;
mod timespec;

use std::io::Write;
use std::process::ExitCode;

/// Status when the shim itself could not do its work.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    // Before all else: a process of the same user must not read this one's memory or descriptors.
    let status =
        hardening::harden().map_err(|error| format!("cannot harden itself: {error}")).and_then(|()| {
            let args = args::parse(std::env::args_os().skip(1))?;
            supervisor::run(&args)
        });
    match status {
        Ok(code) => ExitCode::from(code),
        Err(reason) => {
            // Nobody may be reading standard error, so a failure to write is no news.
            let _ = writeln!(std::io::stderr(), "kage-shim: {reason}");
            ExitCode::from(FAILED)
        }
    }
}
