//! API keys: SHA-256 of secrets only. What a key may do is written once. Rows of people (`db/sessions.rs`) are none.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use crate::db::error::DbError;
use crate::db::rights::{self, RightsColumns};
use crate::domain::access::Rights;
use crate::wire;

/// Serialises changes of keys and sessions by their holders, who hold their own meanwhile: two could await each other.
const CHANGES_LOCK: i64 = 0x6b61_6765_0003;
/// Serialises what depends on there being no key.
const FIRST_KEY_LOCK: i64 = 0x6b61_6765_0001;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct KeyRow {
    pub id: String,
    pub name: String,
    pub secret_sha256: Vec<u8>,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
    pub scopes: Vec<String>,
    pub repositories: Option<Vec<String>>,
    pub clis: Option<Vec<String>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub runs_at_once: Option<i32>,
    pub runs_a_day: Option<i32>,
    pub micros_a_day: Option<i64>,
    pub charged: Vec<String>,
    pub made_by: Option<String>,
    pub previous_sha256: Option<Vec<u8>>,
    pub previous_until: Option<DateTime<Utc>>,
    pub rotated_at: Option<DateTime<Utc>>,
}

impl KeyRow {
    /// # Errors
    /// [`DbError::Inconsistent`]: then the key can do nothing.
    pub fn rights(&self) -> Result<Rights, DbError> {
        let columns = RightsColumns {
            scopes: &self.scopes,
            repositories: self.repositories.as_deref(),
            clis: self.clis.as_deref(),
            runs_at_once: self.runs_at_once,
            runs_a_day: self.runs_a_day,
            micros_a_day: self.micros_a_day,
            expires_at: self.expires_at,
        };
        columns.read("api_keys", &self.id)
    }

    pub fn to_wire(&self) -> wire::key::Key {
        wire::key::Key {
            id: self.id.clone(),
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            repositories: self.repositories.clone(),
            clis: self.clis.clone(),
            runs_at_once: self.runs_at_once.map(i32::unsigned_abs),
            runs_a_day: self.runs_a_day.map(i32::unsigned_abs),
            usd_a_day: self.micros_a_day.map(|micros| micros as f64 / 1e6),
            made_by: self.made_by.clone(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            last_used_at: self.last_used_at,
            rotated_at: self.rotated_at,
            previous_until: self.previous_until,
            revoked_at: self.revoked_at,
        }
    }
}

/// A secret that was shown and taken: as long as it is, its streams go on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bearer {
    pub key_id: String,
    pub secret_sha256: [u8; 32],
}

/// A key to be made.
pub struct NewKey<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub secret_sha256: &'a [u8; 32],
    pub rights: &'a Rights,
    /// Keys with quotas that its maker counts against; it counts against them too.
    pub charged: &'a [String],
    /// A key's id, or who else.
    pub made_by: &'a str,
}

/// # Errors
/// [`DbError`].
pub async fn insert(connection: &mut PgConnection, new: &NewKey<'_>) -> Result<KeyRow, DbError> {
    let quotas = new.rights.quotas;
    let mut charged = new.charged.to_vec();
    if !quotas.is_unlimited() {
        charged.push(new.id.to_owned());
    }
    charged.sort();
    charged.dedup();
    let scopes: Vec<&str> = new.rights.scopes.iter().map(|scope| scope.as_str()).collect();
    Ok(sqlx::query_as(
        "INSERT INTO api_keys (id, name, secret_sha256, scopes, repositories, clis, expires_at, runs_at_once, runs_a_day,
                               micros_a_day, charged, made_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING *",
    )
    .bind(new.id)
    .bind(new.name)
    .bind(&new.secret_sha256[..])
    .bind(scopes)
    .bind(rights::names(new.rights.repositories.as_ref()))
    .bind(rights::names(new.rights.clis.as_ref()))
    .bind(new.rights.expires_at)
    .bind(rights::quota(quotas.runs_at_once))
    .bind(rights::quota(quotas.runs_a_day))
    .bind(quotas.micros_a_day)
    .bind(charged)
    .bind(new.made_by)
    .fetch_one(connection)
    .await?)
}

/// A key that was shown, with what the database's clock says of it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ShownKey {
    #[sqlx(flatten)]
    pub row: KeyRow,
    /// Neither revoked nor expired.
    pub is_active: bool,
    /// The secret before the last rotation is taken too.
    pub previous_is_taken: bool,
    /// Its last use was noted more than a minute ago.
    pub use_is_due: bool,
}

/// # Errors
/// [`DbError`].
pub async fn find_shown(pool: &PgPool, id: &str) -> Result<Option<ShownKey>, DbError> {
    Ok(sqlx::query_as(
        "SELECT *, revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) AS is_active,
                coalesce(previous_until > now(), false) AS previous_is_taken,
                last_used_at IS NULL OR last_used_at < now() - interval '1 minute' AS use_is_due
         FROM api_keys WHERE id = $1 AND kind = 'key'",
    )
    .bind(id)
    .fetch_optional(pool)
    .await?)
}

/// A key, whatever became of it.
///
/// # Errors
/// [`DbError`].
pub async fn find(pool: &PgPool, id: &str) -> Result<Option<KeyRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM api_keys WHERE id = $1 AND kind = 'key'")
        .bind(id)
        .fetch_optional(pool)
        .await?)
}

/// As [`find`]; locked until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn lock(connection: &mut PgConnection, id: &str) -> Result<Option<KeyRow>, DbError> {
    let row = sqlx::query_as("SELECT * FROM api_keys WHERE id = $1 AND kind = 'key' FOR UPDATE");
    Ok(row.bind(id).fetch_optional(connection).await?)
}

/// Those of the given secrets that are still taken.
///
/// # Errors
/// [`DbError`].
pub async fn still_taken(pool: &PgPool, bearers: &[Bearer]) -> Result<Vec<Bearer>, DbError> {
    let ids: Vec<&str> = bearers.iter().map(|bearer| bearer.key_id.as_str()).collect();
    let hashes: Vec<&[u8]> = bearers.iter().map(|bearer| &bearer.secret_sha256[..]).collect();
    let places: Vec<i64> = sqlx::query_scalar(
        "SELECT b.place FROM unnest($1::text[], $2::bytea[]) WITH ORDINALITY AS b (id, sha256, place)
         WHERE bearer_is_taken(b.id, b.sha256)",
    )
    .bind(ids)
    .bind(hashes)
    .fetch_all(pool)
    .await?;
    let at = |place: i64| usize::try_from(place - 1).ok().and_then(|place| bearers.get(place)).cloned();
    Ok(places.into_iter().filter_map(at).collect())
}

/// Whether a secret is taken; if so, its key or session can be neither revoked nor rotated until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn hold(connection: &mut PgConnection, bearer: &Bearer) -> Result<bool, DbError> {
    sqlx::query(
        "WITH k AS MATERIALIZED (SELECT id FROM api_keys WHERE id = $1 AND kind = 'key' FOR SHARE),
              s AS MATERIALIZED (SELECT id FROM sessions WHERE id = $1 FOR SHARE)
         SELECT (SELECT count(*) FROM k) + (SELECT count(*) FROM s)",
    )
    .bind(&bearer.key_id)
    .execute(&mut *connection)
    .await?;
    // Asked anew: a statement sees what was committed before it began, and the one above may have waited.
    is_taken(connection, bearer).await
}

/// Whether a secret is taken now.
///
/// # Errors
/// [`DbError`].
pub async fn is_taken(connection: &mut PgConnection, bearer: &Bearer) -> Result<bool, DbError> {
    Ok(sqlx::query_scalar("SELECT bearer_is_taken($1, $2)")
        .bind(&bearer.key_id)
        .bind(&bearer.secret_sha256[..])
        .fetch_one(connection)
        .await?)
}

/// Nobody else who asks for this changes a key or session until the transaction ends. To be asked before anything is held.
///
/// # Errors
/// [`DbError`].
pub async fn change_alone(connection: &mut PgConnection) -> Result<(), DbError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(CHANGES_LOCK).execute(connection).await?;
    Ok(())
}

/// Notes the use, at most once a minute.
///
/// # Errors
/// [`DbError`].
pub async fn touch(pool: &PgPool, id: &str) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE api_keys SET last_used_at = now()
         WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(())
}

/// # Errors
/// [`DbError`].
pub async fn list(pool: &PgPool) -> Result<Vec<KeyRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM api_keys WHERE kind = 'key' ORDER BY created_at, id")
        .fetch_all(pool)
        .await?)
}

/// False if there is no such key, or it is revoked already.
///
/// # Errors
/// [`DbError`].
pub async fn revoke(connection: &mut PgConnection, id: &str) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND kind = 'key' AND revoked_at IS NULL",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Gives an active key another secret; the one before is taken for `overlap_secs` more, one before that no longer.
/// `None` if there is no such key, or it is revoked or has expired.
///
/// # Errors
/// [`DbError`].
pub async fn rotate(
    connection: &mut PgConnection,
    id: &str,
    secret_sha256: &[u8; 32],
    overlap_secs: u32,
) -> Result<Option<KeyRow>, DbError> {
    Ok(sqlx::query_as(
        "UPDATE api_keys SET previous_sha256 = secret_sha256, secret_sha256 = $2, rotated_at = now(),
                             previous_until = now() + make_interval(secs => $3)
         WHERE id = $1 AND kind = 'key' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) RETURNING *",
    )
    .bind(id)
    .bind(&secret_sha256[..])
    .bind(f64::from(overlap_secs))
    .fetch_optional(connection)
    .await?)
}

/// Whether no key was ever made. Nobody else can make a first one until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn none_yet(connection: &mut PgConnection) -> Result<bool, DbError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(FIRST_KEY_LOCK).execute(&mut *connection).await?;
    Ok(sqlx::query_scalar("SELECT NOT EXISTS (SELECT FROM api_keys WHERE kind = 'key')")
        .fetch_one(connection)
        .await?)
}
