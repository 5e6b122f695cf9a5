//! A cut, put back into an empty schema: one transaction, and so all of it or nothing.
//!
//! Triggers have done their work when the rows were first written, and foreign keys want an order that rows do not have:
//! both are off meanwhile, and the keys are checked when they come back.

use sqlx::postgres::PgCopyIn;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};

use crate::db::cut::{Partition, Sequence, Table, list, partitions, quoted, spell, tables};
use crate::db::error::DbError;
use crate::db::restoring;

#[derive(Debug, sqlx::FromRow)]
struct ForeignKey {
    on: String,
    name: String,
    definition: String,
}

/// Every table is locked until it ends.
#[derive(Debug)]
pub struct Reload {
    transaction: Transaction<'static, Postgres>,
    tables: Vec<Table>,
    keys: Vec<ForeignKey>,
}

/// The first table of any schema of ours that has rows; none if there is no table at all, too.
///
/// # Errors
/// [`DbError`].
pub async fn with_rows(connection: &mut PgConnection) -> Result<Option<String>, DbError> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND c.relname <> ALL (ARRAY['_sqlx_migrations', $1]) ORDER BY 1",
    )
    .bind(restoring::TABLE)
    .fetch_all(&mut *connection)
    .await?;
    for name in names {
        let statement = format!("SELECT EXISTS (SELECT FROM {})", quoted(&name));
        if sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut *connection).await? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

impl Reload {
    /// # Errors
    /// [`DbError`].
    pub async fn begin(pool: &PgPool) -> Result<Self, DbError> {
        let mut transaction = pool.begin().await?;
        spell(&mut transaction).await?;
        let tables = tables(&mut transaction).await?;
        let keys: Vec<ForeignKey> = sqlx::query_as(
            "SELECT c.relname::text AS on, k.conname::text AS name, pg_get_constraintdef(k.oid) AS definition
             FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = k.connamespace
             WHERE n.nspname = 'public' AND k.contype = 'f' AND k.conparentid = 0 ORDER BY 1, 2",
        )
        .fetch_all(&mut *transaction)
        .await?;
        let mut this = Self { transaction, tables, keys };
        for key in &this.keys {
            let statement = format!("ALTER TABLE {} DROP CONSTRAINT {}", quoted(&key.on), quoted(&key.name));
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *this.transaction).await?;
        }
        this.triggers("DISABLE").await?;
        Ok(this)
    }

    async fn triggers(&mut self, how: &str) -> Result<(), DbError> {
        for table in &self.tables {
            let statement = format!("ALTER TABLE {} {how} TRIGGER USER", quoted(&table.name));
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Whether the schema has just this table.
    pub fn knows(&self, table: &Table) -> bool {
        self.tables.contains(table)
    }

    pub fn count(&self) -> usize {
        self.tables.len()
    }

    /// Makes a partition that the schema does not have; whether it could be. A bound goes into a statement, so nothing but one of
    /// times, numbers and ids is taken.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn partition(&mut self, wanted: &Partition) -> Result<bool, DbError> {
        if partitions(&mut self.transaction).await?.contains(wanted) {
            return Ok(true);
        }
        let is_word = |name: &str| {
            (1..=63).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        let known: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                            WHERE n.nspname = 'public' AND c.relkind = 'p' AND c.relname = $1)",
        )
        .bind(&wanted.parent)
        .fetch_one(&mut *self.transaction)
        .await?;
        if !known || !is_word(&wanted.name) || !is_plain_bound(&wanted.bound) {
            return Ok(false);
        }
        let (name, parent) = (quoted(&wanted.name), quoted(&wanted.parent));
        let statement = format!("CREATE TABLE {name} PARTITION OF {parent} {}", wanted.bound);
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *self.transaction).await?;
        Ok(true)
    }

    /// Takes rows as the cut gave them. The caller has asked [`Reload::knows`].
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn rows(&mut self, table: &Table) -> Result<PgCopyIn<&mut PgConnection>, DbError> {
        let statement = format!("COPY {} ({}) FROM STDIN", quoted(&table.name), list(&table.columns));
        Ok(self.transaction.copy_in_raw(&statement).await?)
    }

    /// Whether there is such a sequence.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn sequence(&mut self, sequence: &Sequence) -> Result<bool, DbError> {
        let set: Option<i64> = sqlx::query_scalar("SELECT setval(to_regclass($1), $2, $3)")
            .bind(format!("public.{}", quoted(&sequence.name)))
            .bind(sequence.last)
            .bind(sequence.called)
            .fetch_one(&mut *self.transaction)
            .await?;
        Ok(set.is_some())
    }

    /// Foreign keys and triggers as they were. A row that names one that is not there is refused here.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn arm(&mut self) -> Result<(), DbError> {
        for key in &self.keys {
            let (on, name) = (quoted(&key.on), quoted(&key.name));
            let statement = format!("ALTER TABLE {on} ADD CONSTRAINT {name} {}", key.definition);
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *self.transaction).await?;
        }
        self.triggers("ENABLE").await
    }

    /// # Errors
    /// [`DbError`].
    pub async fn commit(self) -> Result<(), DbError> {
        Ok(self.transaction.commit().await?)
    }
}

/// `DEFAULT`, or `FOR VALUES FROM (…) TO (…)` with plain values, as Postgres spells them.
fn is_plain_bound(bound: &str) -> bool {
    let is_value = |text: &str| {
        let inner = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or(text);
        let plain = |byte: u8| byte.is_ascii_hexdigit() || b" :.+-".contains(&byte);
        matches!(text, "MINVALUE" | "MAXVALUE")
            || (!inner.is_empty() && !inner.contains("--") && inner.bytes().all(plain))
    };
    let range = bound.strip_prefix("FOR VALUES FROM (").and_then(|rest| rest.strip_suffix(')'));
    let ends = range.and_then(|range| range.split_once(") TO ("));
    bound == "DEFAULT" || ends.is_some_and(|(from, to)| is_value(from) && is_value(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_no_statement() {
        for good in [
            "DEFAULT",
            "FOR VALUES FROM ('2026-11-01 00:00:00+00') TO ('2026-12-01 00:00:00+00')",
            "FOR VALUES FROM (MINVALUE) TO ('2026-12-01')",
            "FOR VALUES FROM ('019af000-0000-0000-0000-000000000000') TO (MAXVALUE)",
        ] {
            assert!(is_plain_bound(good), "{good}");
        }
        for bad in [
            "",
            "DEFAULT; DROP TABLE tasks",
            "FOR VALUES FROM ('a') TO ('b'); COPY tasks TO PROGRAM ('x')",
            "FOR VALUES FROM (pg_sleep(1)) TO (1)",
            "FOR VALUES FROM ('1') TO ('1') PARTITION BY LIST (a)",
            "FOR VALUES FROM (1--1) TO (2)",
            "FOR VALUES FROM (1 /* */) TO (2)",
        ] {
            assert!(!is_plain_bound(bad), "{bad}");
        }
    }
}
