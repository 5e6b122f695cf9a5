//! `kage audit verify`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::cli::audit::{self, VerifyArgs};
use crate::cli::audit_source::Source;
use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::client::Client;
use crate::db;
use crate::db::error::DbError;
use crate::db::trail::Filter;
use crate::trail::canonical;
use crate::trail::checkpoint::{self, Checkpoint};
use crate::trail::error::TrailError;
use crate::trail::export;
use crate::trail::follow::Follower;
use crate::trail::note::VerifierKey;
use crate::trail::tile::{self, Tiles};
use crate::trail::tree::{self, leaf_hash};
use crate::wire::audit::AuditExport;

/// Entries, or checkpoints, read at once.
const PAGE: i64 = 5_000;

/// The longest line of a server's export, in bytes.
const MAX_LINE: usize = 64 << 20;

/// What could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error(transparent)]
    Trail(#[from] TrailError),
    #[error(transparent)]
    Database(#[from] DbError),
    #[error("{0}")]
    File(String),
}

impl From<sqlx::Error> for Wrong {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// # Errors
/// [`CliError`] if it cannot be looked at. What does not hold is the exit code 1.
pub async fn run(args: VerifyArgs, globals: &Globals) -> Result<Exit, CliError> {
    let keys = audit::keys(&args.key)?;
    let result = verify(&args, &keys).await?;
    let (exit, value, line) = match result {
        Ok(line) => (Exit::Success, json!({ "verified": true, "what": line }), line),
        Err(Wrong::Trail(error)) => {
            let place = match &error {
                TrailError::Tampered { place, .. } => Value::from(place.clone()),
                _ => Value::Null,
            };
            let line = format!("NOT verified: {error}");
            (Exit::Failed, json!({ "verified": false, "place": place, "what": error.to_string() }), line)
        }
        Err(other) => return Err(CliError::Host(other.into())),
    };
    if globals.json {
        output::json(&value)?
    } else {
        output::line(&escape::line(&line))?
    }
    Ok(exit)
}

async fn verify(args: &VerifyArgs, keys: &[VerifierKey]) -> Result<Result<String, Wrong>, CliError> {
    let known = match anchored(&args.anchor, keys) {
        Ok(known) => known,
        Err(error) => return Ok(Err(error)),
    };
    if let Some(path) = &args.export {
        return Ok(of_export(path, keys, known));
    }
    let pool = match Source::open().await? {
        Source::Database(pool) => pool,
        Source::Server(client) => return of_server(&client, args, keys, known).await,
    };
    let asked = known.len();
    let mut connection = pool.acquire().await.context("database").map_err(CliError::Host)?;
    if let (Some(from), Some(to)) = (&args.from, &args.to) {
        return Ok(between(&mut connection, from, to, keys).await);
    }
    Ok(database(&mut connection, keys, known).await.map(|found| {
        let Found { size, waiting, .. } = found;
        format!("{size} entries are what their checkpoints say ({asked} checkpoints from elsewhere asked); {waiting} wait for their place")
    }))
}

/// All that the server has, with two checkpoints to pass through if there are such.
async fn of_server(
    client: &Client,
    args: &VerifyArgs,
    keys: &[VerifierKey],
    mut known: Vec<Checkpoint>,
) -> Result<Result<String, Wrong>, CliError> {
    let named: Vec<_> = args.from.iter().chain(&args.to).cloned().collect();
    match anchored(&named, keys) {
        Ok(named) => known.extend(named),
        Err(error) => return Ok(Err(error)),
    }
    let asked = known.len();
    let mut download = client.audit_export(&AuditExport::default()).await?;
    let (mut reader, mut held) = (export::Reader::new(keys.to_vec(), known), Vec::new());
    while let Some(line) = download.line(&mut held, MAX_LINE).await? {
        if let Err(error) = reader.line(&line) {
            return Ok(Err(error.into()));
        }
    }
    Ok(reader.end().map_err(Wrong::from).and_then(|found| match found.whole {
        true => Ok(format!(
            "{} entries, all that the server has, are what their checkpoints say ({asked} checkpoints from elsewhere asked)",
            found.entries
        )),
        false => Err(TrailError::malformed("export", "the server left entries out").into()),
    }))
}

fn read(path: &Path) -> Result<String, Wrong> {
    fs::read_to_string(path).map_err(|error| Wrong::File(format!("{}: {error}", path.display())))
}

/// Every checkpoint in these files, each either lines of JSON as the file anchor writes them, or one signed note.
fn anchored(paths: &[std::path::PathBuf], keys: &[VerifierKey]) -> Result<Vec<Checkpoint>, Wrong> {
    let mut known = Vec::new();
    for path in paths {
        let text = read(path)?;
        if !text.starts_with('{') {
            known.push(checkpoint::open_by_any(&text, keys)?);
            continue;
        }
        // A line that a crash cut off says nothing.
        let notes = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let before = known.len();
        for note in notes {
            known.push(checkpoint::open_by_any(note["checkpoint"].as_str().unwrap_or_default(), keys)?);
        }
        if known.len() == before {
            return Err(Wrong::File(format!("{}: there is no checkpoint in it", path.display())));
        }
    }
    known.sort_by_key(|checkpoint| checkpoint.size);
    Ok(known)
}

fn of_export(path: &Path, keys: &[VerifierKey], known: Vec<Checkpoint>) -> Result<String, Wrong> {
    let said = |error: std::io::Error| Wrong::File(format!("{}: {error}", path.display()));
    let mut file = BufReader::new(fs::File::open(path).map_err(said)?);
    let mut reader = export::Reader::new(keys.to_vec(), known);
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line).map_err(said)? > 0 {
        let whole = line.strip_suffix(b"\n");
        let cut = || TrailError::tampered("last line", "it has no end");
        reader.line(whole.ok_or_else(cut)?)?;
        line.clear();
    }
    let found = reader.end()?;
    let what = if found.whole { "all there are" } else { "each in its place" };
    Ok(format!("{} entries, {what}, by a checkpoint of {}", found.entries, found.checkpoint.size))
}

async fn between(
    connection: &mut PgConnection,
    from: &Path,
    to: &Path,
    keys: &[VerifierKey],
) -> Result<String, Wrong> {
    let from = checkpoint::open_by_any(&read(from)?, keys)?;
    let to = checkpoint::open_by_any(&read(to)?, keys)?;
    let ranges = tree::consistency(from.size, to.size)?;
    let tiles = db::trail::tiles(connection, to.size, &tile::needed(&ranges)).await?;
    let proof = tree::hashes(&ranges, &tiles)?;
    tree::verify_consistency((from.size, &from.root), (to.size, &to.root), &proof)?;
    Ok(format!("the log of {} entries goes on from that of {}", to.size, from.size))
}

/// What the database has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub size: u64,
    /// Entries without a place yet.
    pub waiting: i64,
}

/// Every entry, hash and checkpoint of the database, as of one moment.
///
/// # Errors
/// [`Wrong::Trail`] names the first entry that is not as it was.
pub async fn database(
    connection: &mut PgConnection,
    keys: &[VerifierKey],
    known: Vec<Checkpoint>,
) -> Result<Found, Wrong> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        .execute(&mut *transaction)
        .await?;
    let mut walk = Walk { follower: Follower::default(), edge: Tiles::default(), known: &known };
    let mut after = 0;
    loop {
        let notes = db::trail::notes_after(&mut transaction, after, PAGE).await?;
        let Some((last, _)) = notes.last() else { break };
        let last = *last as u64;
        let roots = db::trail::roots_after(&mut transaction, after, PAGE).await?;
        for ((size, note), (_, root)) in notes.into_iter().zip(roots) {
            let signed = open(size, &note, keys)?;
            if signed.root[..] != root[..] {
                let place = format!("checkpoint of {size} entries");
                return Err(TrailError::tampered(place, "the root beside its note is another").into());
            }
            walk.to(&mut transaction, signed.size).await?;
            walk.follower.checkpoint(&signed)?;
        }
        after = last;
    }
    let head = db::trail::head(&mut transaction).await?;
    walk.to(&mut transaction, head.leaves as u64).await?;
    walk.follower.end(known.last().map_or(0, |known| known.size))?;
    if let Some(stray) = db::trail::stray(&mut transaction).await? {
        return Err(TrailError::tampered(
            format!("entry {stray}"),
            "it neither has a place nor waits for one",
        )
        .into());
    }
    let waiting = db::trail::waiting(&mut transaction).await?;
    Ok(Found { size: walk.follower.size(), waiting })
}

fn open(size: i64, note: &str, keys: &[VerifierKey]) -> Result<Checkpoint, TrailError> {
    let place = || format!("checkpoint of {size} entries");
    let signed = checkpoint::open_by_any(note, keys).map_err(|error| TrailError::tampered(place(), error))?;
    if signed.size == size as u64 {
        Ok(signed)
    } else {
        Err(TrailError::tampered(place(), format!("its note is of {}", signed.size)))
    }
}

struct Walk<'a> {
    follower: Follower,
    edge: Tiles,
    known: &'a [Checkpoint],
}

impl Walk<'_> {
    /// Reads entries until there are `size`, or no more.
    async fn to(&mut self, connection: &mut PgConnection, size: u64) -> Result<(), Wrong> {
        while self.follower.size() < size {
            let from = self.follower.size();
            let page = db::trail::placed(connection, &Filter::default(), (from, size), PAGE).await?;
            if page.is_empty() {
                break;
            }
            let mut nodes = Vec::new();
            for placed in page {
                let (hash, id) = (placed.hash()?, placed.entry_id.to_string());
                let place = || format!("entry {}", placed.index);
                let gone = || TrailError::tampered(place(), format!("{id} is gone"));
                let leaf = canonical::leaf(placed.row.as_deref().ok_or_else(gone)?)?;
                self.follower.entry(placed.index as u64, &id, &leaf, &hash)?;
                nodes.extend(self.edge.push(placed.index as u64, leaf_hash(&leaf))?);
                let size = self.follower.size();
                for known in self.known.iter().filter(|known| known.size == size) {
                    self.follower.anchor(known)?;
                }
            }
            let mut stored = db::trail::nodes(connection, &nodes).await?;
            stored.sort_unstable();
            nodes.sort_unstable();
            if stored != nodes {
                let place = format!("entries {from} to {}", self.follower.size() - 1);
                return Err(TrailError::tampered(place, "the stored hashes above them are others").into());
            }
        }
        Ok(())
    }
}
