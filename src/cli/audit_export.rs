//! `kage audit export`: to standard output, as of the last checkpoint.

use std::io::Write as _;

use anyhow::Context as _;

use crate::cli::audit::{self, ExportArgs, Format};
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::db;
use crate::db::Zone;
use crate::db::trail::Filter;
use crate::db::trail_export::{Export, Form};
use crate::trail::checkpoint;

/// # Errors
/// [`CliError`].
pub async fn run(args: ExportArgs) -> Result<Exit, CliError> {
    let keys = audit::keys(&args.key)?;
    let pool = Configuration::load_with_database()?.pool(Zone::Owner).await?;
    let written = async {
        let mut connection = pool.acquire().await?;
        let note = db::trail::note(&mut connection, None).await?;
        let note = note.context("there is no checkpoint yet: does the sequencer run?")?;
        let checkpoint = checkpoint::open_by_any(&note, &keys)?;
        let form = match (args.format, args.task.is_some() || args.since.is_some()) {
            (Format::Ocsf, _) => Form::Ocsf,
            (Format::Jsonl, true) => Form::Part,
            (Format::Jsonl, false) => Form::Whole,
        };
        let filter = Filter { task: args.task, since: args.since, ..Filter::default() };
        let mut export = Export::new(checkpoint, note, filter, form);
        while let Some(lines) = export.page(&mut connection).await? {
            std::io::stdout().lock().write_all(&lines).context("standard output")?;
        }
        anyhow::Ok(())
    };
    written.await.map_err(CliError::Host)?;
    Ok(Exit::Success)
}
