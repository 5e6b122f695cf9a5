//! One consistent cut of every table, as `COPY` writes it, and the shape that it has.
//!
//! The tables come from the catalogue, not from a list: what a migration adds is part of the next backup.

use futures::stream::BoxStream;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};

use crate::db::error::DbError;
use crate::db::restoring;

/// What is nowhere else of use: the schema's own record, that of a restore, who is signed in or about to be, and which runners are
/// there.
const LEFT_OUT: [&str; 5] = ["_sqlx_migrations", restoring::TABLE, "runners", "sessions", "sign_ins"];
/// How values are spelled; the same when they are read again.
const SPELLING: &str =
    "SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL timezone = 'UTC'; SET LOCAL intervalstyle = 'postgres';
    SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1; SET LOCAL client_encoding = 'UTF8'";
/// Retention may drop a partition between the look at the names and the lock.
const TRIES: usize = 10;

/// A table, with its partitions as one.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Table {
    pub name: String,
    /// Without generated ones.
    pub columns: Vec<String>,
    /// The primary key; empty: the rows come in no order.
    pub key: Vec<String>,
}

/// One partition of a table, with its bound in Postgres's words.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Partition {
    pub parent: String,
    pub name: String,
    pub bound: String,
}

/// Where a sequence stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    pub name: String,
    pub last: i64,
    pub called: bool,
}

/// A branch that a run left, as the database names it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Branch {
    pub repository: String,
    pub branch: String,
    pub commit_hash: String,
}

/// An open snapshot. Writers go on; a table cannot be dropped or truncated meanwhile.
#[derive(Debug)]
pub struct Cut {
    transaction: Transaction<'static, Postgres>,
    pub tables: Vec<Table>,
    pub partitions: Vec<Partition>,
}

impl Cut {
    /// # Errors
    /// [`DbError`].
    pub async fn open(pool: &PgPool) -> Result<Self, DbError> {
        for _ in 0..TRIES {
            let before = tables(&mut *pool.acquire().await?).await?;
            let mut transaction = pool.begin().await?;
            // Locks come before the snapshot, which the first query takes: what is locked then is what is seen.
            let list: Vec<String> = before.iter().map(|table| quoted(&table.name)).collect();
            let begin = format!(
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; {SPELLING}; LOCK TABLE {} IN ACCESS SHARE MODE",
                list.join(", ")
            );
            match sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *transaction).await {
                Ok(_) => {}
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => continue,
                Err(error) => return Err(error.into()),
            }
            let tables = tables(&mut transaction).await?;
            if tables == before {
                let partitions = partitions(&mut transaction).await?;
                return Ok(Self { transaction, tables, partitions });
            }
        }
        Err(DbError::Settings("the schema changes all the time: is a migration under way?".to_owned()))
    }

    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Rows as `COPY` writes them: a line each, in the order of the key.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn rows(
        &mut self,
        table: &Table,
    ) -> Result<BoxStream<'_, Result<bytes::Bytes, sqlx::Error>>, DbError> {
        let order =
            if table.key.is_empty() { String::new() } else { format!(" ORDER BY {}", list(&table.key)) };
        let statement =
            format!("COPY (SELECT {} FROM {}{order}) TO STDOUT", list(&table.columns), quoted(&table.name));
        Ok(self.transaction.copy_out_raw(&statement).await?)
    }

    /// Later than the snapshot, and so never behind it.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn sequences(&mut self) -> Result<Vec<Sequence>, DbError> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = 'public' AND c.relkind = 'S' ORDER BY 1",
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let mut sequences = Vec::new();
        for name in names {
            let statement = format!("SELECT last_value, is_called FROM {}", quoted(&name));
            let (last, called) =
                sqlx::query_as(AssertSqlSafe(statement)).fetch_one(&mut *self.transaction).await?;
            sequences.push(Sequence { name, last, called });
        }
        Ok(sequences)
    }

    /// Names of registered repositories, and whether each has been fetched.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn repositories(&mut self) -> Result<Vec<(String, bool)>, DbError> {
        let statement =
            "SELECT name, fetched_at IS NOT NULL FROM repositories WHERE state <> 'removing' ORDER BY name";
        Ok(sqlx::query_as(statement).fetch_all(&mut *self.transaction).await?)
    }

    /// Branches of runs whose repository is registered.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn branches(&mut self) -> Result<Vec<Branch>, DbError> {
        // Retention takes branches away, and says so here.
        let let_go: bool = sqlx::query_scalar("SELECT to_regclass('public.let_go') IS NOT NULL")
            .fetch_one(&mut *self.transaction)
            .await?;
        let kept = if let_go {
            "AND NOT EXISTS (SELECT FROM let_go l WHERE l.task_id = t.id AND l.what = 'results')"
        } else {
            ""
        };
        let statement = format!(
            "SELECT t.repository, r.branch, r.commit_hash FROM runs r JOIN tasks t ON t.id = r.task_id
             WHERE r.branch IS NOT NULL AND r.commit_hash IS NOT NULL {kept}
               -- A repository that was removed and added again has nothing of what was before.
               AND EXISTS (SELECT FROM repositories p
                           WHERE p.name = t.repository AND p.state <> 'removing' AND t.created_at >= p.created_at)
             ORDER BY t.repository, r.branch"
        );
        Ok(sqlx::query_as(AssertSqlSafe(statement)).fetch_all(&mut *self.transaction).await?)
    }

    /// # Errors
    /// [`DbError`].
    pub async fn close(self) -> Result<(), DbError> {
        Ok(self.transaction.rollback().await?)
    }
}

/// The key that names files of backups; made if there is none.
///
/// # Errors
/// [`DbError`].
pub async fn name_key(connection: &mut PgConnection, fresh: [u8; 32]) -> Result<Vec<u8>, DbError> {
    sqlx::query("INSERT INTO backup_name_key (key) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(fresh.as_slice())
        .execute(&mut *connection)
        .await?;
    Ok(sqlx::query_scalar("SELECT key FROM backup_name_key").fetch_one(connection).await?)
}

/// Versions of the migrations that were applied, with their checksums, in order.
///
/// # Errors
/// [`DbError`].
pub async fn schema(connection: &mut PgConnection) -> Result<Vec<(i64, Vec<u8>)>, DbError> {
    let statement = "SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version";
    Ok(sqlx::query_as(statement).fetch_all(connection).await?)
}

pub(super) async fn spell(connection: &mut PgConnection) -> Result<(), DbError> {
    sqlx::raw_sql(SPELLING).execute(connection).await?;
    Ok(())
}

pub(super) async fn tables(connection: &mut PgConnection) -> Result<Vec<Table>, DbError> {
    Ok(sqlx::query_as(
        "SELECT c.relname::text AS name,
                ARRAY(SELECT a.attname::text FROM pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                      ORDER BY a.attnum) AS columns,
                -- A partitioned table may have none of its own.
                ARRAY(SELECT a.attname::text FROM pg_attribute a
                      JOIN (SELECT indrelid, indkey::smallint[] AS columns FROM pg_index
                            WHERE indisprimary AND (indrelid = c.oid
                                  OR indrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))
                            ORDER BY indrelid <> c.oid, indrelid LIMIT 1) i
                        ON a.attrelid = i.indrelid AND a.attnum = ANY (i.columns)
                      ORDER BY array_position(i.columns, a.attnum)) AS key
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> ALL ($1)
         ORDER BY c.relname",
    )
    .bind(LEFT_OUT.map(str::to_owned).to_vec())
    .fetch_all(connection)
    .await?)
}

pub(super) async fn partitions(connection: &mut PgConnection) -> Result<Vec<Partition>, DbError> {
    Ok(sqlx::query_as(
        "SELECT p.relname::text AS parent, c.relname::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
         FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
              JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'public' AND c.relispartition AND c.relkind = 'r'
         ORDER BY 1, 2",
    )
    .fetch_all(connection)
    .await?)
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn list(names: &[String]) -> String {
    names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}
