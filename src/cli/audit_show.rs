//! `kage audit show`: one task's story for a person, in the order of the log.

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::db::trail::Filter;

/// More than any task has.
const MOST: i64 = 100_000;
/// Of the details, on a line.
const WIDTH: usize = 160;

/// # Errors
/// [`CliError::Host`] if there is no such task in the log.
pub async fn run(task: Uuid, globals: &Globals) -> Result<Exit, CliError> {
    let pool = Configuration::load_with_database()?.pool(Zone::Owner).await?;
    let filter = Filter { task: Some(task), ..Filter::default() };
    let read = async {
        let mut connection = pool.acquire().await?;
        db::trail::placed(&mut connection, &filter, (0, i64::MAX as u64), MOST).await
    };
    let placed = read.await.context("database").map_err(CliError::Host)?;
    if placed.is_empty() {
        return Err(CliError::Host(anyhow!("the log has nothing of task {task}")));
    }
    for entry in placed {
        let row: Value = serde_json::from_str(entry.row.as_deref().unwrap_or("null")).unwrap_or_default();
        if globals.json {
            output::json(&json!({ "index": entry.index, "entry": row }))?;
        } else {
            output::line(&escape::line(&told(entry.index, &row)))?;
        }
    }
    Ok(Exit::Success)
}

fn told(index: i64, row: &Value) -> String {
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
    format!("{index:>6}  {at}  {who}{from}  {}{outcome}  {}  {details}", text("action"), text("object"))
}
