//! Keeps the secrets of a running role up to date.

use sqlx::PgPool;

use crate::cli::host::Configuration;
use crate::config::database::DatabaseConfig;
use crate::config::error::ConfigError;
use crate::db;
use crate::domain::audit::Actor;
use crate::lifecycle::Lifecycle;
use crate::secret::reload::{News, Reloader};

/// Reads watched settings again until the hard token; new connections of these pools then use the new password.
///
/// # Errors
/// [`ConfigError`] names the variable.
pub fn keep_current(
    configuration: &mut Configuration,
    pools: Vec<PgPool>,
    roles: &'static str,
    lifecycle: &Lifecycle,
) -> Result<(), ConfigError> {
    let resolver = configuration.settings.resolver()?;
    let mut reloader = Reloader::new(resolver, configuration.settings.watched().to_vec());
    let (database, mut now) = (configuration.database.clone(), lifecycle.reloads());
    let hard = lifecycle.hard().clone();
    let run = async move {
        loop {
            for (secret, news) in reloader.next(&mut now).await {
                heed(&database, &pools, roles, secret.name(), &news).await;
            }
        }
    };
    // Not waited for: it ends with the process.
    tokio::spawn(hard.run_until_cancelled_owned(run));
    Ok(())
}

async fn heed(database: &DatabaseConfig, pools: &[PgPool], roles: &str, setting: &str, news: &News) {
    match news {
        News::Changed => {
            tracing::info!(setting, "secret.reloaded");
            for pool in pools {
                if let Err(error) = db::renew(pool, database) {
                    tracing::error!(setting, %error, "secret.not_put_to_use");
                }
            }
        }
        News::Failed(problem) => tracing::error!(setting, problem, "secret.not_reloaded: the old one stays"),
    }
    let Some(pool) = pools.first() else { return };
    let problem = match news {
        News::Changed => None,
        News::Failed(problem) => Some(problem.as_str()),
    };
    if let Err(error) = db::reloads::record(pool, Actor::Host, roles, setting, problem).await {
        tracing::error!(setting, %error, "secret.reload_not_audited");
    }
}
