//! `kage audit`: reads the trail and verifies it. Offline where a file and the log's public key are there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use uuid::Uuid;

use crate::cli::audit_tiles::TilesArgs;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::{self, Configuration};
use crate::cli::output::{self, Globals};
use crate::cli::{audit_cosign, audit_export, audit_show, audit_tiles, audit_verify, sequencer_key};
use crate::config::sequencer::SequencerConfig;
use crate::trail::note::{Kind, SignerKey, VerifierKey};

/// Read and verify the tamper-evident audit trail: of the database where one is configured here, else of the server (tiles and cosign: of the database alone)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Verify the database, an export, or that one checkpoint goes on from another
    Verify(VerifyArgs),
    /// Write entries that can be verified offline to standard output
    Export(ExportArgs),
    /// Write the log as files of C2SP tlog-tiles, for monitors and witnesses (on the server's host: needs the database)
    Tiles(TilesArgs),
    /// Tell one task's story
    Show {
        #[arg(long)]
        task: Uuid,
    },
    /// Print the last checkpoint with the signatures of its witnesses
    Checkpoint,
    /// Take a witness's signature of a checkpoint: a signed note (on the server's host: needs the database)
    Cosign { file: PathBuf },
    /// Print the public key of the log that is signed on this host
    Key,
    /// Make a key for the log, or for a witness; the public key is printed
    Keygen {
        /// Name of the log or the witness, such as a URL without its scheme
        #[arg(long)]
        name: String,
        /// Where the private key goes: a new file
        #[arg(long)]
        out: PathBuf,
        /// A key for cosignatures
        #[arg(long)]
        witness: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// An export instead of the database
    #[arg(long, conflicts_with_all = ["from", "to"])]
    pub export: Option<PathBuf>,
    /// A checkpoint (a file with a signed note) …
    #[arg(long, requires = "to")]
    pub from: Option<PathBuf>,
    /// … and a later one, which the database proves to go on from it
    #[arg(long, requires = "from")]
    pub to: Option<PathBuf>,
    /// Checkpoints that were kept outside: the file of an anchor, or a signed note
    #[arg(long)]
    pub anchor: Vec<PathBuf>,
    /// The log's public key; more than once for those before it
    #[arg(long)]
    pub key: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Verifiable offline
    Jsonl,
    /// OCSF 1.3, API Activity
    Ocsf,
}

#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    #[arg(long, value_enum, default_value = "jsonl")]
    pub format: Format,
    /// Only this task and its runs
    #[arg(long)]
    pub task: Option<Uuid>,
    /// Only from this time on (RFC 3339)
    #[arg(long)]
    pub since: Option<DateTime<Utc>>,
    /// The log's public key; more than once for those before it
    #[arg(long)]
    pub key: Vec<String>,
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    // The cluster of a `kage serve` that does not run, or refuses to, can be read all the same.
    let cluster = match &args.command {
        Command::Key | Command::Keygen { .. } => None,
        Command::Verify(VerifyArgs { export: Some(_), .. }) => None,
        _ => host::own_cluster().await?,
    };
    let done = run_with_database(args, globals).await;
    if let Some(cluster) = cluster {
        cluster.stop().await.context("private database").map_err(CliError::Host)?;
    }
    done
}

async fn run_with_database(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    match args.command {
        Command::Verify(args) => audit_verify::run(args, globals).await,
        Command::Export(args) => audit_export::run(args).await,
        Command::Tiles(args) => audit_tiles::run(args, globals).await,
        Command::Show { task } => audit_show::run(task, globals).await,
        Command::Checkpoint => audit_cosign::checkpoint(globals).await,
        Command::Cosign { file } => audit_cosign::run(&file, globals).await,
        Command::Key => {
            let keys: Vec<String> = keys(&[])?.iter().map(ToString::to_string).collect();
            if globals.json {
                output::json(&json!({ "keys": keys }))?;
            } else {
                keys.iter().try_for_each(|key| output::line(key))?;
            }
            Ok(Exit::Success)
        }
        Command::Keygen { name, out, witness } => keygen(&name, &out, witness, globals),
    }
}

fn keygen(name: &str, out: &Path, witness: bool, globals: &Globals) -> Result<Exit, CliError> {
    let kind = if witness { Kind::Witness } else { Kind::Log };
    let key = sequencer_key::generate(name, kind).map_err(|error| CliError::Usage(format!("{error:#}")))?;
    sequencer_key::write(out, &key).with_context(|| out.display().to_string()).map_err(CliError::Host)?;
    let public = key.verifier().to_string();
    if globals.json {
        output::json(&json!({ "public_key": public, "private_key_file": out }))?;
    } else {
        output::line(&public)?;
    }
    output::note("keep the private key outside the database, and this public key where the log is verified");
    Ok(Exit::Success)
}

/// Whose signature counts: what the command names, else what is configured, else the private key's own.
///
/// # Errors
/// [`CliError::Usage`] if there is none, or one that cannot be a key.
pub fn keys(named: &[String]) -> Result<Vec<VerifierKey>, CliError> {
    if !named.is_empty() {
        return parse(named);
    }
    let configuration = host::load()?;
    configured(&configuration.sequencer, &configuration)
}

fn parse(keys: &[String]) -> Result<Vec<VerifierKey>, CliError> {
    let parsed = keys.iter().map(|key| VerifierKey::parse(key)).collect::<Result<_, _>>();
    parsed.map_err(|error| CliError::Usage(error.to_string()))
}

fn configured(config: &SequencerConfig, configuration: &Configuration) -> Result<Vec<VerifierKey>, CliError> {
    let mut keys: Vec<String> = config.public_key.iter().cloned().collect();
    if keys.is_empty() {
        let own = sequencer_key::path(&configuration.runner.data_dir);
        let private =
            config.key.clone().or_else(|| std::fs::read_to_string(own).ok().map(SecretString::from));
        let missing =
            || anyhow!("whose signature? Give --key, or set KAGE_AUDIT_KEY to the log's public key");
        let private = private.filter(|key| !key.expose_secret().is_empty()).ok_or_else(missing);
        let signer = SignerKey::parse(&private.map_err(|error| CliError::Usage(error.to_string()))?);
        keys.push(signer.map_err(|error| CliError::Usage(error.to_string()))?.verifier().to_string());
    }
    keys.extend(config.former_keys.iter().cloned());
    parse(&keys)
}
