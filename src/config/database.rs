//! Where Postgres is.

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;

use crate::config::error::ConfigError;
use crate::config::settings::Settings;
use crate::secret::watched::Secret;

pub const NAMES: [&str; 6] = [
    "KAGE_DATABASE_URL",
    "KAGE_DATABASE_PASSWORD",
    "KAGE_DATABASE_PASSWORD_FILE",
    "KAGE_DATABASE_CONNECTIONS",
    "KAGE_DATABASE_ACQUIRE_SECS",
    "KAGE_DATABASE_START_SECS",
];

/// Those that the driver knows (sqlx 0.9, `PgConnectOptions`), beside `options[…]`.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `postgres://user@host/name`; none: `kage serve` runs its own private cluster.
    pub url: Option<SecretString>,
    /// Kept out of the URL, so that it can come from a file.
    pub password: Option<Secret>,
    /// Most connections of one role. A runner's listeners keep three.
    pub connections: u32,
    /// Seconds to wait for a connection.
    pub acquire_secs: u64,
    /// Seconds that a role waits at its start for a database that is not there yet, or for its schema.
    pub start_secs: u64,
}

impl DatabaseConfig {
    /// `KAGE_DATABASE_URL`, `KAGE_DATABASE_PASSWORD` (or `…_FILE`), `KAGE_DATABASE_CONNECTIONS` (10),
    /// `KAGE_DATABASE_ACQUIRE_SECS` (10), `KAGE_DATABASE_START_SECS` (120).
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let url = settings.text_or_secret("KAGE_DATABASE_URL")?;
        if let Some(url) = &url {
            let invalid =
                |problem: String| ConfigError::Invalid { name: "KAGE_DATABASE_URL".to_owned(), problem };
            let url = url.expose_secret();
            let mut parsed = url::Url::parse(url).map_err(|problem| invalid(problem.to_string()))?;
            if !matches!(parsed.scheme(), "postgres" | "postgresql") {
                return Err(invalid("it begins with postgres://".to_owned()));
            }
            // The driver would log the value of one that it does not know.
            if parsed.query_pairs().any(|(name, _)| !is_known(&name)) {
                let known = PARAMETERS.join(", ");
                return Err(invalid(format!("a parameter behind its ? is not known; known are {known}")));
            }
            url.parse::<PgConnectOptions>().map_err(|problem| invalid(problem.to_string()))?;
            let found = passwords(&parsed);
            if mask(&mut parsed) {
                settings.mask_last(parsed.to_string());
            }
            found.iter().for_each(|password| settings.remember_secret("KAGE_DATABASE_URL", password));
        }
        Ok(Self {
            url,
            password: settings.watched_secret("KAGE_DATABASE_PASSWORD", "KAGE_DATABASE_PASSWORD_FILE")?,
            connections: settings.within("KAGE_DATABASE_CONNECTIONS", 10, 6, 200)? as u32,
            acquire_secs: settings.within("KAGE_DATABASE_ACQUIRE_SECS", 10, 1, 300)?,
            start_secs: settings.within("KAGE_DATABASE_START_SECS", 120, 0, 3600)?,
        })
    }

    /// # Errors
    /// [`ConfigError::Missing`] without a URL.
    pub fn connect_options(&self) -> Result<PgConnectOptions, ConfigError> {
        let url = self.url.as_ref().ok_or(ConfigError::Missing {
            name: "KAGE_DATABASE_URL",
            hint: "postgres://user@host/database (only `kage serve` can do without, with a private cluster)",
        })?;
        let options: PgConnectOptions = url.expose_secret().parse().map_err(|problem: sqlx::Error| {
            ConfigError::Invalid { name: "KAGE_DATABASE_URL".to_owned(), problem: problem.to_string() }
        })?;
        Ok(match self.password.as_ref().and_then(Secret::current) {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        })
    }
}

fn is_known(parameter: &str) -> bool {
    PARAMETERS.contains(&parameter) || (parameter.starts_with("options[") && parameter.ends_with(']'))
}

/// Parameters whose value is a secret, or may be: a key can be given as its text.
fn is_secret(parameter: &str) -> bool {
    matches!(parameter, "password" | "sslkey" | "ssl-key")
}

/// The passwords in a URL, as they are spelled and as they are meant.
fn passwords(url: &url::Url) -> Vec<String> {
    let in_query = url.query_pairs().filter(|(name, _)| is_secret(name));
    let mut found: Vec<String> = in_query.map(|(_, value)| value.into_owned()).collect();
    if let Some(password) = url.password() {
        let pair = format!("x={}", password.replace('+', "%2B").replace('&', "%26"));
        found.extend(url::form_urlencoded::parse(pair.as_bytes()).map(|(_, value)| value.into_owned()));
        found.push(password.to_owned());
    }
    found
}

/// Hides a password in a URL, wherever Postgres takes one; whether there was any.
fn mask(url: &mut url::Url) -> bool {
    const MASK: &str = "********";
    let in_query = url.query_pairs().any(|(name, _)| is_secret(&name));
    if in_query {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let shown = pairs.iter().map(|(name, value)| (name, if is_secret(name) { MASK } else { value }));
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    let in_authority = url.password().is_some();
    if in_authority {
        // Cannot fail: where there is a password, there is an authority.
        let _ = url.set_password(Some(MASK));
    }
    in_query || in_authority
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_parameter_that_the_driver_would_log_is_refused_unseen() {
        let read = |url: &str| {
            let given = BTreeMap::from([("KAGE_DATABASE_URL".to_owned(), url.to_owned())]);
            DatabaseConfig::from_settings(&mut Settings::from_parts(given, None).expect("settings"))
        };
        for query in [
            "sslpassword=a,planted",
            "passfile=planted",
            "planted=1",
            "Password=planted",
            "options[planted=1",
        ] {
            let refused = read(&format!("postgres://me@db/kage?{query}")).expect_err(query).to_string();
            assert!(!refused.contains("planted") && refused.contains("KAGE_DATABASE_URL"), "{refused}");
        }
        for query in [
            "host=/run/pg&sslmode=require",
            "password=x",
            "options[statement_timeout]=5s",
            "application_name=a",
        ] {
            assert!(read(&format!("postgres://me@db/kage?{query}")).is_ok(), "{query}");
        }
    }
}
