//! Parse, run the command, exit code.

use std::process::ExitCode;

use clap::Parser;
use kage::cli::exit::Exit;
use kage::cli::{Cli, execute};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kage: cannot start: {error}");
            return Exit::Unavailable.into();
        }
    };
    match runtime.block_on(execute(cli)) {
        Ok(exit) => exit.into(),
        Err(error) => {
            error.report();
            error.exit().into()
        }
    }
}
