//! Start and stop of this process's roles, in the audit trail.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;

use crate::cli::host::Configuration;
use crate::config::recorded;
use crate::db;
use crate::db::error::DbError;
use crate::db::patience::Patience;
use crate::db::role_starts::Role;

/// The last word of a role whose database is away.
const WITHIN: Duration = Duration::from_secs(5);

/// What this process says of its roles.
pub struct RoleTrail {
    settings: BTreeMap<String, String>,
    sha256: String,
    instance: String,
    patience: Patience,
    begun: Vec<(&'static str, PgPool)>,
}

impl RoleTrail {
    pub fn of(configuration: &Configuration) -> Self {
        let settings = configuration.settings.recorded();
        let sha256 = recorded::hash(&settings);
        let instance = configuration.runner.instance.to_string();
        let patience = Patience(Duration::from_secs(configuration.database.start_secs));
        Self { settings, sha256, instance, patience, begun: Vec::new() }
    }

    fn role<'a>(&'a self, name: &'a str) -> Role<'a> {
        Role { name, instance: &self.instance, version: env!("CARGO_PKG_VERSION") }
    }

    /// An answer that was lost may make it two entries of one start, never none.
    ///
    /// # Errors
    /// A role that cannot say that it begins does not.
    pub async fn begin(&mut self, name: &'static str, pool: &PgPool) -> anyhow::Result<()> {
        let begin =
            async || db::role_starts::started(pool, self.role(name), &self.settings, &self.sha256).await;
        let begun = self.patience.ask(DbError::is_transient, begin).await;
        begun.with_context(|| format!("{name}: its start cannot be put into the audit trail"))?;
        self.begun.push((name, pool.clone()));
        Ok(())
    }

    /// When all of them have ended. `failed`: not because somebody asked them to.
    pub async fn end(&self, failed: bool) {
        for (name, pool) in &self.begun {
            let stopped = db::role_starts::stopped(pool, self.role(name), failed);
            match tokio::time::timeout(WITHIN, stopped).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(role = name, %error, "role.stop_not_audited"),
                Err(_) => tracing::error!(role = name, "role.stop_not_audited: the database does not answer"),
            }
        }
    }
}
