//! What a role tells those who watch it: figures and traces. Both are off unless set.

use std::net::SocketAddr;

use url::Url;

use crate::config::error::ConfigError;
use crate::config::settings::Settings;

pub const NAMES: [&str; 3] = ["KAGE_METRICS_LISTEN", "KAGE_METRICS_ALLOW_NETWORK", "KAGE_OTLP_ENDPOINT"];

#[derive(Debug, Clone)]
pub struct WatchConfig {
    /// Where `/metrics` is served; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where spans are sent, without the signal's own path; none: there are none.
    pub otlp: Option<Url>,
}

impl WatchConfig {
    /// `KAGE_METRICS_LISTEN` (none), `KAGE_METRICS_ALLOW_NETWORK` (false: loopback only), `KAGE_OTLP_ENDPOINT` (none).
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let metrics: Option<SocketAddr> = settings.optional("KAGE_METRICS_LISTEN")?;
        let network = settings.or("KAGE_METRICS_ALLOW_NETWORK", false)?;
        if let Some(listen) = metrics.filter(|listen| !listen.ip().to_canonical().is_loopback() && !network) {
            let problem = format!(
                "{listen} is not loopback, and whoever reaches it can read the figures without a key; \
                 KAGE_METRICS_ALLOW_NETWORK=true says that it is meant"
            );
            return Err(ConfigError::Invalid { name: "KAGE_METRICS_LISTEN".to_owned(), problem });
        }
        Ok(Self { metrics, otlp: otlp(settings)? })
    }
}

fn otlp(settings: &mut Settings) -> Result<Option<Url>, ConfigError> {
    const NAME: &str = "KAGE_OTLP_ENDPOINT";
    let url: Option<Url> = settings.optional(NAME)?;
    let invalid = |problem: &str| ConfigError::Invalid { name: NAME.to_owned(), problem: problem.to_owned() };
    match &url {
        Some(url) if !["http", "https"].contains(&url.scheme()) => {
            Err(invalid("it begins with http:, https:"))
        }
        Some(url) if !url.username().is_empty() || url.password().is_some() => {
            settings.mask_last("********".to_owned());
            Err(invalid("a URL is no place for a user or a password"))
        }
        _ => Ok(url),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(given: &[(&str, &str)]) -> Result<WatchConfig, ConfigError> {
        let given: BTreeMap<String, String> =
            given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        WatchConfig::from_settings(&mut Settings::from_parts(given, None).expect("settings"))
    }

    #[test]
    fn nothing_is_told_unless_it_is_asked_for() {
        let config = read(&[]).expect("the defaults");
        assert!(config.metrics.is_none() && config.otlp.is_none());
    }

    #[test]
    fn figures_stay_on_this_machine_unless_it_is_meant() {
        for address in ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464"] {
            assert!(read(&[("KAGE_METRICS_LISTEN", address)]).is_err(), "{address}");
            let meant = [("KAGE_METRICS_LISTEN", address), ("KAGE_METRICS_ALLOW_NETWORK", "true")];
            assert!(read(&meant).expect("meant").metrics.is_some());
        }
        for address in ["127.0.0.1:9464", "[::1]:9464", "[::ffff:127.0.0.1]:9464"] {
            assert!(read(&[("KAGE_METRICS_LISTEN", address)]).is_ok(), "{address}");
        }
    }

    #[test]
    fn a_password_in_the_endpoint_is_refused_and_not_shown() {
        let error =
            read(&[("KAGE_OTLP_ENDPOINT", "http://u:hunter2@127.0.0.1:4318")]).expect_err("a password");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(read(&[("KAGE_OTLP_ENDPOINT", "ftp://127.0.0.1")]).is_err());
        assert!(read(&[("KAGE_OTLP_ENDPOINT", "http://127.0.0.1:4318")]).is_ok());
    }
}
