//! The settings' source: `KAGE_SECTION_KEY` in the environment, else `[section] key` in the TOML file
//! that `KAGE_CONFIG` names (default `/etc/kage/kage.toml`, if it is there).
//!
//! Secrets are read by `config/secrets.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::config::error::ConfigError;
use crate::secret::resolver::Resolver;
use crate::secret::watched::Secret;

const DEFAULT_FILE: &str = "/etc/kage/kage.toml";

/// Variables that other parts read: they are known, but no setting of a server.
const OTHERS: [&str; 14] = [
    "KAGE_CONFIG",
    "KAGE_URL",
    "KAGE_API_KEY",
    "KAGE_API_KEY_FILE",
    "KAGE_ALLOW_PLAIN_HTTP",
    "KAGE_CA_FILE",
    "KAGE_CLIENT_CERT_FILE",
    "KAGE_CLIENT_KEY_FILE",
    "KAGE_LOG",
    "KAGE_LOG_FORMAT",
    "KAGE_IMAGE_BASE",
    "KAGE_BUILD_CA",
    // Of compose.yaml and quickstart.
    "KAGE_PORT",
    "KAGE_REPOSITORIES_DIR",
];

#[derive(Clone)]
pub(super) struct Value {
    pub text: String,
    pub origin: String,
}

impl std::fmt::Debug for Value {
    /// The text may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value(from {})", self.origin)
    }
}

/// One setting in force, for `kage config`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct InForce {
    pub name: &'static str,
    /// Masked where it is a secret.
    pub value: String,
    pub origin: String,
}

/// All settings that were given, and a record of those that were asked for.
#[derive(Debug, Default)]
pub struct Settings {
    pub(super) given: BTreeMap<String, Value>,
    in_force: Vec<InForce>,
    /// Made when the first secret is read.
    pub(super) resolver: Option<Arc<Resolver>>,
    pub(super) secrets: Vec<Secret>,
    /// Those of them whose new values count without a restart.
    pub(super) watched: Vec<Secret>,
    /// Names of settings that are secrets, given or not.
    pub(super) confidential: BTreeSet<&'static str>,
    /// Names of settings whose items are between commas.
    pub(super) lists: BTreeSet<&'static str>,
}

impl Settings {
    /// # Errors
    /// [`ConfigError`] if the file that `KAGE_CONFIG` names cannot be read or is malformed.
    pub fn load() -> Result<Self, ConfigError> {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with("KAGE_"))
            .map(|(name, value)| match value.into_string() {
                Ok(value) => Ok((name, value)),
                Err(_) => Err(ConfigError::Invalid { name, problem: "not UTF-8".to_owned() }),
            })
            .collect::<Result<_, _>>()?;
        let file = match variables.get("KAGE_CONFIG") {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()),
        };
        Self::from_parts(variables, file.as_deref())
    }

    /// As [`Settings::load`], from given parts.
    ///
    /// # Errors
    /// [`ConfigError`] if the file cannot be read or is malformed.
    pub fn from_parts(variables: BTreeMap<String, String>, file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut given = BTreeMap::new();
        if let Some(path) = file {
            read_file(path, &mut given)?;
        }
        for (name, text) in variables {
            // An empty variable is how Compose spells "not set".
            if !text.is_empty() && !name.starts_with("KAGE_TEST_") {
                given.insert(name, Value { text, origin: "environment".to_owned() });
            }
        }
        Ok(Self { given, ..Self::default() })
    }

    pub(super) fn note(&mut self, name: &'static str, value: impl ToString, origin: Option<String>) {
        let origin = origin.unwrap_or_else(|| "default".to_owned());
        self.in_force.push(InForce { name, value: value.to_string(), origin });
    }

    /// A setting that may be missing.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the variable.
    pub fn optional<T>(&mut self, name: &'static str) -> Result<Option<T>, ConfigError>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let Some(value) = self.given.get(name).cloned() else {
            self.note(name, "", None);
            return Ok(None);
        };
        let parsed = value.text.parse().map_err(|problem: T::Err| ConfigError::Invalid {
            name: name.to_owned(),
            problem: format!("{}{problem} (from {})", wanted::<T::Err>(), value.origin),
        })?;
        self.note(name, value.text, Some(value.origin));
        Ok(Some(parsed))
    }

    /// A setting with a default.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the variable.
    pub fn or<T>(&mut self, name: &'static str, default: T) -> Result<T, ConfigError>
    where
        T: FromStr + ToString,
        T::Err: std::fmt::Display,
    {
        match self.optional(name)? {
            Some(value) => Ok(value),
            None => {
                if let Some(last) = self.in_force.last_mut() {
                    last.value = default.to_string();
                }
                Ok(default)
            }
        }
    }

    /// A number with a default and bounds, both inclusive.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the variable and the bounds.
    pub fn within(
        &mut self,
        name: &'static str,
        default: u64,
        low: u64,
        high: u64,
    ) -> Result<u64, ConfigError> {
        let value = self.or(name, default)?;
        if (low..=high).contains(&value) {
            Ok(value)
        } else {
            let problem = format!("{value} is not between {low} and {high}");
            Err(ConfigError::Invalid { name: name.to_owned(), problem })
        }
    }

    /// A comma-separated list.
    pub fn list(&mut self, name: &'static str) -> Vec<String> {
        let value = self.given.get(name).cloned();
        let items = value.as_ref().map_or_else(Vec::new, |value| {
            value.text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
        });
        self.lists.insert(name);
        self.note(name, items.join(","), value.map(|value| value.origin));
        items
    }

    /// Replaces what was noted of the last setting, where its text holds a secret in part.
    pub fn mask_last(&mut self, shown: String) {
        if let Some(last) = self.in_force.last_mut() {
            last.value = shown;
        }
    }

    pub fn in_force(&self) -> &[InForce] {
        &self.in_force
    }

    /// Refuses what nobody asked for: a misspelt limit must not go unnoticed.
    ///
    /// # Errors
    /// [`ConfigError::Unknown`] with the nearest known name.
    pub fn refuse_unknown(&self, known: &[&str]) -> Result<(), ConfigError> {
        for (name, value) in &self.given {
            if !OTHERS.contains(&name.as_str()) && !known.contains(&name.as_str()) {
                let nearest = known.iter().min_by_key(|candidate| strsim::levenshtein(candidate, name));
                let suggestion = nearest.map(|near| format!("; is {near} meant?")).unwrap_or_default();
                return Err(ConfigError::Unknown {
                    name: name.clone(),
                    origin: value.origin.clone(),
                    suggestion,
                });
            }
        }
        Ok(())
    }
}

/// The form that is wanted, where the parser only says what it stumbled over.
fn wanted<E>() -> &'static str {
    let is_number = std::any::type_name::<E>() == std::any::type_name::<std::num::ParseIntError>();
    if is_number { "a whole number is wanted, without a unit: " } else { "" }
}

fn read_file(path: &Path, given: &mut BTreeMap<String, Value>) -> Result<(), ConfigError> {
    let malformed = |problem: String| ConfigError::Toml { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
        name: "KAGE_CONFIG".to_owned(),
        path: path.to_owned(),
        source,
    })?;
    let table: toml::Table =
        text.parse().map_err(|problem: toml::de::Error| malformed(problem.to_string()))?;
    for (section, value) in table {
        match value {
            toml::Value::Table(keys) => {
                for (key, value) in keys {
                    insert(path, given, &format!("{section}_{key}"), &value).map_err(malformed)?;
                }
            }
            value => insert(path, given, &section, &value).map_err(malformed)?,
        }
    }
    Ok(())
}

fn insert(
    path: &Path,
    given: &mut BTreeMap<String, Value>,
    key: &str,
    value: &toml::Value,
) -> Result<(), String> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Boolean(flag) => flag.to_string(),
        toml::Value::Array(items) => {
            let items: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            items.ok_or_else(|| format!("{key}: a list holds strings"))?.join(",")
        }
        _ => return Err(format!("{key}: must be a string, a number, true, false or a list of strings")),
    };
    let name = format!("KAGE_{}", key.to_ascii_uppercase());
    given.insert(name, Value { text, origin: path.display().to_string() });
    Ok(())
}
