//! `kage serve`, `kage api`, `kage runner`: the roles as processes.

use std::time::Duration;

use anyhow::Context as _;

use crate::api;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::{self, Configuration};
use crate::db;
use crate::db::Zone;
use crate::db::private::Cluster;
use crate::lifecycle::Lifecycle;
use crate::runner;

/// How long a role waits for a database that is not there yet.
const DATABASE_WITHIN: Duration = Duration::from_secs(120);

/// Run all roles in one process, for a laptop
///
/// Without KAGE_DATABASE_URL it runs a PostgreSQL cluster of its own in the data folder.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {}

/// Run the network-facing role: REST and event streams
#[derive(Debug, clap::Args)]
pub struct ApiArgs {}

/// Run the host-facing role: it claims runs and drives their sandboxes
#[derive(Debug, clap::Args)]
pub struct RunnerArgs {}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn serve(_: ServeArgs) -> Result<Exit, CliError> {
    crate::telemetry::init();
    let mut configuration = host::load()?;
    let cluster = match configuration.database.url {
        Some(_) => None,
        None => {
            let cluster = Cluster::start(&configuration.runner.data_dir).await;
            let cluster = cluster.context("private database").map_err(CliError::Host)?;
            configuration.database.url = Some(cluster.url());
            Some(cluster)
        }
    };
    let ended = roles(&configuration, true, true).await;
    if let Some(cluster) = cluster {
        cluster.stop().await.context("private database").map_err(CliError::Host)?;
    }
    ended
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn api(_: ApiArgs) -> Result<Exit, CliError> {
    crate::telemetry::init();
    roles(&host::load()?, true, false).await
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn runner(_: RunnerArgs) -> Result<Exit, CliError> {
    crate::telemetry::init();
    roles(&host::load()?, false, true).await
}

async fn roles(configuration: &Configuration, with_api: bool, with_runner: bool) -> Result<Exit, CliError> {
    let lifecycle = Lifecycle::new();
    lifecycle.watch_signals().context("signals").map_err(CliError::Host)?;
    let started = start(configuration, with_api, with_runner, &lifecycle);
    let started = tokio::select! {
        started = started => started.map_err(CliError::Host),
        () = lifecycle.soft().cancelled() => return Ok(Exit::Success),
    };
    if let Err(error) = started {
        lifecycle.stop();
        lifecycle.wait().await;
        return Err(error);
    }
    Ok(if lifecycle.wait().await { Exit::Success } else { Exit::Failed })
}

async fn start(
    configuration: &Configuration,
    with_api: bool,
    with_runner: bool,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    let database = &configuration.database;
    db::prepare(database, DATABASE_WITHIN).await.context("database")?;
    if with_api {
        let listener = api::bind(&configuration.api).await;
        let listener = listener.with_context(|| format!("KAGE_API_LISTEN {}", configuration.api.listen))?;
        let pool = db::connect(database, Zone::Api).await?;
        let (config, this) = (configuration.api.clone(), lifecycle.clone());
        lifecycle.spawn_essential("api", async move {
            if let Err(error) = api::serve(listener, pool, config, &this).await {
                tracing::error!(%error, "api.broke");
            }
        });
    }
    if with_runner {
        let pool = db::connect(database, Zone::Runner).await?;
        runner::start(pool, configuration.runner.clone(), lifecycle).await.context("runner")?;
        drain_deadline(configuration, lifecycle);
        tracing::info!(concurrency = configuration.runner.concurrency, "runner.started");
    }
    Ok(())
}

/// Runs go on after the first signal, but not for ever: what is left then is taken up at the next start.
fn drain_deadline(configuration: &Configuration, lifecycle: &Lifecycle) {
    let (limit, this) = (Duration::from_secs(configuration.runner.drain_secs), lifecycle.clone());
    tokio::spawn(async move {
        this.soft().cancelled().await;
        tokio::time::sleep(limit).await;
        this.stop();
    });
}
