//! `kage key`: on the host, with the database owner's rights. There is no default key.

use anyhow::{Context as _, anyhow};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::db::error::DbError;
use crate::domain::api_key;
use crate::domain::audit::{Actor, Entry, Outcome};

/// Make, list and revoke API keys (on the server's host)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key; it is shown once, here
    Create {
        /// What the key is for
        #[arg(long)]
        name: String,
    },
    /// List keys, without their secrets
    List,
    /// Revoke a key by its id
    Revoke { id: String },
}

fn entry(action: &'static str, id: &str, details: serde_json::Value) -> Entry {
    Entry { actor: Actor::Host, action, object: format!("key:{id}"), outcome: Outcome::Done, details }
}

/// # Errors
/// [`CliError::Host`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = Configuration::load_with_database()?;
    let pool = configuration.pool(Zone::Owner).await?;
    match args.command {
        Command::Create { name } => {
            if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
                return Err(CliError::Usage("--name: 1 to 100 bytes without control characters".to_owned()));
            }
            let (key, shown) = api_key::generate();
            let write = async {
                let mut transaction = pool.begin().await?;
                db::keys::insert(&mut transaction, &key.id, &name, &key.secret_sha256).await?;
                db::audit::append(&mut transaction, &entry("key.create", &key.id, json!({ "name": name })))
                    .await?;
                transaction.commit().await?;
                Ok::<(), DbError>(())
            };
            write.await.context("database").map_err(CliError::Host)?;
            if globals.json {
                output::json(&json!({ "id": key.id, "name": name, "key": shown.expose_secret() }))?;
            } else {
                output::line(shown.expose_secret())?;
                output::note("this key is not shown again; give it to clients as KAGE_API_KEY");
            }
        }
        Command::List => {
            let keys = db::keys::list(&pool).await.context("database").map_err(CliError::Host)?;
            if globals.json {
                output::json(&keys)?;
            } else {
                for key in keys {
                    let used = key.last_used_at.map_or("never used".to_owned(), |at| format!("used {at}"));
                    let state = key.revoked_at.map_or("active".to_owned(), |at| format!("revoked {at}"));
                    output::line(&escape::line(&format!("{}  {}  {state}  {used}", key.id, key.name)))?;
                }
            }
        }
        Command::Revoke { id } => {
            let write = async {
                let mut transaction = pool.begin().await?;
                let done = db::keys::revoke(&mut transaction, &id).await?;
                if done {
                    db::audit::append(&mut transaction, &entry("key.revoke", &id, json!({}))).await?;
                    transaction.commit().await?;
                }
                Ok::<bool, DbError>(done)
            };
            if !write.await.context("database").map_err(CliError::Host)? {
                return Err(CliError::Host(anyhow!("there is no active key {id:?}")));
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
