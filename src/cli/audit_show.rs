//! `kage audit show`: one task's story for a person, in the order of the log.

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::cli::audit_source::Source;
use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::trail::Filter;
use crate::trail::canonical;
use crate::trail::tree::leaf_hash;
use crate::wire::audit::AuditFilter;

/// More than any task has.
const MOST: i64 = 100_000;
/// Of the details, on a line.
const WIDTH: usize = 160;

/// # Errors
/// [`CliError::Host`] if there is no such task in the log.
pub async fn run(task: Uuid, globals: &Globals) -> Result<Exit, CliError> {
    let entries = match Source::open().await? {
        Source::Database(pool) => of_database(&pool, task).await?,
        Source::Server(client) => {
            let filter = AuditFilter { task: Some(task), limit: Some(500), ..AuditFilter::default() };
            let entries = client.audit_entries(filter).await?;
            entries.into_iter().map(|entry| Told::new(entry.index, &entry.hash, entry.entry)).collect()
        }
    };
    if entries.is_empty() {
        return Err(CliError::Host(anyhow!("the log has nothing of task {task}")));
    }
    let whole = entries.iter().all(|entry| entry.as_recorded);
    for entry in &entries {
        if globals.json {
            let Told { index, row, as_recorded } = entry;
            output::json(&json!({ "index": index, "as_recorded": as_recorded, "entry": row }))?;
        } else {
            output::line(&escape::line(&told(entry)))?;
        }
    }
    if whole {
        return Ok(Exit::Success);
    }
    output::note("CHANGED: the entry is not the one that was put into the log; see `kage audit verify`");
    Ok(Exit::Failed)
}

/// An entry, and whether it fits the hash that was recorded with its place. That the hash is the one that was signed, only `verify` tells.
struct Told {
    index: u64,
    row: Value,
    as_recorded: bool,
}

impl Told {
    fn new(index: u64, hash: &str, row: Value) -> Self {
        let leaf = canonical::canonical(&row);
        let as_recorded = leaf.is_ok_and(|leaf| hex::encode(leaf_hash(&leaf)) == hash);
        Self { index, row, as_recorded }
    }
}

async fn of_database(pool: &PgPool, task: Uuid) -> Result<Vec<Told>, CliError> {
    let filter = Filter { task: Some(task), ..Filter::default() };
    let read = async {
        let mut connection = pool.acquire().await?;
        db::trail::placed(&mut connection, &filter, (0, i64::MAX as u64), MOST).await
    };
    let placed = read.await.context("database").map_err(CliError::Host)?;
    Ok(placed
        .iter()
        .map(|entry| {
            // As the sequencer read it: what is no canonical form is not as it was recorded either.
            let leaf = entry.row.as_deref().and_then(|row| canonical::leaf(row).ok());
            let row = leaf.as_deref().and_then(|leaf| canonical::parse(leaf).ok()).unwrap_or_default();
            Told::new(entry.index.unsigned_abs(), &hex::encode(&entry.hash), row)
        })
        .collect())
}

fn told(entry: &Told) -> String {
    let Told { index, row, as_recorded } = entry;
    let text = |name: &str| row[name].as_str().unwrap_or("?");
    let who = match row["actor_id"].as_str() {
        Some(id) => format!("{} {id}", text("actor_kind")),
        None => text("actor_kind").to_owned(),
    };
    let from = ["address", "route", "request_id"].map(|name| row[name].as_str());
    let from: Vec<&str> = from.into_iter().flatten().collect();
    let from = if from.is_empty() { String::new() } else { format!("  ({})", from.join(", ")) };
    let mut details = row["details"].to_string();
    if details.len() > WIDTH {
        let end = (0..=WIDTH).rev().find(|end| details.is_char_boundary(*end)).unwrap_or(0);
        details.truncate(end);
        details.push('…');
    }
    let outcome = if text("outcome") == "done" { String::new() } else { format!(" [{}]", text("outcome")) };
    let at = text("at").get(..19).unwrap_or("?").replace('T', " ");
    let changed = if *as_recorded { "" } else { "  CHANGED" };
    format!(
        "{index:>6}{changed}  {at}  {who}{from}  {}{outcome}  {}  {details}",
        text("action"),
        text("object")
    )
}
