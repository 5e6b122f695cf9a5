//! Providers and what each CLI may ask of them, from the TOML file that `KAGE_GATEWAY_PROVIDERS` names, else from
//! the table that is built in. No credential is in it: only where one is to be found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use url::{Host, Url};

use crate::config::error::ConfigError;
use crate::config::policy::{CliPolicy, CliSection, Policies};
use crate::domain::model::{Dialect, SERVER_TOOL_KINDS};
use crate::secret::source::Source;

const BUILT_IN: &str = include_str!("providers.toml");

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Providers {
    #[serde(default, rename = "provider")]
    pub providers: Vec<Provider>,
    /// By CLI name.
    #[serde(default, rename = "cli")]
    pub clis: BTreeMap<String, CliSection>,
    #[serde(default, rename = "policy")]
    pub policies: Policies,
}

/// One place that answers model calls in one dialect.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    pub name: String,
    pub dialect: Dialect,
    /// The dialect's own path is put after it.
    pub base_url: Url,
    /// None: it wants none.
    #[serde(default)]
    pub credential: Option<Source>,
    /// How the credential is shown; by default as the dialect's vendor wants it.
    #[serde(default)]
    pub auth: Option<AuthHeader>,
    /// Sent with every call. No secrets: `kage config` shows them.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Names that CLIs may use, and the model that each stands for.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// Models, with `*` for any run of characters; none: those that have a price.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Costs nothing.
    #[serde(default)]
    pub free: bool,
    /// Lets `base_url` be `http://` on another machine: what is sent can then be read on the way.
    #[serde(default)]
    pub allow_plain_http: bool,
    /// Instead of `KAGE_GATEWAY_PROXY`; `"none"`: straight.
    #[serde(default)]
    pub proxy: Option<String>,
    /// Instead of `KAGE_GATEWAY_CONNECT_SECS`.
    #[serde(default)]
    pub connect_secs: Option<u64>,
    /// Instead of `KAGE_GATEWAY_IDLE_SECS`.
    #[serde(default)]
    pub idle_secs: Option<u64>,
    /// Instead of `KAGE_GATEWAY_CALL_SECS`.
    #[serde(default)]
    pub call_secs: Option<u64>,
    /// USD for a call that offers the model a tool of this kind which the provider runs: what all its uses within one
    /// call cost at most, for they are not counted. A kind without a price is not let through, unless it is all free.
    #[serde(default)]
    pub server_tool_usd_per_call: BTreeMap<String, f64>,
    #[serde(default, rename = "model")]
    pub models: Vec<PricedModel>,
}

/// USD for a million tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricedModel {
    /// With `*` for any run of characters.
    pub name: String,
    pub input_usd_per_mtok: f64,
    pub output_usd_per_mtok: f64,
    /// By default as other input.
    #[serde(default)]
    pub cached_input_usd_per_mtok: Option<f64>,
    /// By default a quarter more than other input.
    #[serde(default)]
    pub cache_write_usd_per_mtok: Option<f64>,
    /// The day of the price, `2026-01-31`.
    pub as_of: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AuthHeader {
    /// `Authorization: Bearer …`
    #[serde(rename = "bearer")]
    Bearer,
    #[serde(rename = "x-api-key")]
    XApiKey,
    #[serde(rename = "x-goog-api-key")]
    XGoogApiKey,
    #[serde(rename = "api-key")]
    ApiKey,
}

impl AuthHeader {
    pub const fn of_dialect(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Anthropic => Self::XApiKey,
            Dialect::Gemini => Self::XGoogApiKey,
            Dialect::Responses | Dialect::Chat | Dialect::Ollama => Self::Bearer,
        }
    }
}

impl Providers {
    /// The table that comes with the program.
    ///
    /// # Panics
    /// Never: a test reads it.
    pub fn built_in() -> Self {
        Self::parse(BUILT_IN).expect("a test reads it")
    }

    /// # Errors
    /// [`ConfigError`] with the place.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
            name: "KAGE_GATEWAY_PROVIDERS".to_owned(),
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|problem| ConfigError::Toml { path: path.to_owned(), problem })
    }

    /// What a CLI may ask for, whether or not the file knows its name.
    pub fn policy(&self, cli: &str) -> CliPolicy {
        let section = self.clis.get(cli).cloned().unwrap_or_default();
        section.over(&self.policies.default)
    }

    fn parse(text: &str) -> Result<Self, String> {
        // The message alone: the source line beside it may hold a credential that was put in the wrong place.
        let this: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            format!("line {line}: {}", without_values(error.message()))
        })?;
        let mut names = BTreeSet::new();
        for provider in &this.providers {
            provider.check().map_err(|problem| format!("provider {:?}: {problem}", provider.name))?;
            if !names.insert(provider.name.as_str()) {
                return Err(format!("provider {:?} is there twice", provider.name));
            }
        }
        for (name, cli) in &this.clis {
            if let Some(provider) = &cli.provider
                && !names.contains(provider.as_str())
            {
                return Err(format!("cli {name:?}: there is no provider {provider:?}"));
            }
            cli.check().map_err(|problem| format!("cli {name:?}: {problem}"))?;
        }
        this.policies.check()?;
        Ok(this)
    }
}

impl Provider {
    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return Err("a name is 1 to 64 letters, digits, '-', '_' and '.'".to_owned());
        }
        self.check_url()?;
        if self.free && !self.models.is_empty() {
            return Err("it is free or has prices, not both".to_owned());
        }
        if !self.free && self.models.is_empty() {
            return Err("it needs a [[provider.model]] with prices, or free = true".to_owned());
        }
        if self.free && self.allow.is_empty() {
            return Err("a free provider says which models it has: allow = [\"*\"] for all".to_owned());
        }
        for model in &self.models {
            let prices = [
                Some(model.input_usd_per_mtok),
                Some(model.output_usd_per_mtok),
                model.cached_input_usd_per_mtok,
                model.cache_write_usd_per_mtok,
            ];
            // Dearer than any: a price for one token that was put here by mistake would never show.
            if prices.into_iter().flatten().any(|price| !(0.0..=1e6).contains(&price)) {
                return Err(format!("model {:?}: a price is a number from 0 to a million", model.name));
            }
            if chrono::NaiveDate::parse_from_str(&model.as_of, "%Y-%m-%d").is_err() {
                return Err(format!("model {:?}: as_of is a day such as 2026-01-31", model.name));
            }
        }
        for (kind, usd) in &self.server_tool_usd_per_call {
            if !SERVER_TOOL_KINDS.contains(&kind.as_str()) || !(0.0..=1e3).contains(usd) {
                let kinds = SERVER_TOOL_KINDS.join(", ");
                return Err(format!(
                    "server_tool_usd_per_call: {kind:?} is a number from 0 to 1000 for one of {kinds}"
                ));
            }
        }
        for (name, value) in &self.headers {
            let token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || !name.chars().all(token) || !value.chars().all(|c| (' '..='~').contains(&c))
            {
                return Err(format!(
                    "header {name:?}: letters, digits and '-'; its value is printable ASCII"
                ));
            }
            const OURS: [&str; 8] = [
                "host",
                "content-length",
                "transfer-encoding",
                "connection",
                "content-type",
                "accept-encoding",
                "cookie",
                "authorization",
            ];
            if OURS.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(format!("header {name:?} is set by the gateway alone"));
            }
        }
        match self.proxy.as_deref() {
            None | Some("none") => Ok(()),
            Some(url) if Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https")) => Ok(()),
            Some(_) => Err("proxy is an http:// or https:// URL, or \"none\"".to_owned()),
        }
    }

    fn check_url(&self) -> Result<(), String> {
        let url = &self.base_url;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("base_url holds no credential: use credential = \"env:…\"".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("base_url has neither a query nor a fragment".to_owned());
        }
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => return Err("base_url names no host".to_owned()),
        };
        match url.scheme() {
            "https" => Ok(()),
            "http" if loopback || self.allow_plain_http => Ok(()),
            "http" => Err("base_url is https://, but on loopback or with allow_plain_http = true".to_owned()),
            _ => Err("base_url is https:// or http://".to_owned()),
        }
    }
}

/// A message of the parser's without the value that it found: that may be a credential too.
pub(super) fn without_values(message: &str) -> String {
    let repeats = ["invalid type", "invalid value", "invalid length", "unknown variant"];
    match (repeats.iter().find(|start| message.starts_with(**start)), message.rsplit_once("expected ")) {
        (Some(start), Some((_, expected))) => format!("{start}, expected {expected}"),
        (Some(start), None) => (*start).to_owned(),
        (None, _) => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [[provider]]
        name = "near"
        dialect = "chat"
        base_url = "http://127.0.0.1:9/v"
        credential = "file:/run/secrets/key"
        free = true
        allow = ["*"]
        [cli.codex]
        provider = "near"
    "#;

    fn refused(change: (&str, &str)) -> String {
        assert!(GOOD.contains(change.0), "{change:?}");
        Providers::parse(&GOOD.replace(change.0, change.1)).expect_err(change.1)
    }

    #[test]
    fn the_built_in_table_is_sound() {
        let table = Providers::parse(BUILT_IN).unwrap();
        for dialect in Dialect::ALL {
            assert!(table.providers.iter().any(|provider| provider.dialect == dialect), "{dialect}");
        }
    }

    #[test]
    fn a_file_is_read() {
        let table = Providers::parse(GOOD).unwrap();
        let source = table.providers[0].credential.as_ref().unwrap();
        assert_eq!(source.to_string(), "file /run/secrets/key");
        assert_eq!(table.clis["codex"].provider.as_deref(), Some("near"));
    }

    #[test]
    fn mistakes_are_refused() {
        assert!(refused(("127.0.0.1", "models.example")).contains("https"));
        assert!(refused(("http://", "http://u:p@")).contains("credential"));
        assert!(refused(("/v\"", "/v?key=1\"")).contains("query"));
        assert!(refused(("http:", "ftp:")).contains("https"));
        assert!(refused(("free = true", "free = false")).contains("prices"));
        assert!(refused(("allow = [\"*\"]", "")).contains("allow"));
        assert!(refused(("provider = \"near\"", "provider = \"far\"")).contains("far"));
        assert!(refused(("free = true", "free = true\nfree_of = 1")).contains("free_of"));
        assert!(
            refused(("free = true", "free = true\nheaders = { Host = \"x\" }")).contains("gateway alone")
        );
        assert!(refused(("free = true", "free = true\nproxy = \"socks5://x\"")).contains("proxy"));
    }

    #[test]
    fn policies_are_read_and_mistakes_in_them_refused() {
        let with = |more: &str| Providers::parse(&format!("{GOOD}\n{more}\n"));
        let table = with("[policy.default]\nbudget_usd = 1.0\n[cli.own]\nbudget_usd = 9.0").unwrap();
        assert_eq!(table.policy("never-heard-of").budget_usd, Some(1.0));
        assert_eq!(table.policy("own").budget_usd, Some(9.0));
        assert_eq!(table.policy("codex").provider.as_deref(), Some("near"));
        for wrong in [
            "[policy.default]\ncolour = 1",
            "[policy.default]\nprovider = \"near\"",
            "[policy.codex]\nbudget_usd = 1.0",
            "[policy.default]\nserver_tools = [\"websearch\"]",
            "[cli.x]\nserver_tools = [\"websearch\"]",
        ] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
        let fee = |fee: &str| {
            refused(("free = true", &format!("free = true\nserver_tool_usd_per_call = {{ {fee} }}")))
        };
        assert!(fee("websearch = 0.1").contains("websearch"));
        assert!(fee("web_search = -1").contains("from 0"));
    }

    #[test]
    fn a_credential_in_the_wrong_place_is_not_repeated() {
        let said = refused(("file:/run/secrets/key", "sk-planted-0123456789"));
        assert!(said.contains("env:NAME") && !said.contains("sk-planted"), "{said}");
        let said = refused(("free = true", "free = \"sk-planted-0123456789\""));
        assert!(said.contains("line") && said.contains("boolean") && !said.contains("sk-planted"), "{said}");
        let said = refused(("dialect = \"chat\"", "dialect = \"sk-planted-0123456789\""));
        assert!(said.contains("line") && !said.contains("sk-planted"), "{said}");
    }
}
