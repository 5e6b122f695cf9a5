//! Parse, run the command, exit code.

use std::process::ExitCode;

use clap::Parser;
use kage::cli::exit::Exit;
use kage::cli::{Cli, execute};

fn main() -> ExitCode {
    // Before there are threads; where it cannot be, memory is kept as the C library keeps it.
    kage_heap::bound();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kage: cannot start: {error}");
            return Exit::Unavailable.into();
        }
    };
    let done = runtime.block_on(execute(cli));
    // After a second signal threads may still be at work for minutes; all that they do may be cut off.
    runtime.shutdown_background();
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            error.report();
            error.exit().into()
        }
    }
}
