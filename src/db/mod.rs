//! Postgres: the only place where roles meet. One file a table; every statement of the project is here.
//!
//! Functions take a connection, so that an act and its audit entry share a transaction.
//! "Not found" is `Ok(None)`. **Lock order: the task's row, then its runs' rows**, so that
//! a client's cancel and a runner's write can't wait for each other.

pub mod after_restore;
pub mod attempt_ends;
pub mod attempts;
pub mod audit;
pub mod budgets;
pub mod call_content;
mod connection;
pub mod containment;
pub mod cut;
pub mod deadline;
pub mod error;
pub mod events;
pub mod figures;
pub mod grants;
pub mod images;
pub mod keys;
pub mod let_go;
pub mod model_calls;
pub mod model_use;
pub mod notify;
pub mod patience;
pub mod private;
mod private_leftovers;
mod private_log;
pub mod private_postmaster;
pub mod quarantine;
pub mod queue;
pub mod queue_length;
pub mod quotas;
pub mod redactions;
pub mod refused_calls;
pub mod reload;
pub mod reloads;
pub mod repositories;
pub mod restoring;
pub mod results;
pub mod retention;
mod rights;
pub mod role_starts;
mod run_events;
mod run_parts;
pub mod runners;
pub mod runs;
pub mod sandboxes;
pub mod schema;
pub mod security_events;
pub mod sessions;
pub mod sign_ins;
mod stale_plans;
pub mod starts;
pub mod task_reads;
pub mod task_stats;
pub mod task_view;
pub mod tasks;
pub mod trail;
pub mod trail_export;
pub mod trail_tiles;
pub mod visible;
pub mod webhook_deliveries;

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool};

use crate::config::database::DatabaseConfig;
use crate::db::error::DbError;
use crate::db::schema::Schema;

/// Whose rights a pool has in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// Owns the schema: `kage migrate`, `kage key`, `kage restore`.
    Owner,
    Api,
    Runner,
    Gateway,
    Sequencer,
    Notifier,
    Retention,
    /// `kage backup`: reads what is backed up.
    Backup,
}

impl Zone {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Api => "api",
            Self::Runner => "runner",
            Self::Gateway => "gateway",
            Self::Sequencer => "sequencer",
            Self::Notifier => "notifier",
            Self::Retention => "retention",
            Self::Backup => "backup",
        }
    }

    const fn set_role(self) -> Option<&'static str> {
        match self {
            Self::Owner => None,
            Self::Api => Some("SET ROLE kage_api"),
            Self::Runner => Some("SET ROLE kage_runner"),
            Self::Gateway => Some("SET ROLE kage_gateway"),
            Self::Sequencer => Some("SET ROLE kage_sequencer"),
            Self::Notifier => Some("SET ROLE kage_notifier"),
            Self::Retention => Some("SET ROLE kage_retention"),
            Self::Backup => Some("SET ROLE kage_backup"),
        }
    }
}

/// Opens a pool that acts with a zone's rights, whoever it logs in as.
///
/// # Errors
/// [`DbError::Unavailable`] if no connection can be made within `acquire_secs`.
pub async fn connect(config: &DatabaseConfig, zone: Zone) -> Result<PgPool, DbError> {
    let options: PgConnectOptions = config.connect_options()?.application_name("kage");
    let pool = connection::pool(zone)
        .max_connections(config.connections)
        .acquire_timeout(Duration::from_secs(config.acquire_secs))
        .connect_lazy_with(options);
    Ok(pool)
}

/// Has new connections of a pool log in with what the configuration says now.
///
/// # Errors
/// [`DbError`] if it says nothing that can be used.
pub fn renew(pool: &PgPool, config: &DatabaseConfig) -> Result<(), DbError> {
    pool.set_connect_options(config.connect_options()?.application_name("kage"));
    Ok(())
}

/// Brings the schema up to date, however many try at once. Waits for transactions that use its tables, and lets others pass.
///
/// # Errors
/// [`DbError::Migrate`] names the migration that failed; [`DbError::SchemaNewer`] and the like say why none was tried.
pub async fn migrate(pool: &PgPool) -> Result<(), DbError> {
    schema::migrate(pool).await
}

/// Migrates if this user may, else waits until somebody has.
///
/// # Errors
/// [`DbError::SchemaMissing`] or [`DbError::SchemaOlder`] if nobody has migrated within `patience`; at once, where migrating would not help.
pub async fn prepare(config: &DatabaseConfig, patience: Duration) -> Result<(), DbError> {
    let pool = connect(config, Zone::Owner).await?;
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let in_time = tokio::time::Instant::now() < deadline;
        match prepare_once(&pool).await {
            Ok(Schema::Current) => break,
            Ok(behind) => match behind.obstacle().or_else(|| behind.refusal().filter(|_| !in_time)) {
                Some(refusal) => return Err(refusal),
                None => tracing::info!("db.schema_missing: waiting for `kage migrate`"),
            },
            Err(DbError::Unavailable(error)) if in_time => {
                tracing::warn!(%error, "db.unavailable: waiting for the database");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    pool.close().await;
    Ok(())
}

/// The schema as it is then.
async fn prepare_once(pool: &PgPool) -> Result<Schema, DbError> {
    let found = schema::state(pool).await?;
    if found == Schema::Current || found.obstacle().is_some() {
        return Ok(found);
    }
    let may_create: bool =
        sqlx::query_scalar("SELECT has_schema_privilege(current_user, 'public', 'CREATE')")
            .fetch_one(pool)
            .await?;
    if !may_create {
        return Ok(found);
    }
    migrate(pool).await?;
    Ok(Schema::Current)
}
