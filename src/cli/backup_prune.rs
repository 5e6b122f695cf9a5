//! `kage backup prune`: earlier backups of a folder go.

use std::path::PathBuf;

use chrono::{TimeDelta, Utc};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::backup::error::BackupError;
use crate::backup::prune::{self, Keep, Plan};
use crate::backup::store::Store;
use crate::cli::backup::{failed, record};
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::domain::audit::{Actor, Entry, Outcome};

/// Names in an audit entry; how many there are is said beside.
const NAMED: usize = 100;

#[derive(Debug, clap::Args)]
#[group(id = "rule", required = true, multiple = true, args = ["keep", "keep_days"])]
pub struct Args {
    /// The folder of backups
    dir: PathBuf,
    /// Keep so many of the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Keep those of so many days; with --keep, a backup stays that either keeps. The newest always stays
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    keep_days: Option<u32>,
    /// Say what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// # Errors
/// [`CliError::Host`] says what is wrong; nothing goes while a backup is damaged that stays.
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let keep = Keep {
        last: args.keep.map(|keep| keep as usize),
        since: args.keep_days.map(|days| Utc::now() - TimeDelta::days(i64::from(days))),
    };
    let dir = args.dir.clone();
    let planned = blocking(move || {
        let store = Store::to_prune(&dir)?;
        let plan = prune::plan(&store, keep)?;
        Ok((store, plan))
    });
    let (store, plan) = planned.await.map_err(failed)?;
    if args.dry_run {
        return tell(&plan, true, globals);
    }
    if plan.dropped.is_empty() && plan.files == 0 {
        return tell(&plan, false, globals);
    }
    // Before anything goes: nobody removes a backup without a word, as long as there is somebody to tell.
    note_audit(record(&entry(&plan)).await);
    let carried = blocking(move || prune::carry_out(&store, &plan).map(|()| plan)).await;
    match carried {
        Ok(plan) => tell(&plan, false, globals),
        Err(error) => {
            note_audit(record(&failure(&error)).await);
            Err(failed(error))
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    spawn_blocking(work).await?
}

fn note_audit(recorded: Result<bool, CliError>) {
    match recorded {
        Ok(true) => {}
        Ok(false) => output::note("kage: not in an audit trail: no database is configured here"),
        Err(error) => output::note(&format!("kage: not in an audit trail: {error}")),
    }
}

fn entry(plan: &Plan) -> Entry {
    let named: Vec<&String> = plan.dropped.iter().take(NAMED).collect();
    let details = json!({ "removed": plan.dropped.len(), "backups": named, "kept": plan.kept.len(),
        "files": plan.files, "bytes": plan.bytes });
    let object = format!("backup:{}", plan.kept.last().map_or("none", String::as_str));
    Entry { actor: Actor::Host, action: "backup.prune", object, outcome: Outcome::Done, details }
}

fn failure(error: &BackupError) -> Entry {
    let details = json!({ "problem": error.to_string() });
    let object = "backup:latest".to_owned();
    Entry { actor: Actor::Host, action: "backup.prune", object, outcome: Outcome::Failed, details }
}

fn tell(plan: &Plan, dry: bool, globals: &Globals) -> Result<Exit, CliError> {
    if globals.json {
        output::json(
            &json!({ "kept": plan.kept, "removed": plan.dropped, "files": plan.files, "bytes": plan.bytes,
            "dry_run": dry }),
        )?;
        return Ok(Exit::Success);
    }
    for name in &plan.dropped {
        output::line(&format!("{} {name}", if dry { "would remove" } else { "removed" }))?;
    }
    output::line(&format!(
        "{} backups stay and are whole; {} {} files of {} bytes that none of them needs",
        plan.kept.len(),
        if dry { "there are" } else { "gone are" },
        plan.files,
        plan.bytes,
    ))?;
    Ok(Exit::Success)
}
