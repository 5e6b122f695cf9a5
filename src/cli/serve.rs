//! `kage serve`, `kage api`, `kage runner`, `kage gateway`, `kage sequencer`, `kage notifier`, `kage retention`: the roles as processes.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;
use tokio_util::task::AbortOnDropHandle;

use crate::api;
use crate::cli::exit::{CliError, Exit};
use crate::cli::figures;
use crate::cli::host::{self, Configuration};
use crate::cli::role_trail::RoleTrail;
use crate::cli::schema_watch;
use crate::cli::secrets;
use crate::cli::sequencer_key;
use crate::db;
use crate::db::Zone;
use crate::db::patience::Patience;
use crate::db::private::Cluster;
use crate::db::private_postmaster::Postmaster;
use crate::gateway;
use crate::lifecycle::Lifecycle;
use crate::metrics;
use crate::notifier;
use crate::retention;
use crate::runner;
use crate::sequencer;
use crate::telemetry;

/// For each half of the last words: giving out and sending, and the tries that are under way then.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Run all roles in one process, for a laptop
///
/// All but the keeper of refused calls, which must outlive it: that is a process of its own.
/// Without KAGE_DATABASE_URL it runs a PostgreSQL cluster of its own in the data folder.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {}

/// Run the network-facing role: REST and event streams
#[derive(Debug, clap::Args)]
pub struct ApiArgs {}

/// Run the host-facing role: it claims runs and drives their sandboxes
#[derive(Debug, clap::Args)]
pub struct RunnerArgs {}

/// Run the egress-facing role: it holds the model credentials and serves each run's socket
#[derive(Debug, clap::Args)]
pub struct GatewayArgs {}

/// Run the role that gives audit entries their place in the tamper-evident log, and signs it
#[derive(Debug, clap::Args)]
pub struct SequencerArgs {}

/// Run the role that tells webhooks of security events
#[derive(Debug, clap::Args)]
pub struct NotifierArgs {}

/// Run the role that lets go of output, events and results that are kept too long
#[derive(Debug, clap::Args)]
pub struct RetentionArgs {}

/// Which roles a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roles {
    All,
    Api,
    Runner,
    Gateway,
    Sequencer,
    Notifier,
    Retention,
}

impl Roles {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "serve",
            Self::Api => "api",
            Self::Runner => "runner",
            Self::Gateway => "gateway",
            Self::Sequencer => "sequencer",
            Self::Notifier => "notifier",
            Self::Retention => "retention",
        }
    }

    fn has(self, role: Self) -> bool {
        self == Self::All || self == role
    }
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn serve(_: ServeArgs) -> Result<Exit, CliError> {
    let mut configuration = host::load()?;
    with_telemetry(&mut configuration, Roles::All).await
}

/// In all roles, with a database of its own where none is named.
async fn everything(configuration: &mut Configuration) -> Result<Exit, CliError> {
    let cluster = match configuration.database.url {
        Some(_) => None,
        None => {
            let cluster = Cluster::start(&configuration.runner.data_dir).await;
            let cluster = cluster.context("private database").map_err(CliError::Host)?;
            configuration.database.url = Some(cluster.url());
            Some(cluster)
        }
    };
    let postmaster = cluster.as_ref().and_then(Cluster::postmaster);
    let ended = roles(configuration, Roles::All, postmaster).await;
    if let Some(cluster) = cluster {
        cluster.stop().await.context("private database").map_err(CliError::Host)?;
    }
    ended
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn api(_: ApiArgs) -> Result<Exit, CliError> {
    with_telemetry(&mut host::load()?, Roles::Api).await
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn runner(_: RunnerArgs) -> Result<Exit, CliError> {
    with_telemetry(&mut host::load()?, Roles::Runner).await
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn gateway(_: GatewayArgs) -> Result<Exit, CliError> {
    with_telemetry(&mut host::load()?, Roles::Gateway).await
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn sequencer(_: SequencerArgs) -> Result<Exit, CliError> {
    with_telemetry(&mut host::load()?, Roles::Sequencer).await
}

/// Logs, and spans if they are wanted; the last of these are sent when all else has ended.
async fn with_telemetry(configuration: &mut Configuration, which: Roles) -> Result<Exit, CliError> {
    let exporting = telemetry::start(which.name(), configuration.watch.otlp.as_ref());
    let exporting = exporting.context("traces").map_err(CliError::Host)?;
    let ended = match which {
        Roles::All => everything(configuration).await,
        _ => roles(configuration, which, None).await,
    };
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    ended
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn notifier(_: NotifierArgs) -> Result<Exit, CliError> {
    with_telemetry(&mut host::load()?, Roles::Notifier).await
}

/// # Errors
/// [`CliError::Host`] says what keeps it from starting.
pub async fn retention(_: RetentionArgs) -> Result<Exit, CliError> {
    with_telemetry(&mut host::load()?, Roles::Retention).await
}

/// `postmaster`: of a cluster of our own, without which none of them is of use.
async fn roles(
    configuration: &mut Configuration,
    roles: Roles,
    postmaster: Option<Postmaster>,
) -> Result<Exit, CliError> {
    keep_memory_private().context("core dumps").map_err(CliError::Host)?;
    let lifecycle = Lifecycle::new();
    lifecycle.watch_signals().context("signals").map_err(CliError::Host)?;
    let postmaster = postmaster.map(|postmaster| end_with(postmaster, &lifecycle));
    let mut trail = RoleTrail::of(configuration);
    let started = start(configuration, roles, &mut trail, &lifecycle);
    let started = tokio::select! {
        started = started => started.map_err(CliError::Host),
        // Asked to end, or one that had started already could not go on: the tasks know which.
        () = lifecycle.soft().cancelled() => {
            lifecycle.stop();
            Ok(())
        }
    };
    if started.is_err() {
        lifecycle.stop();
    }
    let good = lifecycle.wait().await && started.is_ok();
    if postmaster.is_some_and(|watch| watch.is_finished()) {
        // There is nobody to write last words to, and who ends the cluster says why.
        return Ok(Exit::Failed);
    }
    trail.end(!good).await;
    if !good && roles == Roles::All {
        last_words(configuration).await;
    }
    started?;
    Ok(if good { Exit::Success } else { Exit::Failed })
}

/// Ends everything when that process does, also while it drains.
fn end_with(postmaster: Postmaster, lifecycle: &Lifecycle) -> AbortOnDropHandle<()> {
    let this = lifecycle.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        postmaster.ended().await;
        tracing::error!(pid = postmaster.pid(), "cluster.gone: the private PostgreSQL server has ended");
        this.fail();
    }))
}

/// Of a process that has all roles and could not go on: why it could not is what its receivers must hear first.
async fn last_words(configuration: &Configuration) {
    if configuration.webhooks.hooks.is_empty() {
        return;
    }
    let lifecycle = Lifecycle::new();
    let Ok(pool) = db::connect(&configuration.database, Zone::Notifier).await else { return };
    if let Err(error) = notifier::start(pool, &configuration.webhooks, &lifecycle) {
        tracing::error!(%error, "notifier.no_last_words");
        return;
    }
    tokio::time::sleep(LAST_WORDS).await;
    lifecycle.drain();
    if tokio::time::timeout(LAST_WORDS, lifecycle.wait()).await.is_err() {
        lifecycle.stop();
    }
}

/// No core file of a role, and no look into its memory by another process of its user: there are secrets in it.
pub(super) fn keep_memory_private() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

async fn start(
    configuration: &mut Configuration,
    roles: Roles,
    trail: &mut RoleTrail,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    let database = &configuration.database;
    let mut pools = Vec::new();
    if let Some(address) = configuration.watch.metrics {
        let listening = metrics::listener::start(address, roles.name(), lifecycle).await;
        listening.with_context(|| format!("KAGE_METRICS_LISTEN {address}"))?;
    }
    let patience = Patience(Duration::from_secs(database.start_secs));
    db::prepare(database, patience.0).await.context("database")?;
    // First: what the others record is to have its place from the beginning on.
    if roles.has(Roles::Sequencer) {
        let pool = db::connect(database, Zone::Sequencer).await?;
        trail.begin("sequencer", &pool).await?;
        pools.push((Zone::Sequencer, pool.clone()));
        let mut config = configuration.sequencer.clone();
        if config.key.is_none() {
            config.key = Some(sequencer_key::of(&configuration.runner.data_dir).context("sequencer")?);
        }
        sequencer::start(pool, &config, patience, lifecycle).await.context("sequencer")?;
    }
    if roles.has(Roles::Api) {
        let listener = api::bind(&configuration.api).await;
        let listener = listener.with_context(|| format!("KAGE_API_LISTEN {}", configuration.api.listen))?;
        let pool = db::connect(database, Zone::Api).await?;
        trail.begin("api", &pool).await?;
        pools.push((Zone::Api, pool.clone()));
        let (config, this) = (configuration.api.clone(), lifecycle.clone());
        lifecycle.spawn_essential("api", async move {
            if let Err(error) = api::serve(listener, pool, config, &this).await {
                tracing::error!(%error, "api.broke");
            }
        });
    }
    if roles.has(Roles::Gateway) {
        let pool = db::connect(database, Zone::Gateway).await?;
        trail.begin("gateway", &pool).await?;
        pools.push((Zone::Gateway, pool.clone()));
        // Beside the runner it lives as long as the runner's runs; alone, its own time to drain is all.
        let beside = roles.has(Roles::Runner);
        gateway::start(pool, configuration.gateway.clone(), lifecycle, beside).context("gateway")?;
        if !beside {
            drain_deadline(configuration.gateway.drain, lifecycle);
        }
        tracing::info!(providers = configuration.gateway.providers.providers.len(), "gateway.started");
    }
    if roles.has(Roles::Runner) {
        let pool = db::connect(database, Zone::Runner).await?;
        trail.begin("runner", &pool).await?;
        pools.push((Zone::Runner, pool.clone()));
        let config = configuration.runner.clone();
        runner::start(pool, config, patience, lifecycle).await.context("runner")?;
        drain_deadline(Duration::from_secs(configuration.runner.drain_secs), lifecycle);
        tracing::info!(concurrency = configuration.runner.concurrency, "runner.started");
    }
    start_aside(configuration, roles, trail, lifecycle, &mut pools).await?;
    if configuration.watch.metrics.is_some() {
        figures::keep_current(pools.clone(), lifecycle);
    }
    let pools: Vec<_> = pools.into_iter().map(|(_, pool)| pool).collect();
    if let Some(pool) = pools.first() {
        schema_watch::follow(pool.clone(), lifecycle);
    }
    secrets::keep_current(configuration, pools, roles.name(), lifecycle)?;
    Ok(())
}

/// Those that no task waits for.
async fn start_aside(
    configuration: &Configuration,
    roles: Roles,
    trail: &mut RoleTrail,
    lifecycle: &Lifecycle,
    pools: &mut Vec<(Zone, PgPool)>,
) -> anyhow::Result<()> {
    let database = &configuration.database;
    // Without receivers `kage serve` does not need it; alone it waits for a file with some in it.
    if roles == Roles::Notifier || roles == Roles::All && !configuration.webhooks.hooks.is_empty() {
        let pool = db::connect(database, Zone::Notifier).await?;
        trail.begin("notifier", &pool).await?;
        pools.push((Zone::Notifier, pool.clone()));
        if configuration.webhooks.hooks.is_empty() {
            tracing::warn!("notifier.idle: KAGE_WEBHOOKS_FILE names nobody who is to be told");
        }
        notifier::start(pool, &configuration.webhooks, lifecycle).context("notifier")?;
        tracing::info!(hooks = configuration.webhooks.hooks.len(), "notifier.started");
    }
    if roles.has(Roles::Retention) {
        let pool = db::connect(database, Zone::Retention).await?;
        trail.begin("retention", &pool).await?;
        pools.push((Zone::Retention, pool.clone()));
        retention::start(pool, configuration.retention.clone(), lifecycle);
        tracing::info!("retention.started");
    }
    Ok(())
}

/// Work goes on after the first signal, but not for ever: what is left then is taken up at the next start.
fn drain_deadline(limit: Duration, lifecycle: &Lifecycle) {
    let this = lifecycle.clone();
    tokio::spawn(async move {
        this.soft().cancelled().await;
        tokio::time::sleep(limit).await;
        this.stop();
    });
}
