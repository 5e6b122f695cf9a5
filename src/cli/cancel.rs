//! `kage cancel`: end a task.

use uuid::Uuid;

use crate::cli::connect;
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};

/// Cancel a task: its runs are ended, and what they changed so far stays on their branches
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The task's id
    id: Uuid,
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let cancelled = connect::client()?.cancel(args.id).await?;
    if globals.json {
        output::json(&cancelled)?;
    } else {
        output::note(&cancelled.message);
    }
    Ok(Exit::Success)
}
