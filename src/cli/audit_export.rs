//! `kage audit export`: to standard output, as of the last checkpoint.

use std::io::Write as _;

use anyhow::Context as _;
use sqlx::PgPool;

use crate::cli::audit::{self, ExportArgs, Format};
use crate::cli::audit_source::Source;
use crate::cli::exit::{CliError, Exit};
use crate::client::Client;
use crate::db;
use crate::db::trail::Filter;
use crate::db::trail_export::{Export, Form};
use crate::trail::checkpoint;
use crate::wire::audit::AuditExport;

/// # Errors
/// [`CliError`].
pub async fn run(args: ExportArgs) -> Result<Exit, CliError> {
    match Source::open().await? {
        Source::Database(pool) => of_database(&args, &pool).await.map(|()| Exit::Success),
        Source::Server(client) => of_server(&args, &client).await.map(|()| Exit::Success),
    }
}

/// As the server gives it: whoever reads it verifies it.
async fn of_server(args: &ExportArgs, client: &Client) -> Result<(), CliError> {
    let format = match args.format {
        Format::Jsonl => "jsonl",
        Format::Ocsf => "ocsf",
    };
    let asked =
        AuditExport { format: Some(format.to_owned()), task: args.task, since: args.since, until: None };
    let mut download = client.audit_export(&asked).await?;
    while let Some(bytes) = download.chunk().await? {
        std::io::stdout().lock().write_all(&bytes)?;
    }
    Ok(())
}

async fn of_database(args: &ExportArgs, pool: &PgPool) -> Result<(), CliError> {
    let keys = audit::keys(&args.key)?;
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
    written.await.map_err(CliError::Host)
}
