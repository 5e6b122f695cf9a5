//! `kage audit export`: to standard output, as of the last checkpoint.

use std::io::Write as _;

use anyhow::Context as _;
use sqlx::{Connection as _, PgConnection};

use crate::cli::audit::{self, ExportArgs, Format};
use crate::cli::audit_verify::Wrong;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::db;
use crate::db::Zone;
use crate::db::trail::{Filter, Placed};
use crate::trail::checkpoint::{self, Checkpoint};
use crate::trail::error::TrailError;
use crate::trail::{canonical, export, ocsf, tile, tree};

const PAGE: i64 = 2_000;

/// # Errors
/// [`CliError`].
pub async fn run(args: ExportArgs) -> Result<Exit, CliError> {
    let keys = audit::keys(&args.key)?;
    let pool = Configuration::load_with_database()?.pool(Zone::Owner).await?;
    let mut connection = pool.acquire().await.context("database").map_err(CliError::Host)?;
    let stdout = std::io::stdout();
    let filter = Filter { task: args.task, since: args.since, ..Filter::default() };
    let mut out =
        |bytes: &[u8]| stdout.lock().write_all(bytes).map_err(|error| Wrong::File(error.to_string()));
    let written = async {
        let mut transaction = connection.begin().await?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            .execute(&mut *transaction)
            .await?;
        let note = db::trail::note(&mut transaction, None).await?;
        let note = note
            .ok_or_else(|| Wrong::File("there is no checkpoint yet: does the sequencer run?".to_owned()))?;
        let checkpoint = checkpoint::open_by_any(&note, &keys)?;
        let part = args.task.is_some() || args.since.is_some();
        let what = Export { checkpoint, note, filter };
        match (args.format, part) {
            (Format::Ocsf, _) => what.events(&mut transaction, &mut out).await,
            (Format::Jsonl, true) => what.part(&mut transaction, &mut out).await,
            (Format::Jsonl, false) => what.whole(&mut transaction, &mut out).await,
        }
    };
    written.await.map_err(|error: Wrong| CliError::Host(error.into()))?;
    Ok(Exit::Success)
}

/// What goes out, and as of when.
pub struct Export {
    pub checkpoint: Checkpoint,
    pub note: String,
    pub filter: Filter,
}

fn leaf(placed: &Placed) -> Result<Vec<u8>, TrailError> {
    let gone =
        || TrailError::tampered(format!("entry {}", placed.index), format!("{} is gone", placed.entry_id));
    canonical::leaf(placed.row.as_deref().ok_or_else(gone)?)
}

impl Export {
    async fn page(&self, connection: &mut PgConnection, from: u64) -> Result<Vec<Placed>, Wrong> {
        Ok(db::trail::placed(connection, &self.filter, (from, self.checkpoint.size), PAGE).await?)
    }

    /// Every entry, and the checkpoints between them.
    ///
    /// # Errors
    /// [`Wrong`].
    pub async fn whole(
        &self,
        connection: &mut PgConnection,
        out: &mut impl FnMut(&[u8]) -> Result<(), Wrong>,
    ) -> Result<(), Wrong> {
        out(&export::whole_head(&self.checkpoint)?)?;
        let (mut next, mut notes) = (0, Vec::new().into_iter().peekable());
        while next < self.checkpoint.size {
            let page = self.page(connection, next).await?;
            if page.is_empty() {
                return Err(TrailError::tampered(format!("entry {next}"), "it is missing").into());
            }
            for placed in page {
                next = placed.index as u64 + 1;
                out(&export::whole_entry(placed.index as u64, &leaf(&placed)?, &placed.hash()?)?)?;
                if notes.peek().is_none() {
                    notes = db::trail::notes_after(connection, next - 1, PAGE).await?.into_iter().peekable();
                }
                if let Some((_, note)) = notes.next_if(|(size, _)| *size as u64 == next) {
                    out(&export::whole_checkpoint(&note)?)?;
                }
            }
        }
        Ok(())
    }

    /// What the filter lets through, each with the proof of its place.
    ///
    /// # Errors
    /// [`Wrong`].
    pub async fn part(
        &self,
        connection: &mut PgConnection,
        out: &mut impl FnMut(&[u8]) -> Result<(), Wrong>,
    ) -> Result<(), Wrong> {
        out(&export::part_head(&self.note)?)?;
        let mut next = 0;
        loop {
            let page = self.page(connection, next).await?;
            let Some(last) = page.last() else { return Ok(()) };
            next = last.index as u64 + 1;
            let mut ranges = Vec::new();
            for placed in &page {
                ranges.push(tree::inclusion(placed.index as u64, self.checkpoint.size)?);
            }
            let tiles =
                db::trail::tiles(connection, self.checkpoint.size, &tile::needed(&ranges.concat())).await?;
            for (placed, ranges) in page.iter().zip(ranges) {
                let proof = tree::hashes(&ranges, &tiles)?;
                out(&export::part_entry(placed.index as u64, &leaf(placed)?, &proof)?)?;
            }
        }
    }

    /// As OCSF, a line each.
    ///
    /// # Errors
    /// [`Wrong`].
    pub async fn events(
        &self,
        connection: &mut PgConnection,
        out: &mut impl FnMut(&[u8]) -> Result<(), Wrong>,
    ) -> Result<(), Wrong> {
        let mut next = 0;
        loop {
            let page = self.page(connection, next).await?;
            let Some(last) = page.last() else { return Ok(()) };
            next = last.index as u64 + 1;
            for placed in &page {
                let entry = canonical::parse(&leaf(placed)?)?;
                let event = ocsf::event(placed.index as u64, &entry, env!("CARGO_PKG_VERSION"))?;
                out(format!("{event}\n").as_bytes())?;
            }
        }
    }
}
