//! `kage audit checkpoint` and `kage audit cosign`: the last checkpoint, and witnesses' signatures of it.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use chrono::DateTime;
use serde_json::json;
use sqlx::PgPool;

use crate::cli::audit;
use crate::cli::audit_source::Source;
use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::{self, Configuration};
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::trail::checkpoint::{self, Checkpoint};
use crate::trail::note::Note;

/// # Errors
/// [`CliError::Host`] if there is none yet.
pub async fn checkpoint(globals: &Globals) -> Result<Exit, CliError> {
    let note = match Source::open().await? {
        Source::Database(pool) => last(&pool).await.map_err(CliError::Host)?,
        Source::Server(client) => client.audit_checkpoint().await?,
    };
    if globals.json {
        output::json(&json!({ "checkpoint": note }))?;
        return Ok(Exit::Success);
    }
    // A signed note is lines of text; a server's may be anything.
    note.trim_end_matches('\n').lines().try_for_each(|line| output::line(&escape::line(line)))?;
    Ok(Exit::Success)
}

async fn last(pool: &PgPool) -> anyhow::Result<String> {
    let mut connection = pool.acquire().await?;
    let note = db::trail::note(&mut connection, None).await?.context("there is no checkpoint yet")?;
    let size = Checkpoint::parse(&Note::parse(&note)?.text)?.size;
    let lines = db::trail::cosignatures(&mut connection, size).await?;
    Ok(lines.into_iter().fold(note, |note, line| note + &line + "\n"))
}

/// Takes what known witnesses signed of a checkpoint that this log made, and nothing else.
///
/// # Errors
/// [`CliError::Host`] says what is not accepted.
pub async fn run(file: &Path, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = Configuration::load_with_database()?;
    let witnesses = host::witnesses(&configuration.sequencer)?;
    let keys = audit::keys(&[])?;
    let pool = configuration.pool(Zone::Owner).await?;
    let accept = async {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let note = Note::parse(&text)?;
        let signed = checkpoint::open_by_any(&text, &keys)?;
        let found = checkpoint::witnessed(&note, &witnesses)?;
        if found.is_empty() {
            return Err(anyhow!("no signature by a witness that KAGE_AUDIT_WITNESSES names"));
        }
        let mut transaction = pool.begin().await?;
        let stored = db::trail::note(&mut transaction, Some(signed.size)).await?;
        let stored = stored.map(|stored| Note::parse(&stored)).transpose()?;
        if stored.is_none_or(|stored| stored.text != note.text) {
            return Err(anyhow!("the log has no such checkpoint of {} entries", signed.size));
        }
        let mut taken = Vec::new();
        for one in found {
            let at = i64::try_from(one.time).ok().and_then(|time| DateTime::from_timestamp(time, 0));
            let at = at.context("a time that cannot be")?;
            let line = one.line.to_string();
            if db::trail::add_cosignature(&mut transaction, signed.size, &one.witness, &line, at).await? {
                taken.push(one.witness);
            }
        }
        let entry = Entry {
            actor: Actor::Host,
            action: "audit.cosign",
            object: format!("checkpoint:{}", signed.size),
            outcome: Outcome::Done,
            details: json!({ "witnesses": taken }),
        };
        if !taken.is_empty() {
            db::audit::append(&mut transaction, &entry).await?;
        }
        transaction.commit().await?;
        Ok(taken)
    };
    let taken = accept.await.map_err(CliError::Host)?;
    if globals.json {
        output::json(&json!({ "taken": taken }))?;
    } else {
        taken.iter().try_for_each(|witness| output::line(&format!("taken: {witness}")))?;
    }
    Ok(Exit::Success)
}
