//! `kage config`.

use crate::cli::exit::{CliError, Exit};
use crate::cli::host;
use crate::cli::output::{self, Globals};

/// Print the settings that are in force, secrets masked
#[derive(Debug, clap::Args)]
pub struct Args {}

/// # Errors
/// The first setting that is wrong.
pub async fn run(_: Args, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = host::load()?;
    let mut in_force = configuration.settings.shown();
    in_force.sort_by_key(|setting| setting.name);
    in_force.dedup_by_key(|setting| setting.name);
    if globals.json {
        output::json(&in_force)?;
    } else {
        for setting in in_force {
            output::line(&crate::cli::escape::line(&format!(
                "{}={}  # {}",
                setting.name, setting.value, setting.origin
            )))?;
        }
    }
    Ok(Exit::Success)
}
