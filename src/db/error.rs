//! What can go wrong between us and Postgres.

use crate::db::stale_plans;
use crate::metrics::database::Failure;
use crate::metrics::metrics;

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No connection, it broke, or is of no use any more: worth another try.
    #[error("the database does not answer: {}", plain(.0))]
    Unavailable(sqlx::Error),
    /// The fence: this run is leased to somebody else, or has ended.
    #[error("the lease on run {0} is lost")]
    LeaseLost(uuid::Uuid),
    #[error("the database has no schema yet: run `kage migrate`")]
    SchemaMissing,
    #[error(
        "the database's schema is older than this program ({VERSION}): it lacks migration {0}. Run `kage migrate`"
    )]
    SchemaOlder(i64),
    #[error(
        "the database's schema is newer than this program ({VERSION}): it has migration {has}, known are those up to {known}. Start the \
         release that migrated it; no `kage migrate` leads back, a backup of before does"
    )]
    SchemaNewer { has: i64, known: i64 },
    #[error(
        "migration {0} of the database's schema is another one than this program's ({VERSION}): a build that was never released \
         made it. Start that build, or restore a backup; `kage migrate` leaves it alone"
    )]
    SchemaChanged(i64),
    #[error(
        "migration {0} of the database's schema was begun and has not ended: restore a backup of before, or end it by hand and say \
         so in _sqlx_migrations; `kage migrate` leaves it alone"
    )]
    SchemaTorn(i64),
    #[error(
        "a restore was begun in this database and has not ended, so nothing starts on it. Run the same `kage restore` again, which \
         goes on from where it was; or make an empty database and restore into that (docs/backup.md)"
    )]
    Restoring,
    #[error(
        "{0}. Nothing of this migration was kept, those before it were: put right what it says, then run `kage migrate` again"
    )]
    Migrate(#[source] sqlx::migrate::MigrateError),
    #[error(
        "a migration could not have its tables for {0} s: end the transactions that hold them (a dump, a forgotten session), or \
         stop the roles, then run `kage migrate` again"
    )]
    MigrationHeldUp(u64),
    #[error("database setting is wrong: {0}")]
    Settings(String),
    #[error(transparent)]
    Config(#[from] crate::config::error::ConfigError),
    /// A row that this program could not have written.
    #[error("inconsistent row in {table}.{column} of {id}: {problem}")]
    Inconsistent { table: &'static str, column: &'static str, id: String, problem: String },
    #[error("database: {}", plain(.0))]
    Driver(sqlx::Error),
}

/// Without the line of Postgres's own source, which tells a reader nothing. The text is whole here, so the driver's
/// error is not named as a source: whoever prints the chain would say it twice, with the line.
fn plain(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        error => error.to_string(),
    }
}

impl DbError {
    pub(crate) fn inconsistent(
        table: &'static str,
        column: &'static str,
        id: impl ToString,
        problem: impl ToString,
    ) -> Self {
        Self::Inconsistent { table, column, id: id.to_string(), problem: problem.to_string() }
    }

    /// Whether trying again later can help. Of what Postgres refuses, all but what it refuses for good: the data (22), a constraint
    /// (23), a statement that it does not know or allow (42), a limit of the program (54). The rest passes, by itself or by somebody's
    /// doing: a full disk, a cancelled query, a deadlock, a server that takes no writes.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Driver(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| !is_of(&code, &["22", "23", "42", "54", "P0"]))
            }
            _ => false,
        }
    }

    /// Whether the row itself is at fault, so that no further try can help: its data (22), a constraint (23), a limit of the
    /// program (54).
    pub fn is_permanent(&self) -> bool {
        let Self::Driver(sqlx::Error::Database(error)) = self else { return false };
        error.code().is_some_and(|code| is_of(&code, &["22", "23", "54"]))
    }

    /// Whether somebody else held a lock for longer than was waited for it.
    pub fn is_lock_timeout(&self) -> bool {
        matches!(self, Self::Driver(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03"))
    }

    /// Whether a unique constraint refused the row.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Driver(sqlx::Error::Database(error)) if error.is_unique_violation())
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let unavailable = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Tls(_)
            | sqlx::Error::BeginFailed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Protocol(_) => true,
            // 57P01-03: shutting down, crashed, starting up. 08*: connection. 53300: too many clients. 25P03: ended since we stood still
            // in a transaction.
            sqlx::Error::Database(error) => {
                let away = |code: &str| is_of(code, &["08", "57P"]) || matches!(code, "53300" | "25P03");
                error.code().is_some_and(|code| away(&code)) || stale_plans::heed(&**error)
            }
            _ => false,
        };
        metrics().database.failed(failure(&error, unavailable));
        if unavailable { Self::Unavailable(error) } else { Self::Driver(error) }
    }
}

fn is_of(code: &str, classes: &[&str]) -> bool {
    classes.iter().any(|class| code.starts_with(class))
}

fn failure(error: &sqlx::Error, unavailable: bool) -> Failure {
    let code = match error {
        sqlx::Error::PoolTimedOut => return Failure::Exhausted,
        sqlx::Error::Database(error) => error.code(),
        _ => None,
    };
    match code.as_deref() {
        _ if unavailable => Failure::Unavailable,
        Some("40P01" | "40001" | "55P03") => Failure::Conflict,
        Some("42501") => Failure::Forbidden,
        // Integrity constraints.
        Some(code) if code.starts_with("23") => Failure::Constraint,
        _ => Failure::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error;

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    /// As the driver shows Postgres's errors.
    #[derive(Debug, thiserror::Error)]
    #[error("permission denied at line 821")]
    struct FromPostgres(&'static str);

    impl DatabaseError for FromPostgres {
        fn message(&self) -> &'static str {
            "permission denied"
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }
        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    #[test]
    fn postgres_is_quoted_once_and_without_its_own_line() {
        let error = DbError::from(sqlx::Error::Database(Box::new(FromPostgres("42501"))));
        let told = format!("{:#}", anyhow::Error::new(error).context("key"));
        assert_eq!(told, "key: database: permission denied");
    }

    #[test]
    fn only_what_is_refused_for_good_is_not_tried_again() {
        let is_transient =
            |code| DbError::from(sqlx::Error::Database(Box::new(FromPostgres(code)))).is_transient();
        for code in ["53100", "53200", "57014", "25006", "25P03", "55P03", "40001", "40P01", "57P01", "58030"]
        {
            assert!(is_transient(code), "{code}");
        }
        for code in ["22021", "23514", "42501", "42P01", "54000"] {
            assert!(!is_transient(code), "{code}");
        }
        assert!(!DbError::LeaseLost(uuid::Uuid::nil()).is_transient());
    }
}
