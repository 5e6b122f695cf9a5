//! Where `kage audit` reads the trail.

use sqlx::PgPool;

use crate::cli::connect;
use crate::cli::exit::CliError;
use crate::cli::host::Configuration;
use crate::client::Client;
use crate::config::error::ConfigError;
use crate::db::Zone;

/// The database where one is configured here, else the server, with the key of the terminal client.
#[derive(Debug)]
pub enum Source {
    Database(PgPool),
    Server(Box<Client>),
}

impl Source {
    /// # Errors
    /// [`CliError`] if neither can be used.
    pub async fn open() -> Result<Self, CliError> {
        match Configuration::load_with_database() {
            Ok(configuration) => Ok(Self::Database(configuration.pool(Zone::Owner).await?)),
            Err(CliError::Setting(ConfigError::Missing { name: "KAGE_DATABASE_URL", .. })) => {
                Ok(Self::Server(Box::new(connect::client()?)))
            }
            Err(error) => Err(error),
        }
    }
}
