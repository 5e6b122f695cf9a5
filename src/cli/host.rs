//! What the commands on the server's side share.

use anyhow::Context as _;
use sqlx::PgPool;

use crate::cli::exit::CliError;
use crate::config::api::ApiConfig;
use crate::config::database::DatabaseConfig;
use crate::config::error::ConfigError;
use crate::config::gateway::GatewayConfig;
use crate::config::retention::RetentionConfig;
use crate::config::runner::RunnerConfig;
use crate::config::sequencer::SequencerConfig;
use crate::config::settings::Settings;
use crate::config::watch::WatchConfig;
use crate::config::webhooks::WebhooksConfig;
use crate::config::{
    api, database, edge, gateway, oidc, retention, runner, secrets, sequencer, watch, webhooks,
};
use crate::db;
use crate::db::Zone;
use crate::db::private::{Cluster, ClusterError};
use crate::trail::note::{Kind, VerifierKey};

/// Every setting of every role, checked: a role refuses to start over another one's mistake too.
pub struct Configuration {
    pub settings: Settings,
    pub database: DatabaseConfig,
    pub api: ApiConfig,
    pub runner: RunnerConfig,
    pub gateway: GatewayConfig,
    pub sequencer: SequencerConfig,
    pub webhooks: WebhooksConfig,
    pub retention: RetentionConfig,
    pub watch: WatchConfig,
}

/// # Errors
/// [`ConfigError`] names the variable.
pub fn load() -> Result<Configuration, ConfigError> {
    let mut settings = Settings::load()?;
    let known: Vec<&str> = [
        &secrets::NAMES[..],
        &database::NAMES,
        &api::NAMES,
        &edge::NAMES,
        &oidc::NAMES,
        &runner::NAMES,
        &gateway::NAMES,
        &sequencer::NAMES,
        &webhooks::NAMES,
        &retention::NAMES,
        &watch::NAMES,
    ]
    .concat();
    settings.refuse_unknown(&known)?;
    settings.resolver()?;
    let mut configuration = Configuration {
        database: DatabaseConfig::from_settings(&mut settings)?,
        api: ApiConfig::from_settings(&mut settings)?,
        runner: RunnerConfig::from_settings(&mut settings)?,
        gateway: GatewayConfig::from_settings(&mut settings)?,
        sequencer: SequencerConfig::from_settings(&mut settings)?,
        webhooks: WebhooksConfig::from_settings(&mut settings)?,
        retention: RetentionConfig::from_settings(&mut settings)?,
        watch: WatchConfig::from_settings(&mut settings)?,
        settings,
    };
    witnesses(&configuration.sequencer)?;
    // Those of later sections too.
    configuration.runner.secrets = configuration.settings.secrets().to_vec();
    Ok(configuration)
}

/// The cluster of `kage serve` with this data folder, started, where it is what commands work with and nobody runs it. The caller
/// stops it.
///
/// # Errors
/// [`CliError::Host`] if it cannot be started.
pub async fn own_cluster() -> Result<Option<Cluster>, CliError> {
    let configuration = load()?;
    let data_dir = &configuration.runner.data_dir;
    if configuration.database.url.is_some() || Cluster::url_of(data_dir).is_none() {
        return Ok(None);
    }
    match Cluster::start(data_dir).await {
        Ok(cluster) => Ok(Some(cluster)),
        // `kage serve` is there.
        Err(ClusterError::Taken(_)) => Ok(None),
        Err(error) => Err(CliError::Host(anyhow::Error::new(error).context("private database"))),
    }
}

/// Witnesses whose signatures are taken.
///
/// # Errors
/// [`ConfigError::Invalid`], for a log's key too: it signs another text, so no signature of it would ever count.
pub fn witnesses(config: &SequencerConfig) -> Result<Vec<VerifierKey>, ConfigError> {
    let invalid = |problem: String| ConfigError::Invalid { name: "KAGE_AUDIT_WITNESSES".to_owned(), problem };
    let one = |text: &String| {
        let key = VerifierKey::parse(text).map_err(|error| invalid(error.to_string()))?;
        match key.kind() {
            Kind::Witness => Ok(key),
            Kind::Log => Err(invalid(format!(
                "{:?} is the key of a log: it was made without --witness (kage audit keygen --witness)",
                key.name()
            ))),
        }
    };
    config.witnesses.iter().map(one).collect()
}

impl Configuration {
    /// As [`load`], for a command that works with the database: where none is configured, that of a
    /// `kage serve` with the same data folder.
    ///
    /// # Errors
    /// [`CliError::Host`].
    pub fn load_with_database() -> Result<Self, CliError> {
        let mut configuration = load()?;
        if configuration.database.url.is_none() {
            configuration.database.url = Cluster::url_of(&configuration.runner.data_dir);
        }
        if configuration.database.url.is_none() {
            let missing = configuration.database.connect_options().map(|_| ());
            missing.map_err(CliError::from)?;
        }
        Ok(configuration)
    }

    /// A pool for one command.
    ///
    /// # Errors
    /// [`CliError::Host`].
    pub async fn pool(&self, zone: Zone) -> Result<PgPool, CliError> {
        let mut config = self.database.clone();
        config.connections = 2;
        let pool = db::connect(&config, zone).await.context("database").map_err(CliError::Host)?;
        let schema = db::schema::state(&pool).await.context("database").map_err(CliError::Host)?;
        match schema.refusal() {
            None => Ok(pool),
            Some(refusal) => Err(CliError::Host(anyhow::Error::new(refusal).context("database"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::sequencer_key;

    #[test]
    fn a_logs_key_is_no_witness() {
        let of = |kind| {
            let key = sequencer_key::generate("w.example", kind).unwrap().verifier().to_string();
            let given = BTreeMap::from([("KAGE_AUDIT_WITNESSES".to_owned(), key)]);
            let mut settings = Settings::from_parts(given, None).unwrap();
            witnesses(&SequencerConfig::from_settings(&mut settings).unwrap())
        };
        assert_eq!(of(Kind::Witness).unwrap().len(), 1);
        let error = of(Kind::Log).unwrap_err().to_string();
        assert!(error.contains("KAGE_AUDIT_WITNESSES") && error.contains("without --witness"), "{error}");
    }
}
