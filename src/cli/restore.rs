//! `kage restore`: on the host, with nothing else at work.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use crate::backup::restore::{self, Restored, Target, Wish, sha256_of};
use crate::backup::store::Store;
use crate::cli::backup::{Which, failed, settled};
use crate::cli::exit::{CliError, Exit};
use crate::cli::host;
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::db::private::Cluster;

/// Restore a backup into an empty database and an empty data folder (on the server's host; docs/backup.md)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of backups
    dir: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Give runs that had not ended another attempt, as far as their tasks allow one; else they end as `lost`
    #[arg(long)]
    requeue: bool,
}

/// # Errors
/// [`CliError::Host`] says what is wrong and what to do.
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let identities = args.which.identities()?;
    // Before a cluster is made for it.
    let store = Store::to_read(&args.dir).map_err(failed)?;
    let mut configuration = host::load()?;
    let data_dir = configuration.runner.data_dir.clone();
    let mut cluster = None;
    if configuration.database.url.is_none() {
        let started = Cluster::start(&data_dir).await;
        let started = started.context("private database").map_err(CliError::Host)?;
        configuration.database.url = Some(started.url());
        cluster = Some(started);
    }
    configuration.database.connections = 2;
    let restored = async {
        let pool = db::connect(&configuration.database, Zone::Owner)
            .await
            .context("database")
            .map_err(CliError::Host)?;
        let target = Target { pool: &pool, data_dir: &data_dir };
        let wish = Wish { name: args.which.backup.clone(), identities, requeue: args.requeue };
        let restored = restore::restore(&store, &target, wish).await.map_err(failed);
        pool.close().await;
        restored
    };
    let restored = restored.await;
    if let Some(cluster) = cluster {
        cluster.stop().await.context("private database").map_err(CliError::Host)?;
    }
    tell(&restored?, globals)
}

fn tell(restored: &Restored, globals: &Globals) -> Result<Exit, CliError> {
    let backup = &restored.backup;
    for missing in &restored.missing {
        output::note(&format!("kage: was not in the backup: {missing}"));
    }
    if globals.json {
        output::json(&json!({ "backup": backup.name, "manifest_sha256": sha256_of(&backup.name),
            "made_at": backup.manifest.made_at, "rows": restored.rows, "repositories": restored.repositories,
            "runs": settled(restored.settled), "missing": restored.missing }))?;
    } else {
        output::line(&format!("restored {}", backup.name))?;
        output::line(&format!(
            "{} rows and {} repositories; of runs that had not ended, {} are lost and {} are queued",
            restored.rows, restored.repositories, restored.settled.lost, restored.settled.queued,
        ))?;
    }
    output::note(
        "kage: keys that were revoked since the backup are valid again (kage key list); everybody has to sign in anew",
    );
    Ok(Exit::Success)
}
