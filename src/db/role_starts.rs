//! Start and stop of each role, with its settings and what of them has changed since it last began.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::types::Json;

use crate::db::audit;
use crate::db::error::DbError;
use crate::domain::audit::{Actor, Entry, Outcome};

/// A role as a process has it.
#[derive(Debug, Clone, Copy)]
pub struct Role<'a> {
    /// `api`, `runner`, `gateway` or `sequencer`.
    pub name: &'a str,
    /// Of `KAGE_INSTANCE`: starts of one instance are held against one another.
    pub instance: &'a str,
    pub version: &'a str,
}

impl Role<'_> {
    fn entry(&self, action: &'static str, outcome: Outcome, mut details: Value) -> Entry {
        details["instance"] = json!(self.instance);
        details["version"] = json!(self.version);
        let object = format!("role:{}", self.name);
        Entry { actor: Actor::Host, action, object, outcome, details }
    }
}

/// # Errors
/// [`DbError`]: a role that cannot say so does not begin.
pub async fn started(
    pool: &PgPool,
    role: Role<'_>,
    settings: &BTreeMap<String, String>,
    sha256: &str,
) -> Result<(), DbError> {
    let mut transaction = pool.begin().await?;
    let before: Option<Json<BTreeMap<String, String>>> = sqlx::query_scalar("SELECT last_settings($1, $2)")
        .bind(role.name)
        .bind(role.instance)
        .fetch_one(&mut *transaction)
        .await?;
    let changed = before.map(|Json(before)| changes(&before, settings));
    let details = json!({ "settings": settings, "settings_sha256": sha256, "changed": changed });
    let entry = role.entry("role.start", Outcome::Done, details);
    audit::append(&mut transaction, &entry).await?;
    Ok(transaction.commit().await?)
}

/// `failed`: it ended although nobody asked it to, or did not come to begin.
///
/// # Errors
/// [`DbError`].
pub async fn stopped(pool: &PgPool, role: Role<'_>, failed: bool) -> Result<(), DbError> {
    let outcome = if failed { Outcome::Failed } else { Outcome::Done };
    let mut connection = pool.acquire().await?;
    audit::append(&mut connection, &role.entry("role.stop", outcome, json!({}))).await
}

/// Of each setting that is another one now, what it was and what it is.
fn changes(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Value {
    let names = before.keys().chain(now.keys());
    let changed = names.filter(|name| before.get(*name) != now.get(*name));
    let pair = |name: &String| json!({ "from": before.get(name), "to": now.get(name) });
    Value::Object(changed.map(|name| (name.clone(), pair(name))).collect())
}
