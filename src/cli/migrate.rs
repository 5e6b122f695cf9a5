//! `kage migrate`.

use anyhow::Context as _;

use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::db;
use crate::db::Zone;

/// Bring the database's schema up to date
#[derive(Debug, clap::Args)]
pub struct Args {}

/// # Errors
/// [`CliError::Host`] names the migration that failed.
pub async fn run(_: Args) -> Result<Exit, CliError> {
    crate::telemetry::init();
    let configuration = Configuration::load_with_database()?;
    let migrated = async {
        let pool = db::connect(&configuration.database, Zone::Owner).await?;
        db::migrate(&pool).await
    };
    migrated.await.context("database").map_err(CliError::Host)?;
    tracing::info!("migrate.done");
    Ok(Exit::Success)
}
