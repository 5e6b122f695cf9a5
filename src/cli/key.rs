//! `kage key`: on the host, with the database owner's rights. There is no default key.

use std::collections::BTreeSet;

use anyhow::{Context as _, anyhow};
use chrono::{TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::cli::duration::Span;
use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::db::error::DbError;
use crate::db::keys::KeyRow;
use crate::domain::access::Scope;
use crate::domain::api_key;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::name::Name;
use crate::wire::key::{Key, MAX_OVERLAP_SECS, NewKey};

/// Make, list, show, rotate and revoke API keys (on the server's host)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key; it is shown once, here
    Create(Box<Create>),
    /// List keys, without their secrets
    List,
    /// Show one key, without its secret
    Show { id: String },
    /// Give a key another secret; the present one is taken until the overlap ends
    Rotate {
        id: String,
        /// How long the present secret is still taken, such as 24h; 0s ends it now
        #[arg(long, default_value = "24h")]
        overlap: Span,
    },
    /// Revoke a key by its id: at once, with its open streams
    Revoke { id: String },
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("rights").required(true).multiple(false).args(["admin", "scope"])))]
struct Create {
    /// What the key is for
    #[arg(long)]
    name: String,
    /// It may do everything (within the limits below)
    #[arg(long)]
    admin: bool,
    /// What it may do: tasks:read, tasks:write, results:merge, repos:write, audit:read, keys:admin; more than one if given again
    #[arg(long)]
    scope: Vec<Scope>,
    /// Nothing but this repository exists for it; more than one if given again
    #[arg(long)]
    repo: Vec<Name>,
    /// Nothing but this CLI exists for it; more than one if given again
    #[arg(long)]
    cli: Vec<Name>,
    /// When it ends, such as 90d
    #[arg(long)]
    expires: Option<Span>,
    /// Runs that work at once; others wait
    #[arg(long)]
    runs_at_once: Option<u32>,
    /// Runs submitted in a day (UTC)
    #[arg(long)]
    runs_a_day: Option<u32>,
    /// USD spent on models in a day (UTC)
    #[arg(long)]
    usd_a_day: Option<f64>,
}

impl Create {
    fn asked(&self) -> NewKey {
        let limit =
            |names: &[Name]| (!names.is_empty()).then(|| names.iter().cloned().collect::<BTreeSet<_>>());
        NewKey {
            name: self.name.clone(),
            scopes: if self.admin { [Scope::Admin].into() } else { self.scope.iter().copied().collect() },
            repositories: limit(&self.repo),
            clis: limit(&self.cli),
            expires_at: self.expires.map(|span| Utc::now() + TimeDelta::seconds(i64::from(span.secs))),
            runs_at_once: self.runs_at_once,
            runs_a_day: self.runs_a_day,
            usd_a_day: self.usd_a_day,
        }
    }
}

fn entry(action: &'static str, id: &str, details: Value) -> Entry {
    Entry { actor: Actor::Host, action, object: format!("key:{id}"), outcome: Outcome::Done, details }
}

fn database(error: DbError) -> CliError {
    CliError::Host(anyhow::Error::new(error).context("database"))
}

fn no_active_key(id: &str) -> CliError {
    CliError::Host(anyhow!("there is no active key {id:?}"))
}

/// # Errors
/// [`CliError::Host`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = Configuration::load_with_database()?;
    let pool = configuration.pool(Zone::Owner).await?;
    match args.command {
        Command::Create(create) => {
            let (row, shown) = make(&pool, &create.asked()).await?;
            show_secret(&row, &shown, globals)?;
        }
        Command::List => list(&db::keys::list(&pool).await.map_err(database)?, globals)?,
        Command::Show { id } => {
            let row = db::keys::find(&pool, &id).await.map_err(database)?;
            let row = row.ok_or_else(|| CliError::Host(anyhow!("there is no key {id:?}")))?;
            let key = row.to_wire();
            if globals.json { output::json(&key)? } else { show(&key)? }
        }
        Command::Rotate { id, overlap } => {
            if overlap.secs > MAX_OVERLAP_SECS {
                return Err(CliError::Usage("--overlap: at most 30d".to_owned()));
            }
            let rotated = rotate(&pool, &id, overlap.secs).await.map_err(database)?;
            let (row, shown) = rotated.ok_or_else(|| no_active_key(&id))?;
            show_secret(&row, &shown, globals)?;
        }
        Command::Revoke { id } => {
            if !revoke(&pool, &id).await.map_err(database)? {
                return Err(no_active_key(&id));
            }
            if globals.json {
                output::json(&json!({ "revoked": id }))?;
            } else {
                output::line(&format!("revoked {}", escape::line(&id)))?;
            }
        }
    }
    Ok(Exit::Success)
}

async fn make(pool: &PgPool, asked: &NewKey) -> Result<(KeyRow, SecretString), CliError> {
    let rights =
        asked.rights().map_err(|problem| CliError::Usage(format!("--{}", problem.replace('_', "-"))))?;
    let (key, shown) = api_key::generate();
    let write = async {
        let mut transaction = pool.begin().await?;
        let new = db::keys::NewKey {
            id: &key.id,
            name: &asked.name,
            secret_sha256: &key.secret_sha256,
            rights: &rights,
            charged: &[],
            made_by: "host",
        };
        let row = db::keys::insert(&mut transaction, &new).await?;
        let entry = entry("key.create", &key.id, json!({ "asked": asked }));
        db::audit::append(&mut transaction, &entry).await?;
        transaction.commit().await?;
        Ok::<KeyRow, DbError>(row)
    };
    let row = write.await.context("database").map_err(CliError::Host)?;
    Ok((row, shown))
}

async fn rotate(
    pool: &PgPool,
    id: &str,
    overlap_secs: u32,
) -> Result<Option<(KeyRow, SecretString)>, DbError> {
    let (secret_sha256, shown) = api_key::renew(id);
    let mut transaction = pool.begin().await?;
    let rotated = db::keys::rotate(&mut transaction, id, &secret_sha256, overlap_secs).await?;
    let Some(row) = rotated else { return Ok(None) };
    let details = json!({ "name": row.name, "overlap_secs": overlap_secs });
    db::audit::append(&mut transaction, &entry("key.rotate", id, details)).await?;
    transaction.commit().await?;
    db::notify::send(pool, db::notify::KEYS, id).await?;
    Ok(Some((row, shown)))
}

async fn revoke(pool: &PgPool, id: &str) -> Result<bool, DbError> {
    let mut transaction = pool.begin().await?;
    if !db::keys::revoke(&mut transaction, id).await? {
        return Ok(false);
    }
    db::audit::append(&mut transaction, &entry("key.revoke", id, json!({}))).await?;
    transaction.commit().await?;
    db::notify::send(pool, db::notify::KEYS, id).await?;
    Ok(true)
}

fn show_secret(row: &KeyRow, shown: &SecretString, globals: &Globals) -> Result<(), CliError> {
    if globals.json {
        let mut value = json!(row.to_wire());
        value["key"] = json!(shown.expose_secret());
        output::json(&value)?;
    } else {
        output::line(shown.expose_secret())?;
        output::note("this key is not shown again; give it to clients as KAGE_API_KEY");
    }
    Ok(())
}

fn list(rows: &[KeyRow], globals: &Globals) -> Result<(), CliError> {
    let keys: Vec<Key> = rows.iter().map(KeyRow::to_wire).collect();
    if globals.json {
        output::json(&keys)?;
        return Ok(());
    }
    for key in keys {
        let used = key.last_used_at.map_or("never used".to_owned(), |at| format!("used {at}"));
        let text = format!("{}  {}  {}  {}  {used}", key.id, key.name, state(&key), key.scopes.join(","));
        output::line(&escape::line(&text))?;
    }
    Ok(())
}

fn state(key: &Key) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {at}"),
        (None, Some(at)) if at <= Utc::now() => format!("expired {at}"),
        _ => "active".to_owned(),
    }
}

fn show(key: &Key) -> Result<(), CliError> {
    let names =
        |limit: &Option<Vec<String>>| limit.as_ref().map_or("all".to_owned(), |names| names.join(", "));
    let number = |limit: Option<String>| limit.unwrap_or_else(|| "no limit".to_owned());
    let time = |at: Option<chrono::DateTime<Utc>>| at.map_or("never".to_owned(), |at| at.to_string());
    for (field, value) in [
        ("id", key.id.clone()),
        ("name", key.name.clone()),
        ("state", state(key)),
        ("scopes", key.scopes.join(", ")),
        ("repositories", names(&key.repositories)),
        ("clis", names(&key.clis)),
        ("runs at once", number(key.runs_at_once.map(|runs| runs.to_string()))),
        ("runs a day", number(key.runs_a_day.map(|runs| runs.to_string()))),
        ("usd a day", number(key.usd_a_day.map(|usd| usd.to_string()))),
        ("made by", key.made_by.clone().unwrap_or_else(|| "unknown".to_owned())),
        ("created", key.created_at.to_string()),
        ("expires", time(key.expires_at)),
        ("last used", time(key.last_used_at)),
        ("rotated", time(key.rotated_at)),
        ("former secret taken until", time(key.previous_until)),
    ] {
        output::line(&escape::line(&format!("{field}: {value}")))?;
    }
    Ok(())
}
