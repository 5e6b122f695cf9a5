//! Sign-in of people through an OpenID provider. Off unless `KAGE_OIDC_ISSUER` is set.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::{Host, Url};

use crate::config::error::ConfigError;
use crate::config::settings::Settings;
use crate::domain::access::{Quotas, Rights, Scope};
use crate::domain::name::Name;
use crate::secret::watched::Secret;

pub const NAMES: [&str; 13] = [
    "KAGE_OIDC_ISSUER",
    "KAGE_OIDC_CLIENT_ID",
    "KAGE_OIDC_CLIENT_SECRET",
    "KAGE_OIDC_CLIENT_SECRET_FILE",
    "KAGE_OIDC_PUBLIC_URL",
    "KAGE_OIDC_SCOPES",
    "KAGE_OIDC_CLAIM",
    "KAGE_OIDC_RIGHTS",
    "KAGE_OIDC_CA_FILE",
    "KAGE_OIDC_ALLOW_PLAIN_HTTP",
    "KAGE_OIDC_ANSWER_SECS",
    "KAGE_OIDC_SESSION_SECS",
    "KAGE_OIDC_IDLE_SECS",
];

/// Far from where sums overflow.
const MAX_USD: f64 = 1e6;
const MAX_RUNS: u32 = 1_000_000;

#[derive(Debug, Clone)]
pub struct OidcConfig {
    /// Exactly as the provider spells it.
    pub issuer: String,
    pub client_id: String,
    pub client_secret: Secret,
    /// Where browsers find this server: an origin.
    pub public_url: Url,
    /// Asked for beside `openid`.
    pub scopes: Vec<String>,
    /// The claim whose values are looked up in `grants`: a name, or a JSON pointer (`/realm_access/roles`).
    pub claim: String,
    pub grants: Vec<Grant>,
    /// PEM certificates that are trusted beside the system's.
    pub ca: Option<Vec<u8>>,
    /// Takes plain HTTP on loopback, of the provider's and of this server's.
    pub plain_http: bool,
    /// For one answer of the provider.
    pub within: Duration,
    /// After which a session ends in any case.
    pub session_secs: u32,
    /// Without use, after which a session ends.
    pub idle_secs: u32,
}

/// What people may do whose claim has a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub value: String,
    pub rights: Rights,
}

impl OidcConfig {
    /// `KAGE_OIDC_ISSUER` (none: nobody signs in), `KAGE_OIDC_CLIENT_ID`, `KAGE_OIDC_CLIENT_SECRET` or
    /// `KAGE_OIDC_CLIENT_SECRET_FILE`, `KAGE_OIDC_PUBLIC_URL`, `KAGE_OIDC_SCOPES` (profile,email), `KAGE_OIDC_CLAIM`
    /// (groups), `KAGE_OIDC_RIGHTS` (a TOML file; none: who signs in may do nothing), `KAGE_OIDC_CA_FILE` (none),
    /// `KAGE_OIDC_ALLOW_PLAIN_HTTP` (false), `KAGE_OIDC_ANSWER_SECS` (5), `KAGE_OIDC_SESSION_SECS` (12 hours),
    /// `KAGE_OIDC_IDLE_SECS` (an hour).
    ///
    /// # Errors
    /// [`ConfigError`] names the variable, or the place in the file.
    pub fn from_settings(settings: &mut Settings) -> Result<Option<Self>, ConfigError> {
        let issuer: Option<String> = settings.optional("KAGE_OIDC_ISSUER")?;
        let client_id: Option<String> = settings.optional("KAGE_OIDC_CLIENT_ID")?;
        let client_secret =
            settings.watched_secret("KAGE_OIDC_CLIENT_SECRET", "KAGE_OIDC_CLIENT_SECRET_FILE")?;
        let public_url: Option<String> = settings.optional("KAGE_OIDC_PUBLIC_URL")?;
        let scopes = settings.list("KAGE_OIDC_SCOPES");
        let claim = settings.or("KAGE_OIDC_CLAIM", "groups".to_owned())?;
        let file: Option<PathBuf> = settings.optional("KAGE_OIDC_RIGHTS")?;
        let ca_file: Option<PathBuf> = settings.optional("KAGE_OIDC_CA_FILE")?;
        let plain_http = settings.or("KAGE_OIDC_ALLOW_PLAIN_HTTP", false)?;
        let within = Duration::from_secs(settings.within("KAGE_OIDC_ANSWER_SECS", 5, 1, 10)?);
        let session_secs = settings.within("KAGE_OIDC_SESSION_SECS", 43_200, 300, 2_592_000)? as u32;
        let idle_secs = settings.within("KAGE_OIDC_IDLE_SECS", 3600, 300, 2_592_000)? as u32;
        let Some(issuer) = issuer else {
            if client_id.is_some() || client_secret.is_some() || file.is_some() {
                let hint = "the OpenID provider that the other settings of KAGE_OIDC are about";
                return Err(ConfigError::Missing { name: "KAGE_OIDC_ISSUER", hint });
            }
            return Ok(None);
        };
        check_url("KAGE_OIDC_ISSUER", &issuer, plain_http)?;
        let missing = |name, hint| ConfigError::Missing { name, hint };
        let public_url = public_url.ok_or_else(|| {
            missing("KAGE_OIDC_PUBLIC_URL", "where browsers find this server, such as https://kage.example")
        })?;
        let ca = ca_file.map(|path| read("KAGE_OIDC_CA_FILE", &path)).transpose()?;
        Ok(Some(Self {
            issuer,
            client_id: client_id
                .ok_or_else(|| missing("KAGE_OIDC_CLIENT_ID", "the id that the provider gave this server"))?,
            client_secret: client_secret.ok_or_else(|| {
                missing("KAGE_OIDC_CLIENT_SECRET", "the secret that belongs to KAGE_OIDC_CLIENT_ID")
            })?,
            public_url: origin(&public_url, plain_http)?,
            scopes: if scopes.is_empty() { vec!["profile".to_owned(), "email".to_owned()] } else { scopes },
            claim,
            grants: match file {
                None => Vec::new(),
                Some(path) => grants(&path)?,
            },
            ca,
            plain_http,
            within,
            session_secs,
            idle_secs,
        }))
    }

    /// What somebody may do whose claim has these values: as the first grant says that fits, and nothing else.
    pub fn rights(&self, values: &[String]) -> Option<&Rights> {
        self.grants.iter().find(|grant| values.contains(&grant.value)).map(|grant| &grant.rights)
    }

    /// Whether cookies go over TLS alone.
    pub fn is_secure(&self) -> bool {
        self.public_url.scheme() == "https"
    }
}

fn invalid(name: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { name: name.to_owned(), problem: problem.into() }
}

fn read(name: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    let failed = |source| ConfigError::File { name: name.to_owned(), path: path.to_owned(), source };
    std::fs::read(path).map_err(failed)
}

fn check_url(name: &str, text: &str, plain_http: bool) -> Result<Url, ConfigError> {
    let url = Url::parse(text).map_err(|problem| invalid(name, problem.to_string()))?;
    let loopback = match url.host() {
        Some(Host::Domain(host)) => host == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if !(url.scheme() == "https" || url.scheme() == "http" && loopback && plain_http) {
        let problem = "it is an https:// URL (http:// on loopback, with KAGE_OIDC_ALLOW_PLAIN_HTTP=true)";
        return Err(invalid(name, problem));
    }
    let more = !url.username().is_empty() || url.password().is_some();
    if more || url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(name, "it holds neither a user, nor a query, nor a fragment"));
    }
    Ok(url)
}

fn origin(text: &str, plain_http: bool) -> Result<Url, ConfigError> {
    let url = check_url("KAGE_OIDC_PUBLIC_URL", text, plain_http)?;
    let origin = url.origin().ascii_serialization();
    if text.trim_end_matches('/') != origin {
        return Err(invalid("KAGE_OIDC_PUBLIC_URL", format!("it is an origin; is {origin} meant?")));
    }
    Ok(url)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RightsFile {
    #[serde(default)]
    grant: Vec<GrantSection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantSection {
    value: String,
    scopes: BTreeSet<Scope>,
    repositories: Option<BTreeSet<Name>>,
    clis: Option<BTreeSet<Name>>,
    runs_at_once: Option<u32>,
    runs_a_day: Option<u32>,
    usd_a_day: Option<f64>,
}

impl GrantSection {
    fn check(self) -> Result<Grant, String> {
        let Self { value, scopes, repositories, clis, runs_at_once, runs_a_day, usd_a_day } = self;
        if value.is_empty() || scopes.is_empty() {
            return Err("a grant has a value and at least one scope".to_owned());
        }
        if [runs_at_once, runs_a_day].into_iter().flatten().any(|runs| runs > MAX_RUNS) {
            return Err(format!("{value:?}: runs_at_once and runs_a_day are 0 to {MAX_RUNS}"));
        }
        if usd_a_day.is_some_and(|usd| !(0.0..=MAX_USD).contains(&usd)) {
            return Err(format!("{value:?}: usd_a_day is 0 to {MAX_USD}"));
        }
        let micros_a_day = usd_a_day.map(|usd| (usd * 1e6).round() as i64);
        let quotas = Quotas { runs_at_once, runs_a_day, micros_a_day };
        Ok(Grant { value, rights: Rights { scopes, repositories, clis, quotas, expires_at: None } })
    }
}

fn grants(path: &Path) -> Result<Vec<Grant>, ConfigError> {
    let text = String::from_utf8(read("KAGE_OIDC_RIGHTS", path)?)
        .map_err(|_| invalid("KAGE_OIDC_RIGHTS", format!("{} is not UTF-8", path.display())))?;
    parse(&text).map_err(|problem| ConfigError::Toml { path: path.to_owned(), problem })
}

fn parse(text: &str) -> Result<Vec<Grant>, String> {
    let file: RightsFile = toml::from_str(text).map_err(|problem| problem.to_string())?;
    file.grant.into_iter().map(GrantSection::check).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Option<OidcConfig>, ConfigError> {
        let all = [
            ("KAGE_OIDC_ISSUER", "https://id.example/realm"),
            ("KAGE_OIDC_CLIENT_ID", "kage"),
            ("KAGE_OIDC_CLIENT_SECRET", "literal:s3cret-s3cret"),
            ("KAGE_OIDC_PUBLIC_URL", "https://kage.example"),
        ];
        let mut variables: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in all.iter().chain(pairs) {
            variables.insert((*name).to_owned(), (*value).to_owned());
        }
        OidcConfig::from_settings(&mut Settings::from_parts(variables, None).unwrap())
    }

    #[test]
    fn what_a_network_could_listen_to_is_refused() {
        assert!(load(&[]).unwrap().unwrap().is_secure());
        for (name, value) in [
            ("KAGE_OIDC_ISSUER", "http://id.example"),
            ("KAGE_OIDC_ISSUER", "http://127.0.0.1:9000"),
            ("KAGE_OIDC_ISSUER", "https://user@id.example"),
            ("KAGE_OIDC_ISSUER", "https://id.example/?a=b"),
            ("KAGE_OIDC_ISSUER", "ftp://id.example"),
            ("KAGE_OIDC_PUBLIC_URL", "http://kage.example"),
            ("KAGE_OIDC_PUBLIC_URL", "https://kage.example/below"),
            ("KAGE_OIDC_PUBLIC_URL", ""),
            ("KAGE_OIDC_CLIENT_ID", ""),
            ("KAGE_OIDC_CLIENT_SECRET", ""),
            ("KAGE_OIDC_RIGHTS", "/nowhere.toml"),
        ] {
            let error = load(&[(name, value)]).map(|_| ()).expect_err(value).to_string();
            assert!(error.contains(name), "{value}: {error}");
        }
        let plain = ("KAGE_OIDC_ALLOW_PLAIN_HTTP", "true");
        assert!(load(&[plain, ("KAGE_OIDC_ISSUER", "http://id.example")]).is_err());
        assert!(load(&[plain, ("KAGE_OIDC_ISSUER", "http://127.0.0.1:9000")]).is_ok());
        assert!(load(&[("KAGE_OIDC_ISSUER", "")]).is_err(), "the other settings are about something");
    }

    #[test]
    fn the_first_grant_that_fits_counts_alone() {
        let grants = parse(
            r#"
            [[grant]]
            value = "leads"
            scopes = ["repos:write"]
            repositories = ["a"]
            usd_a_day = 2.5
            [[grant]]
            value = "dev"
            scopes = ["tasks:read", "tasks:write"]
            "#,
        );
        let config = OidcConfig { grants: grants.unwrap(), ..load(&[]).unwrap().unwrap() };
        let both = config.rights(&["dev".to_owned(), "leads".to_owned()]).unwrap();
        assert_eq!((both.scopes.len(), both.quotas.micros_a_day), (1, Some(2_500_000)));
        assert!(both.has(Scope::ReposWrite) && both.repositories.is_some());
        assert!(config.rights(&["Dev".to_owned(), "dev ".to_owned()]).is_none());
        for bad in [
            "[[grant]]\nvalue = \"a\"\nscopes = []",
            "[[grant]]\nvalue = \"\"\nscopes = [\"admin\"]",
            "[[grant]]\nvalue = \"a\"\nscopes = [\"everything\"]",
            "[[grant]]\nvalue = \"a\"\nscopes = [\"admin\"]\nrepository = [\"a\"]",
            "[[grant]]\nvalue = \"a\"\nscopes = [\"admin\"]\nusd_a_day = -1.0",
            "[[grant]]\nvalue = \"a\"\nscopes = [\"admin\"]\nusd_a_day = nan",
            "[grants]\na = 1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
