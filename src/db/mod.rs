//! Postgres: the only place where roles meet. One file a table; every statement of the project is here.
//!
//! Functions take a connection, so that an act and its audit entry share a transaction.
//! "Not found" is `Ok(None)`. **Lock order: the task's row, then its runs' rows**, so that
//! a client's cancel and a runner's write can't wait for each other.

pub mod attempt_ends;
pub mod attempts;
pub mod audit;
pub mod budgets;
pub mod call_content;
pub mod containment;
pub mod error;
pub mod events;
pub mod figures;
pub mod grants;
pub mod images;
pub mod keys;
pub mod model_calls;
pub mod model_use;
pub mod notify;
pub mod private;
pub mod quarantine;
pub mod queue;
pub mod queue_length;
pub mod quotas;
pub mod redactions;
pub mod refused_calls;
pub mod reloads;
pub mod repositories;
pub mod results;
mod rights;
pub mod role_starts;
mod run_events;
mod run_parts;
pub mod runners;
pub mod runs;
pub mod sandboxes;
pub mod security_events;
pub mod sessions;
pub mod sign_ins;
pub mod starts;
pub mod task_stats;
pub mod task_view;
pub mod tasks;
pub mod trail;
pub mod trail_export;
pub mod trail_tiles;
pub mod visible;
pub mod webhook_deliveries;

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::config::database::DatabaseConfig;
use crate::db::error::DbError;

static MIGRATOR: Migrator = sqlx::migrate!();

/// Whose rights a pool has in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// Owns the schema: `kage migrate`, `kage key`.
    Owner,
    Api,
    Runner,
    Gateway,
    Sequencer,
    Notifier,
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
        }
    }
}

/// Opens a pool that acts with a zone's rights, whoever it logs in as.
///
/// # Errors
/// [`DbError::Unavailable`] if no connection can be made within `acquire_secs`.
pub async fn connect(config: &DatabaseConfig, zone: Zone) -> Result<PgPool, DbError> {
    let options: PgConnectOptions = config.connect_options()?.application_name("kage");
    let pool = PgPoolOptions::new()
        .max_connections(config.connections)
        .acquire_timeout(Duration::from_secs(config.acquire_secs))
        .after_connect(move |connection, _| {
            Box::pin(async move {
                if let Some(statement) = zone.set_role() {
                    sqlx::query(statement).execute(connection).await?;
                }
                Ok(())
            })
        })
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

/// Brings the schema up to date. Safe when several start at once: an advisory lock lets one go first.
///
/// # Errors
/// [`DbError::Migrate`] names the migration that failed.
pub async fn migrate(pool: &PgPool) -> Result<(), DbError> {
    MIGRATOR.run(pool).await.map_err(DbError::Migrate)
}

/// Whether the schema is exactly the one that this program knows.
///
/// # Errors
/// [`DbError::Unavailable`] if the database does not answer.
pub async fn schema_is_current(pool: &PgPool) -> Result<bool, DbError> {
    let exists: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(pool).await?;
    if !exists {
        return Ok(false);
    }
    let applied: Vec<i64> =
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version")
            .fetch_all(pool)
            .await?;
    Ok(applied.iter().copied().eq(MIGRATOR.iter().map(|migration| migration.version)))
}

/// Migrates if this user may, else waits until somebody has.
///
/// # Errors
/// [`DbError::SchemaMissing`] if the schema is not there after `patience`.
pub async fn prepare(config: &DatabaseConfig, patience: Duration) -> Result<(), DbError> {
    let pool = connect(config, Zone::Owner).await?;
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let attempt = async {
            if schema_is_current(&pool).await? {
                return Ok(true);
            }
            let may_create: bool =
                sqlx::query_scalar("SELECT has_schema_privilege(current_user, 'public', 'CREATE')")
                    .fetch_one(&pool)
                    .await?;
            if may_create {
                migrate(&pool).await?;
            }
            Ok::<bool, DbError>(may_create)
        };
        match attempt.await {
            Ok(true) => break,
            Ok(false) if tokio::time::Instant::now() >= deadline => return Err(DbError::SchemaMissing),
            Err(DbError::Unavailable(error)) if tokio::time::Instant::now() < deadline => {
                tracing::warn!(%error, "db.unavailable: waiting for the database");
            }
            Err(error) => return Err(error),
            Ok(false) => tracing::info!("db.schema_missing: waiting for `kage migrate`"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    pool.close().await;
    Ok(())
}
