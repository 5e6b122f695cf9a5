//! Sessions of people, and the rows among the keys under which their use is booked.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use crate::db::error::DbError;
use crate::db::rights::{self, RightsColumns};
use crate::domain::access::{Quotas, Rights};
use crate::domain::person::Identity;
use crate::domain::session;
use crate::wire;

/// Days for which a session is kept that has ended by itself.
const KEPT_DAYS: i32 = 30;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SessionRow {
    pub id: String,
    pub person_id: String,
    pub issuer: String,
    pub subject: String,
    pub name: String,
    pub scopes: Vec<String>,
    pub repositories: Option<Vec<String>>,
    pub clis: Option<Vec<String>>,
    pub runs_at_once: Option<i32>,
    pub runs_a_day: Option<i32>,
    pub micros_a_day: Option<i64>,
    pub created_at: DateTime<Utc>,
    pub last_used_at: DateTime<Utc>,
    pub idle_secs: i32,
    pub expires_at: DateTime<Utc>,
}

impl SessionRow {
    /// # Errors
    /// [`DbError::Inconsistent`]: then the session can do nothing.
    pub fn rights(&self) -> Result<Rights, DbError> {
        let columns = RightsColumns {
            scopes: &self.scopes,
            repositories: self.repositories.as_deref(),
            clis: self.clis.as_deref(),
            runs_at_once: self.runs_at_once,
            runs_a_day: self.runs_a_day,
            micros_a_day: self.micros_a_day,
            // What its holder makes ends with it.
            expires_at: Some(self.expires_at),
        };
        columns.read("sessions", &self.id)
    }

    /// # Errors
    /// [`DbError::Inconsistent`].
    pub fn identity(&self) -> Result<Identity, DbError> {
        Identity::new(&self.issuer, &self.subject)
            .ok_or_else(|| DbError::inconsistent("people", "subject", &self.person_id, "not plain"))
    }

    /// Keys with quotas that its runs count against.
    pub fn charged(&self) -> Vec<String> {
        let limited = self.runs_at_once.is_some() || self.runs_a_day.is_some() || self.micros_a_day.is_some();
        limited.then(|| self.person_id.clone()).into_iter().collect()
    }

    pub fn to_wire(&self) -> wire::session::Session {
        wire::session::Session {
            id: self.id.clone(),
            issuer: self.issuer.clone(),
            subject: self.subject.clone(),
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            repositories: self.repositories.clone(),
            clis: self.clis.clone(),
            runs_at_once: self.runs_at_once.map(i32::unsigned_abs),
            runs_a_day: self.runs_a_day.map(i32::unsigned_abs),
            usd_a_day: self.micros_a_day.map(|micros| micros as f64 / 1e6),
            created_at: self.created_at,
            last_used_at: self.last_used_at,
            idle_secs: self.idle_secs.unsigned_abs(),
            expires_at: self.expires_at,
        }
    }
}

/// A session to be made.
pub struct NewSession<'a> {
    pub secret_sha256: &'a [u8; 32],
    pub person_id: &'a str,
    pub name: &'a str,
    pub rights: &'a Rights,
    pub idle_secs: u32,
    pub absolute_secs: u32,
}

/// The row among the keys under which a person's use is booked; its quotas are these from now on.
///
/// # Errors
/// [`DbError`].
pub async fn person(
    connection: &mut PgConnection,
    identity: &Identity,
    name: &str,
    quotas: Quotas,
) -> Result<String, DbError> {
    // Two first sign-ins of one person make one row.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 17))")
        .bind(identity.to_string())
        .execute(&mut *connection)
        .await?;
    let known: Option<String> =
        sqlx::query_scalar("SELECT key_id FROM people WHERE issuer = $1 AND subject = $2")
            .bind(identity.issuer())
            .bind(identity.subject())
            .fetch_optional(&mut *connection)
            .await?;
    let (runs_at_once, runs_a_day) = (rights::quota(quotas.runs_at_once), rights::quota(quotas.runs_a_day));
    if let Some(id) = known {
        sqlx::query(
            "UPDATE api_keys SET runs_at_once = $2, runs_a_day = $3, micros_a_day = $4
             WHERE id = $1 AND (runs_at_once, runs_a_day, micros_a_day) IS DISTINCT FROM ($2, $3, $4)",
        )
        .bind(&id)
        .bind(runs_at_once)
        .bind(runs_a_day)
        .bind(quotas.micros_a_day)
        .execute(&mut *connection)
        .await?;
        return Ok(id);
    }
    let id = session::person_id();
    // No secret has this hash: these are random bits, and nobody keeps them.
    let nobody: [u8; 32] = rand::random();
    sqlx::query(
        "INSERT INTO api_keys (id, name, secret_sha256, kind, runs_at_once, runs_a_day, micros_a_day, made_by)
         VALUES ($1, $2, $3, 'person', $4, $5, $6, 'sign-in')",
    )
    .bind(&id)
    .bind(name)
    .bind(&nobody[..])
    .bind(runs_at_once)
    .bind(runs_a_day)
    .bind(quotas.micros_a_day)
    .execute(&mut *connection)
    .await?;
    sqlx::query("INSERT INTO people (key_id, issuer, subject) VALUES ($1, $2, $3)")
        .bind(&id)
        .bind(identity.issuer())
        .bind(identity.subject())
        .execute(connection)
        .await?;
    Ok(id)
}

/// Makes a session: its id. Those that ended by themselves long ago go.
///
/// # Errors
/// [`DbError`].
pub async fn insert(connection: &mut PgConnection, new: &NewSession<'_>) -> Result<String, DbError> {
    sqlx::query("DELETE FROM sessions WHERE expires_at < now() - make_interval(days => $1)")
        .bind(KEPT_DAYS)
        .execute(&mut *connection)
        .await?;
    let (id, quotas) = (session::session_id(), new.rights.quotas);
    let scopes: Vec<&str> = new.rights.scopes.iter().map(|scope| scope.as_str()).collect();
    sqlx::query(
        "INSERT INTO sessions (id, secret_sha256, person_id, name, scopes, repositories, clis, runs_at_once,
                               runs_a_day, micros_a_day, idle_secs, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, now() + make_interval(secs => $12))",
    )
    .bind(&id)
    .bind(&new.secret_sha256[..])
    .bind(new.person_id)
    .bind(new.name)
    .bind(scopes)
    .bind(rights::names(new.rights.repositories.as_ref()))
    .bind(rights::names(new.rights.clis.as_ref()))
    .bind(rights::quota(quotas.runs_at_once))
    .bind(rights::quota(quotas.runs_a_day))
    .bind(quotas.micros_a_day)
    .bind(rights::quota(Some(new.idle_secs)))
    .bind(f64::from(new.absolute_secs))
    .execute(connection)
    .await?;
    Ok(id)
}

/// The session whose cookie was shown, if it is taken; and whether its last use was noted more than a minute ago.
///
/// # Errors
/// [`DbError`].
pub async fn find_shown(pool: &PgPool, sha256: &[u8; 32]) -> Result<Option<(SessionRow, bool)>, DbError> {
    #[derive(sqlx::FromRow)]
    struct Shown {
        #[sqlx(flatten)]
        row: SessionRow,
        use_is_due: bool,
    }
    let shown: Option<Shown> = sqlx::query_as(
        "SELECT s.*, p.issuer, p.subject, s.last_used_at < now() - interval '1 minute' AS use_is_due
         FROM sessions s JOIN people p ON p.key_id = s.person_id
         WHERE s.secret_sha256 = $1 AND session_is_taken(s)",
    )
    .bind(&sha256[..])
    .fetch_optional(pool)
    .await?;
    Ok(shown.map(|shown| (shown.row, shown.use_is_due)))
}

/// Notes the use of a session that is taken, at most once a minute.
///
/// # Errors
/// [`DbError`].
pub async fn touch(pool: &PgPool, id: &str) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE sessions s SET last_used_at = now()
         WHERE id = $1 AND last_used_at < now() - interval '1 minute' AND session_is_taken(s)",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(())
}

/// Those that are taken, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn list(pool: &PgPool) -> Result<Vec<SessionRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT s.*, p.issuer, p.subject FROM sessions s JOIN people p ON p.key_id = s.person_id
         WHERE session_is_taken(s) ORDER BY s.created_at, s.id",
    )
    .fetch_all(pool)
    .await?)
}

/// One that is taken, locked until the transaction ends.
///
/// # Errors
/// [`DbError`].
pub async fn lock(connection: &mut PgConnection, id: &str) -> Result<Option<SessionRow>, DbError> {
    let row = sqlx::query_as(
        "SELECT s.*, p.issuer, p.subject FROM sessions s JOIN people p ON p.key_id = s.person_id
         WHERE s.id = $1 AND session_is_taken(s) FOR UPDATE OF s",
    );
    Ok(row.bind(id).fetch_optional(connection).await?)
}

/// How a session ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    SignedOut,
    Revoked,
    /// Its browser has signed in anew.
    Replaced,
}

impl Ended {
    const fn as_str(self) -> &'static str {
        match self {
            Self::SignedOut => "signed_out",
            Self::Revoked => "revoked",
            Self::Replaced => "replaced",
        }
    }
}

/// False if there is no such session, or it has ended already.
///
/// # Errors
/// [`DbError`].
pub async fn end(connection: &mut PgConnection, id: &str, how: Ended) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE sessions SET ended_at = now(), ended_how = $2 WHERE id = $1 AND ended_at IS NULL",
    );
    Ok(done.bind(id).bind(how.as_str()).execute(connection).await?.rows_affected() == 1)
}
