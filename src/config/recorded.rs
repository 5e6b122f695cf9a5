//! The settings in force as the audit trail may have them: of a secret only whether there is one.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};
use url::Url;

use crate::config::secrets::MASK;
use crate::config::settings::{InForce, Settings};

/// Settings that name a file of further configuration. What is in it is told by its SHA-256.
const FILES: [&str; 8] = [
    "KAGE_GATEWAY_PROVIDERS",
    "KAGE_GATEWAY_CA_FILE",
    "KAGE_VAULT_CA_FILE",
    "KAGE_API_TLS_CERT",
    "KAGE_API_TLS_CLIENT_CA",
    "KAGE_OIDC_RIGHTS",
    "KAGE_OIDC_CA_FILE",
    "KAGE_WEBHOOKS_FILE",
];

impl Settings {
    /// The settings in force as a terminal may show them.
    pub fn shown(&self) -> Vec<InForce> {
        let mut settings = self.in_force().to_vec();
        for setting in &mut settings {
            let value = setting.value.as_str();
            let is_list = self.lists.contains(setting.name);
            setting.value = if is_list { each(value, without_query) } else { without_query(value) };
        }
        settings
    }

    /// Name and value of each; of a secret `set` or `unset`, of a URL no path, for there tokens are.
    pub fn recorded(&self) -> BTreeMap<String, String> {
        let mut recorded = BTreeMap::new();
        for setting in self.in_force() {
            let (name, value) = (setting.name, setting.value.as_str());
            let shown = match (self.confidential.contains(name) || value == MASK, value) {
                (true, "") => "unset".to_owned(),
                (true, _) => "set".to_owned(),
                (false, value) if self.lists.contains(name) => each(value, without_tail),
                (false, value) => without_tail(value),
            };
            if FILES.contains(&name) && !value.is_empty() {
                recorded.insert(format!("{name} sha256"), digest(Path::new(value)));
            }
            recorded.insert(name.to_owned(), shown);
        }
        recorded
    }
}

/// One hash over all that is recorded.
pub fn hash(recorded: &BTreeMap<String, String>) -> String {
    let mut digest = Sha256::new();
    for part in recorded.iter().flat_map(|(name, value)| [name, value]) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize())
}

fn digest(path: &Path) -> String {
    std::fs::read(path).map_or_else(|error| error.to_string(), |text| hex::encode(Sha256::digest(text)))
}

fn each(list: &str, shown: impl Fn(&str) -> String) -> String {
    list.split(',').map(shown).collect::<Vec<_>>().join(",")
}

/// A URL without what its query says, for there tokens are. Of a database's the parameters are known, and masked already.
fn without_query(item: &str) -> String {
    match Url::parse(item) {
        Ok(mut url) if url.query().is_some() && !url.scheme().starts_with("postgres") => {
            url.set_query(None);
            format!("{url}?…")
        }
        _ => item.to_owned(),
    }
}

/// Of a database's URL the path is its name, and its password is masked already.
fn without_tail(item: &str) -> String {
    let Ok(mut url) = Url::parse(item) else { return item.to_owned() };
    if url.scheme().starts_with("postgres") {
        let query = if url.query().is_some() { "?…" } else { "" };
        url.set_query(None);
        return format!("{url}{query}");
    }
    let Some(host) = url.host_str() else { return without_query(item) };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let tail = if url.path().len() > 1 || url.query().is_some() { "/…" } else { "" };
    format!("{}://{host}{port}{tail}", url.scheme())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::database::DatabaseConfig;
    use crate::config::edge::EdgeConfig;
    use crate::config::gateway::GatewayConfig;
    use crate::config::sequencer::SequencerConfig;

    #[test]
    fn no_secret_is_in_it_and_every_change_is() {
        let recorded = |pairs: &[(&str, &str)]| {
            let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let mut settings = Settings::from_parts(variables.collect(), None).unwrap();
            DatabaseConfig::from_settings(&mut settings).unwrap();
            EdgeConfig::from_settings(&mut settings).unwrap();
            SequencerConfig::from_settings(&mut settings).unwrap();
            GatewayConfig::from_settings(&mut settings).unwrap();
            (settings.recorded(), settings.shown())
        };
        let planted = [
            ("KAGE_DATABASE_URL", "postgres://me:planted@db/kage?application_name=planted,planted"),
            ("KAGE_DATABASE_PASSWORD", "planted"),
            ("KAGE_GATEWAY_PROXY", "http://me:planted@proxy:3128"),
            ("KAGE_SEQUENCER_KEY", "planted"),
            ("KAGE_SEQUENCER_ANCHOR_HTTP", "https://hooks.example:8443/planted?planted,planted"),
            ("KAGE_SEQUENCER_ANCHOR_SYSLOG", "tcp://logs.example:514?token=a,planted"),
            ("KAGE_API_CORS_ORIGINS", "https://a.example,https://b.example"),
        ];
        let (with, in_terminal) = recorded(&planted);
        let anchor = in_terminal.iter().find(|setting| setting.name == "KAGE_SEQUENCER_ANCHOR_HTTP").unwrap();
        assert_eq!(anchor.value, "https://hooks.example:8443/planted?…");
        assert!(!format!("{with:?}").contains("planted"), "{with:#?}");
        for (name, value) in [
            ("KAGE_DATABASE_URL", "postgres://me:********@db/kage?…"),
            ("KAGE_DATABASE_PASSWORD", "set"),
            ("KAGE_SEQUENCER_KEY", "set"),
            ("KAGE_API_TLS_KEY", "unset"),
            ("KAGE_GATEWAY_PROXY", "set"),
            ("KAGE_SEQUENCER_ANCHOR_HTTP", "https://hooks.example:8443/…"),
            ("KAGE_API_CORS_ORIGINS", "https://a.example,https://b.example"),
            ("KAGE_API_RATE_KEY", "6000"),
        ] {
            assert_eq!(with.get(name).map(String::as_str), Some(value), "{name}");
        }
        let without = recorded(&planted[..2]).0;
        assert_eq!(without["KAGE_SEQUENCER_KEY"], "unset");
        assert_eq!((hash(&with), hash(&with) == hash(&without)), (hash(&recorded(&planted).0), false));
    }
}
