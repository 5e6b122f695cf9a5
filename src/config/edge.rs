//! What stands between the network and the API: TLS, who in front is believed, limits of rates, other origins.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use crate::config::error::ConfigError;
use crate::config::settings::Settings;
use crate::secret::watched::Secret;

pub const NAMES: [&str; 15] = [
    "KAGE_API_TLS_CERT",
    "KAGE_API_TLS_KEY",
    "KAGE_API_TLS_KEY_FILE",
    "KAGE_API_TLS_CLIENT_CA",
    "KAGE_API_TLS_CLIENT_AUTH",
    "KAGE_API_TLS_RELOAD_SECS",
    "KAGE_API_TLS_HANDSHAKE_SECS",
    "KAGE_API_HSTS_SECS",
    "KAGE_API_HSTS_SUBDOMAINS",
    "KAGE_API_TRUSTED_PROXIES",
    "KAGE_API_FORWARDED_HEADER",
    "KAGE_API_RATE_ADDRESS",
    "KAGE_API_RATE_KEY",
    "KAGE_API_RATE_FAILURES",
    "KAGE_API_CORS_ORIGINS",
];

#[derive(Debug, Clone)]
pub struct EdgeConfig {
    pub tls: Option<TlsConfig>,
    /// `max-age` of `Strict-Transport-Security` on answers over TLS, in seconds; 0 sends none.
    pub hsts_secs: u64,
    /// Whether it binds every name below the host's.
    pub hsts_subdomains: bool,
    /// Whose word about the client's address is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// The one header in which they say it.
    pub forwarded: ForwardedHeader,
    pub rates: Rates,
    /// Origins whose pages may call the API, as browsers spell them.
    pub cors_origins: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM: the server's certificate, then those between it and the root.
    pub certificate: PathBuf,
    pub key: TlsKey,
    pub clients: Option<ClientCertificates>,
    /// How often the files are looked at.
    pub reload: Duration,
    /// For a handshake, from the first byte to the last.
    pub handshake: Duration,
}

/// A private key in PEM.
#[derive(Debug, Clone)]
pub enum TlsKey {
    /// Read anew when it changes.
    File(PathBuf),
    /// The value in force counts.
    Secret(Secret),
}

#[derive(Debug, Clone)]
pub struct ClientCertificates {
    /// PEM: who signs clients' certificates.
    pub ca: PathBuf,
    /// Whether a client without one is refused.
    pub required: bool,
}

/// Where proxies write the client's address. A proxy passes the other one on as the client sent it: only one can be
/// believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeader {
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

impl std::str::FromStr for ForwardedHeader {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "x-forwarded-for" => Ok(Self::XForwardedFor),
            "forwarded" => Ok(Self::Forwarded),
            _ => Err("must be x-forwarded-for or forwarded"),
        }
    }
}

impl std::fmt::Display for ForwardedHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        })
    }
}

/// Each is a minute's, and as many may come at once.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Requests from an address (IPv6: from a /64), before anybody is authenticated.
    pub address: u32,
    /// Requests with a key.
    pub key: u32,
    /// Failed authentications from an address; more shut it out for a minute.
    pub failures: u32,
}

impl EdgeConfig {
    /// `KAGE_API_TLS_CERT` with `KAGE_API_TLS_KEY` or `KAGE_API_TLS_KEY_FILE` (none: plain HTTP),
    /// `KAGE_API_TLS_CLIENT_CA` (none), `KAGE_API_TLS_CLIENT_AUTH` (required), `KAGE_API_TLS_RELOAD_SECS` (10),
    /// `KAGE_API_TLS_HANDSHAKE_SECS` (10), `KAGE_API_HSTS_SECS` (a year),
    /// `KAGE_API_HSTS_SUBDOMAINS` (false), `KAGE_API_TRUSTED_PROXIES` (none),
    /// `KAGE_API_FORWARDED_HEADER` (x-forwarded-for), `KAGE_API_RATE_ADDRESS` (6000), `KAGE_API_RATE_KEY` (6000),
    /// `KAGE_API_RATE_FAILURES` (60), `KAGE_API_CORS_ORIGINS` (none).
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let tls = tls(settings)?;
        let mut rate = |name, default| Ok(settings.within(name, default, 1, 10_000_000)? as u32);
        let rates = Rates {
            address: rate("KAGE_API_RATE_ADDRESS", 6000)?,
            key: rate("KAGE_API_RATE_KEY", 6000)?,
            failures: rate("KAGE_API_RATE_FAILURES", 60)?,
        };
        Ok(Self {
            tls,
            rates,
            hsts_secs: settings.within("KAGE_API_HSTS_SECS", 31_536_000, 0, 315_360_000)?,
            hsts_subdomains: settings.or("KAGE_API_HSTS_SUBDOMAINS", false)?,
            trusted_proxies: networks("KAGE_API_TRUSTED_PROXIES", settings)?,
            forwarded: settings.or("KAGE_API_FORWARDED_HEADER", ForwardedHeader::XForwardedFor)?,
            cors_origins: origins("KAGE_API_CORS_ORIGINS", settings)?,
        })
    }
}

fn tls(settings: &mut Settings) -> Result<Option<TlsConfig>, ConfigError> {
    let certificate = settings.optional::<PathBuf>("KAGE_API_TLS_CERT")?;
    let secret = settings.watched_secret("KAGE_API_TLS_KEY", "KAGE_API_TLS_KEY_FILE")?;
    let file = settings.optional::<PathBuf>("KAGE_API_TLS_KEY_FILE")?;
    let ca = settings.optional::<PathBuf>("KAGE_API_TLS_CLIENT_CA")?;
    let required = match settings.or("KAGE_API_TLS_CLIENT_AUTH", "required".to_owned())?.as_str() {
        "required" => true,
        "optional" => false,
        _ => return Err(wrong("KAGE_API_TLS_CLIENT_AUTH", "must be required or optional".to_owned())),
    };
    let reload = Duration::from_secs(settings.within("KAGE_API_TLS_RELOAD_SECS", 10, 1, 86_400)?);
    let handshake = Duration::from_secs(settings.within("KAGE_API_TLS_HANDSHAKE_SECS", 10, 1, 120)?);
    let key = match (file, secret) {
        (Some(path), _) => Some(TlsKey::File(path)),
        (None, secret) => secret.map(TlsKey::Secret),
    };
    match (certificate, key, ca) {
        (None, None, None) => Ok(None),
        (Some(certificate), Some(key), ca) => {
            let clients = ca.map(|ca| ClientCertificates { ca, required });
            Ok(Some(TlsConfig { certificate, key, clients, reload, handshake }))
        }
        (Some(_), None, _) => {
            let hint = "the private key of KAGE_API_TLS_CERT; or KAGE_API_TLS_KEY_FILE, its file";
            Err(ConfigError::Missing { name: "KAGE_API_TLS_KEY", hint })
        }
        (None, ..) => {
            let hint = "the file of the certificate that the other settings of KAGE_API_TLS are about";
            Err(ConfigError::Missing { name: "KAGE_API_TLS_CERT", hint })
        }
    }
}

fn wrong(name: &str, problem: String) -> ConfigError {
    ConfigError::Invalid { name: name.to_owned(), problem }
}

fn networks(name: &'static str, settings: &mut Settings) -> Result<Vec<IpNet>, ConfigError> {
    let network = |text: String| {
        let one = text.parse().map(|address: std::net::IpAddr| IpNet::from(address.to_canonical()));
        let network = one.or_else(|_| text.parse::<IpNet>());
        let network = network
            .map_err(|_| wrong(name, format!("{text:?} is neither an address nor a network in CIDR form")))?;
        if network.prefix_len() == 0 {
            let problem = format!("{text:?} is everybody, and whoever is trusted chooses its own address");
            return Err(wrong(name, problem));
        }
        Ok(network.trunc())
    };
    settings.list(name).into_iter().map(network).collect()
}

/// Whole origins, spelt as browsers do: no pattern, and never everybody.
fn origins(name: &'static str, settings: &mut Settings) -> Result<Vec<String>, ConfigError> {
    let check = |text: String| {
        let plain = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        match plain.map(|url| url.origin().ascii_serialization()) {
            Some(origin) if origin == text && !text.contains('*') => Ok(text),
            Some(origin) => Err(wrong(name, format!("{text:?} is no origin; is {origin} meant?"))),
            None => Err(wrong(name, format!("{text:?} is no origin such as https://console.example"))),
        }
    };
    settings.list(name).into_iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<EdgeConfig, ConfigError> {
        let variables: BTreeMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        EdgeConfig::from_settings(&mut Settings::from_parts(variables, None).unwrap())
    }

    #[test]
    fn what_would_let_everybody_in_is_refused() {
        for (name, value) in [
            ("KAGE_API_TRUSTED_PROXIES", "0.0.0.0/0"),
            ("KAGE_API_TRUSTED_PROXIES", "10.0.0.1, ::/0"),
            ("KAGE_API_TRUSTED_PROXIES", "proxy.example"),
            ("KAGE_API_FORWARDED_HEADER", "x-real-ip"),
            ("KAGE_API_CORS_ORIGINS", "*"),
            ("KAGE_API_CORS_ORIGINS", "null"),
            ("KAGE_API_CORS_ORIGINS", "https://*.example"),
            ("KAGE_API_CORS_ORIGINS", "https://a.example/"),
            ("KAGE_API_CORS_ORIGINS", "https://A.example"),
            ("KAGE_API_CORS_ORIGINS", "https://user@a.example"),
            ("KAGE_API_CORS_ORIGINS", "a.example"),
            ("KAGE_API_RATE_FAILURES", "0"),
            ("KAGE_API_TLS_CERT", "/cert.pem"),
            ("KAGE_API_TLS_CLIENT_CA", "/ca.pem"),
        ] {
            let error = load(&[(name, value)]).expect_err(value).to_string();
            assert!(error.contains(&name[..12]), "{value}: {error}");
        }
    }

    #[test]
    fn addresses_are_networks_of_one() {
        let config = load(&[
            ("KAGE_API_TRUSTED_PROXIES", "10.1.2.3,::ffff:10.9.9.9,192.0.2.7/24"),
            ("KAGE_API_CORS_ORIGINS", "https://a.example,http://localhost:3000"),
        ]);
        let config = config.unwrap();
        let shown: Vec<String> = config.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.1.2.3/32", "10.9.9.9/32", "192.0.2.0/24"]);
        assert_eq!(config.cors_origins.len(), 2);
    }
}
