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
use crate::db::visible::Visible;
use crate::domain::access::Scope;
use crate::domain::api_key;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::name::Name;
use crate::wire::key::{Key, MAX_OVERLAP_SECS, NewKey};

/// Make, list, show, rotate and revoke API keys (on the server's host, with its database; generate needs neither)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key; it is shown once, here
    Create(Box<Create>),
    /// Print a new key for KAGE_API_FIRST_KEY_FILE: no database is asked, and no server knows it until it starts with it
    Generate,
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
    if matches!(args.command, Command::Generate) {
        return generate(globals);
    }
    let configuration = Configuration::load_with_database()?;
    let pool = configuration.pool(Zone::Owner).await?;
    match args.command {
        Command::Generate => return generate(globals),
        Command::Create(create) => {
            let asked = create.asked();
            let (row, shown) = make(&pool, &asked).await?;
            for doubt in doubts(&pool, &asked).await.map_err(database)? {
                output::note(&doubt);
            }
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

fn generate(globals: &Globals) -> Result<Exit, CliError> {
    let (key, shown) = api_key::generate();
    if globals.json {
        output::json(&json!({ "id": key.id, "key": shown.expose_secret() }))?;
    } else {
        output::line(shown.expose_secret())?;
        output::note("no server knows this key yet; put it into the file that KAGE_API_FIRST_KEY_FILE names");
    }
    Ok(Exit::Success)
}

/// What about a new key is allowed, and hardly meant.
async fn doubts(pool: &PgPool, asked: &NewKey) -> Result<Vec<String>, DbError> {
    let mut doubts = Vec::new();
    let mut connection = pool.acquire().await?;
    for name in asked.repositories.iter().flatten() {
        if db::repositories::find(&mut connection, &Visible::EVERYTHING, name.as_str()).await?.is_none() {
            doubts.push(format!("note: there is no repository {:?} yet (kage repo list)", name.as_str()));
        }
    }
    for name in asked.clis.iter().flatten() {
        if db::images::find(&mut connection, name.as_str()).await?.is_none() {
            doubts.push(format!("note: there is no CLI {:?} yet (kage image list)", name.as_str()));
        }
    }
    let limited = asked.repositories.is_some() || asked.clis.is_some();
    if limited && asked.scopes.contains(&Scope::AuditRead) {
        doubts.push(
            "note: audit:read reads nothing for a key that is limited to repositories or CLIs".to_owned(),
        );
    }
    Ok(doubts)
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
        let scopes = key.scopes.join(",");
        let text = format!(
            "{}  {}  {}  {scopes}  {used}{}",
            key.id,
            key.name,
            state(&key),
            limits(&key, Utc::now())
        );
        output::line(&escape::line(&text))?;
    }
    Ok(())
}

/// What it may not do, and when it ends; nothing for a key without limits.
fn limits(key: &Key, now: chrono::DateTime<Utc>) -> String {
    let number = |what: &str, limit: Option<String>| limit.map(|limit| format!("{what} {limit}"));
    let coming = |what: &str, at: Option<chrono::DateTime<Utc>>| {
        at.filter(|at| key.revoked_at.is_none() && *at > now).map(|at| format!("{what} {at}"))
    };
    let all = [
        number("repositories", key.repositories.as_ref().map(|names| names.join(","))),
        number("clis", key.clis.as_ref().map(|names| names.join(","))),
        number("runs at once", key.runs_at_once.map(|runs| runs.to_string())),
        number("runs a day", key.runs_a_day.map(|runs| runs.to_string())),
        number("usd a day", key.usd_a_day.map(|usd| usd.to_string())),
        coming("ends", key.expires_at),
        coming("former secret ends", key.previous_until),
    ];
    all.into_iter().flatten().map(|limit| format!("  {limit}")).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_key_says_what_binds_it_and_when_it_ends() {
        let now = Utc::now();
        let (end, former) = (now + TimeDelta::days(90), now + TimeDelta::hours(1));
        let mut key: Key = serde_json::from_value(json!({
            "id": "i", "name": "n", "scopes": ["tasks:read"], "repositories": null, "clis": null,
            "runs_at_once": null, "runs_a_day": null, "usd_a_day": null, "made_by": null, "created_at": now,
            "expires_at": null, "last_used_at": null, "rotated_at": null, "previous_until": null, "revoked_at": null,
        }))
        .unwrap();
        assert_eq!(limits(&key, now), "");
        key.repositories = Some(vec!["demo".to_owned(), "other".to_owned()]);
        (key.runs_a_day, key.usd_a_day) = (Some(50), Some(2.5));
        (key.expires_at, key.previous_until) = (Some(end), Some(former));
        let binds = "  repositories demo,other  runs a day 50  usd a day 2.5";
        assert_eq!(limits(&key, now), format!("{binds}  ends {end}  former secret ends {former}"));
        key.revoked_at = Some(now);
        assert_eq!(limits(&key, now), binds);
    }
}
