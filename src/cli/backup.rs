//! `kage backup`: on the host, with the database owner's rights and the data folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::backup::error::BackupError;
use crate::backup::make::{self, Installation, Made, bytes_of};
use crate::backup::restore::sha256_of;
use crate::backup::seal::{Identities, Recipients};
use crate::backup::store::Store;
use crate::backup::verify::{self, Verified};
use crate::cli::backup_prune;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::{self, Configuration};
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::domain::audit::{Actor, Entry, Outcome};

/// Back up database and repositories while everything runs (on the server's host; docs/backup.md)
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    make: Make,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read a backup from end to end and check it; nothing is written
    Verify(Verify),
    /// Remove earlier backups, and the files that only they need
    Prune(backup_prune::Args),
}

#[derive(Debug, clap::Args)]
struct Make {
    /// A folder of backups; where it holds earlier ones, only what has changed is written
    #[arg(required = true)]
    dir: Option<PathBuf>,
    /// Encrypt to this age recipient (age1…); more than one if given again
    #[arg(long, value_name = "AGE")]
    recipient: Vec<String>,
    /// … and to those in this file: one a line, # begins a comment
    #[arg(long, value_name = "FILE")]
    recipients_file: Option<PathBuf>,
    /// Make it although the data folder has not all branches that the database names
    #[arg(long)]
    allow_missing: bool,
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// The folder of backups
    dir: PathBuf,
    #[command(flatten)]
    which: Which,
}

/// Which backup of a folder, and what opens it.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The name of an older one, as it is in backups/; default: the newest
    #[arg(long, value_name = "NAME")]
    pub backup: Option<String>,
    /// A file with an age identity; more than one if given again
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
}

impl Which {
    /// # Errors
    /// [`CliError::Usage`] names the file, never what is in it.
    pub fn identities(&self) -> Result<Identities, CliError> {
        let mut all = Identities::default();
        for path in &self.identity {
            let one = Identities::parse(&read(path)?);
            all.extend(one.map_err(|problem| CliError::Usage(format!("{}: {problem}", path.display())))?);
        }
        Ok(all)
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))
}

/// # Errors
/// [`CliError::Host`] says what is wrong and what to do.
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    match args.command {
        Some(Command::Verify(verify)) => return run_verify(verify, globals).await,
        Some(Command::Prune(prune)) => return backup_prune::run(prune, globals).await,
        None => {}
    }
    let Some(dir) = args.make.dir.clone() else {
        return Err(CliError::Usage("name a folder of backups".to_owned()));
    };
    let wish = make::Wish { recipients: recipients(&args.make)?, allow_missing: args.make.allow_missing };
    let cluster = host::own_cluster().await?;
    let made = async {
        let configuration = Configuration::load_with_database()?;
        let pool = own_pool(&configuration).await?;
        let instance = configuration.runner.instance.to_string();
        let installation =
            Installation { pool: &pool, data_dir: &configuration.runner.data_dir, instance: &instance };
        let made = make::make(&installation, &dir, wish).await.map_err(failed);
        pool.close().await;
        made
    };
    let made = made.await;
    if let Some(cluster) = cluster {
        cluster.stop().await.context("private database").map_err(CliError::Host)?;
    }
    tell(&made?, globals)
}

/// With the rights of who makes backups, as the owner or as that role itself.
async fn own_pool(configuration: &Configuration) -> Result<PgPool, CliError> {
    // A schema of before that role says so in words of its own.
    configuration.pool(Zone::Owner).await?.close().await;
    configuration.pool(Zone::Backup).await
}

fn recipients(make: &Make) -> Result<Recipients, CliError> {
    let file = make.recipients_file.as_deref().map(read).transpose()?.unwrap_or_default();
    let lines = file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let all: Vec<&str> = make.recipient.iter().map(String::as_str).chain(lines).collect();
    if make.recipients_file.is_some() && all.len() == make.recipient.len() {
        return Err(CliError::Usage("there is no recipient in the recipients file".to_owned()));
    }
    Recipients::parse(all).map_err(|error| CliError::Usage(error.to_string()))
}

fn tell(made: &Made, globals: &Globals) -> Result<Exit, CliError> {
    for missing in &made.missing {
        output::note(&format!("kage: not in this backup: {missing}"));
    }
    let (manifest, all) = (&made.manifest, bytes_of(&made.manifest));
    if globals.json {
        output::json(
            &json!({ "backup": made.name, "manifest_sha256": made.sha256, "parent": manifest.parent,
            "rows": made.rows, "repositories": made.repositories, "files": manifest.objects.len(), "bytes": all,
            "new_files": made.new_files, "new_bytes": made.new_bytes, "encrypted": !manifest.recipients.is_empty(),
            "audit": manifest.audit, "missing": made.missing }),
        )?;
    } else {
        output::line(&format!("backup {}", made.name))?;
        output::line(&format!(
            "{} rows and {} repositories in {} files of {all} bytes; of these {} files of {} bytes are new{}",
            made.rows,
            made.repositories,
            manifest.objects.len(),
            made.new_files,
            made.new_bytes,
            if manifest.recipients.is_empty() { "; not encrypted" } else { "; encrypted" },
        ))?;
    }
    Ok(Exit::Success)
}

async fn run_verify(args: Verify, globals: &Globals) -> Result<Exit, CliError> {
    let identities = args.which.identities()?;
    let verified = async {
        let store = Store::to_read(&args.dir)?;
        verify::verify(store, args.which.backup.clone(), identities, std::env::temp_dir()).await
    };
    let verified = verified.await;
    let entry = verify_entry(&args, &verified);
    // What was found is told whatever becomes of the entry.
    let recorded = record(&entry).await;
    match &recorded {
        Ok(true) => {}
        Ok(false) => output::note("kage: not in an audit trail: no database is configured here"),
        Err(error) => output::note(&format!("kage: not in an audit trail: {error}")),
    }
    tell_verified(verified.map_err(failed)?, globals)?;
    recorded.map(|_| Exit::Success)
}

fn tell_verified(Verified { backup, index }: Verified, globals: &Globals) -> Result<(), CliError> {
    let (manifest, all) = (&backup.manifest, bytes_of(&backup.manifest));
    let opened = index.is_some();
    let missing = index.map(|index| index.missing).unwrap_or_default();
    if globals.json {
        output::json(
            &json!({ "backup": backup.name, "manifest_sha256": sha256_of(&backup.name), "opened": opened,
            "made_at": manifest.made_at, "kage": manifest.kage, "schema": manifest.schema, "audit": manifest.audit,
            "files": manifest.objects.len(), "bytes": all, "missing": missing }),
        )?;
        return Ok(());
    }
    for missing in &missing {
        output::note(&format!("kage: not in this backup: {missing}"));
    }
    output::line(&format!(
        "backup {} of {}: {} files of {all} bytes are whole",
        backup.name,
        make::at(manifest.made_at),
        manifest.objects.len(),
    ))?;
    if let Some(tree) = &manifest.audit {
        output::line(&format!("audit log: {} entries, root {}", tree.size, tree.root))?;
    }
    output::line(if opened {
        "every piece opens, the audit log's root is made of its leaves, and the repositories have all that their refs need"
    } else {
        "it is encrypted: without --identity there was no look inside"
    })?;
    Ok(())
}

fn verify_entry(args: &Verify, verified: &Result<Verified, BackupError>) -> Entry {
    let (outcome, name, details) = match verified {
        Ok(Verified { backup, index }) => {
            let sha256 = sha256_of(&backup.name);
            let details = json!({ "manifest_sha256": sha256, "opened": index.is_some() });
            (Outcome::Done, Some(backup.name.clone()), details)
        }
        Err(error) => (Outcome::Failed, args.which.backup.clone(), json!({ "problem": error.to_string() })),
    };
    let object = format!("backup:{}", name.as_deref().unwrap_or("latest"));
    Entry { actor: Actor::Host, action: "backup.verify", object, outcome, details }
}

/// Whether there is a trail to write to.
pub async fn record(entry: &Entry) -> Result<bool, CliError> {
    let cluster = host::own_cluster().await?;
    let mut configuration = host::load()?;
    if configuration.database.url.is_none() {
        configuration.database.url = db::private::Cluster::url_of(&configuration.runner.data_dir);
    }
    if configuration.database.url.is_none() {
        return Ok(false);
    }
    let written = async {
        let pool = own_pool(&configuration).await?;
        let mut connection = pool.acquire().await.context("database").map_err(CliError::Host)?;
        let written = db::audit::append(&mut connection, entry).await;
        drop(connection);
        pool.close().await;
        written.context("it cannot be put into the audit trail").map_err(CliError::Host)
    };
    let written = written.await;
    if let Some(cluster) = cluster {
        cluster.stop().await.context("private database").map_err(CliError::Host)?;
    }
    written.map(|()| true)
}

pub fn failed(error: BackupError) -> CliError {
    match error {
        BackupError::Refused(problem) => CliError::Host(anyhow!(problem)),
        error => CliError::Host(anyhow::Error::new(error).context("backup")),
    }
}

/// What of it goes to a machine.
pub fn settled(settled: db::after_restore::Settled) -> Value {
    json!({ "lost": settled.lost, "queued": settled.queued })
}
