//! API keys as those who manage them see them. A secret is in the answer that makes it, and nowhere else.

use std::collections::BTreeSet;

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::access::{Quotas, Rights, Scope};
use crate::domain::name::Name;
use crate::wire::moment;

/// Most bytes of a key's name.
pub const NAME_BYTES: usize = 100;
/// Most seconds for which a rotated secret is taken: 30 days.
pub const MAX_OVERLAP_SECS: u32 = 30 * 86_400;
/// Seconds; a day.
pub const DEFAULT_OVERLAP_SECS: u32 = 86_400;
/// Far from where sums overflow.
const MAX_USD: f64 = 1e6;

/// A key to be made. What is left out is not limited; no part may go beyond what the maker's key has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What it is for: 1 to 100 bytes without control characters.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
    /// At least one.
    #[schema(min_items = 1)]
    pub scopes: BTreeSet<Scope>,
    /// Names of the repositories that exist for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub repositories: Option<BTreeSet<Name>>,
    /// Names of the CLIs that exist for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub clis: Option<BTreeSet<Name>>,
    #[serde(default, deserialize_with = "moment::read", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// Runs that work at once; others wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1_000_000)]
    pub runs_at_once: Option<u32>,
    /// Runs submitted in a day (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1_000_000)]
    pub runs_a_day: Option<u32>,
    /// USD spent on models in a day (UTC), to the millionth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub usd_a_day: Option<f64>,
}

impl NewKey {
    /// What it asks for.
    ///
    /// # Errors
    /// Names the field that is not as it must be.
    pub fn rights(&self) -> Result<Rights, String> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES || self.name.chars().any(char::is_control) {
            return Err(format!("name: 1 to {NAME_BYTES} bytes without control characters"));
        }
        if self.scopes.is_empty() {
            return Err("scopes: at least one".to_owned());
        }
        for (field, runs) in [("runs_at_once", self.runs_at_once), ("runs_a_day", self.runs_a_day)] {
            if runs.is_some_and(|runs| runs > 1_000_000) {
                return Err(format!("{field}: at most 1000000"));
            }
        }
        if self.usd_a_day.is_some_and(|usd| !(0.0..=MAX_USD).contains(&usd)) {
            return Err(format!("usd_a_day: 0 to {MAX_USD}"));
        }
        Ok(Rights {
            scopes: self.scopes.clone(),
            repositories: self.repositories.clone(),
            clis: self.clis.clone(),
            quotas: Quotas {
                runs_at_once: self.runs_at_once,
                runs_a_day: self.runs_a_day,
                micros_a_day: self.usd_a_day.map(|usd| (usd * 1e6).round() as i64),
            },
            // As exactly as it is stored: who has the same end has no less.
            expires_at: self.expires_at.map(|end| end.trunc_subsecs(6)),
        })
    }
}

/// A key without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Key {
    /// Public; part of the key.
    pub id: String,
    pub name: String,
    pub scopes: Vec<String>,
    /// `null`: all of them.
    pub repositories: Option<Vec<String>>,
    /// `null`: all of them.
    pub clis: Option<Vec<String>>,
    pub runs_at_once: Option<u32>,
    pub runs_a_day: Option<u32>,
    pub usd_a_day: Option<f64>,
    /// Who made it: a key's id, or `host`.
    pub made_by: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    /// To the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    pub rotated_at: Option<DateTime<Utc>>,
    /// Until then the secret before the last rotation is taken too.
    pub previous_until: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Keys {
    pub keys: Vec<Key>,
}

/// A key with its secret: this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct ShownKey {
    #[serde(flatten)]
    pub shown: Key,
    /// What clients send as `X-API-Key`. It is not stored, and not shown again.
    pub key: String,
}

/// How a secret is to be replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Seconds for which the present secret is still taken: 0 to 2592000 (30 days), default 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 2_592_000, default = 86_400)]
    pub overlap_secs: Option<u32>,
}

/// The key that asks, and what it has used today (UTC).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OwnKey {
    #[serde(flatten)]
    pub key: Key,
    /// Where the key has quotas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Used {
    /// Runs that work now.
    pub runs_at_work: u64,
    pub runs_today: u64,
    /// Spent, and held for calls that are under way.
    pub usd_today: f64,
}
