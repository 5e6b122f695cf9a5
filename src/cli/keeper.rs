//! `kage keeper`: the process that holds the kernel's listeners.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::cli::exit::{CliError, Exit};
use crate::cli::host;
use crate::cli::serve::keep_memory_private;
use crate::keeper::{self, rights};
use crate::lifecycle::Lifecycle;

/// Run the role that answers and counts refused system calls, and outlives the runner
///
/// `kage serve` and `kage runner` start one of their own, unless KAGE_RUNNER_KEEPER says that a service does it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where its sockets are [default: `refusals` in KAGE_DATA_DIR]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// End when nothing is held and nobody is connected
    #[arg(long)]
    until_idle: bool,
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn run(args: Args) -> Result<Exit, CliError> {
    let confined = rights::give_up_all_others();
    crate::telemetry::init();
    if let Err(error) = confined {
        tracing::warn!(%error, "keeper.has_more_rights_than_it_needs: it could not give them up");
    }
    keep_memory_private().context("core dumps").map_err(CliError::Host)?;
    if args.until_idle {
        // Not ended with the terminal of the one that started it. Refused to a group's first process: that has its own.
        let _ = rustix::process::setsid();
    }
    let folder = match args.folder {
        Some(folder) => folder,
        None => host::load()?.runner.data_dir.join(keeper::FOLDER),
    };
    rights::raise_open_files().context("open files").map_err(CliError::Host)?;
    let lifecycle = Lifecycle::new();
    lifecycle.watch_signals().context("signals").map_err(CliError::Host)?;
    keeper::start(&folder, args.until_idle, &lifecycle).context("keeper").map_err(CliError::Host)?;
    tracing::info!(folder = %folder.display(), reads_addresses = rights::may_read_addresses(), "keeper.started");
    Ok(if lifecycle.wait().await { Exit::Success } else { Exit::Failed })
}
