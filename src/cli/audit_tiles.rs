//! `kage audit tiles`: the log as files of C2SP tlog-tiles, for any web server, monitor or witness.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use sqlx::PgConnection;

use crate::cli::audit;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::db::trail_tiles::Content;
use crate::trail::bundle::Resource;
use crate::trail::checkpoint::{self, Checkpoint};
use crate::trail::note::VerifierKey;
use crate::trail::tile::{self, Tile, WIDTH};
use crate::trail::tree;

const CHECKPOINT: &str = "checkpoint";

#[derive(Debug, clap::Args)]
pub struct TilesArgs {
    /// Where the files go; what is there is gone on from
    #[arg(long)]
    pub out: PathBuf,
    /// The log's public key; more than once for those before it
    #[arg(long)]
    pub key: Vec<String>,
}

/// # Errors
/// [`CliError::Host`], also if the folder has another log, or another past of this one.
pub async fn run(args: TilesArgs, globals: &Globals) -> Result<Exit, CliError> {
    let keys = audit::keys(&args.key)?;
    let pool = Configuration::load_with_database()?.pool(Zone::Owner).await?;
    let written = async {
        let mut connection = pool.acquire().await?;
        write(&mut connection, &args.out, &keys).await
    };
    let (size, left_out) = written.await.map_err(CliError::Host)?;
    for index in &left_out {
        output::note(&format!("entry {index} does not fit into a bundle: its bundle is left out"));
    }
    if globals.json {
        output::json(&json!({ "entries": size, "folder": args.out, "left_out": left_out }))?;
    } else {
        output::line(&format!("{size} entries, in tiles below {}", args.out.display()))?;
    }
    Ok(Exit::Success)
}

/// The size of the log, and entries whose bundles could not be written.
async fn write(
    connection: &mut PgConnection,
    folder: &Path,
    keys: &[VerifierKey],
) -> anyhow::Result<(u64, Vec<u64>)> {
    let note = db::trail::note(connection, None).await?;
    let mut note = note.context("there is no checkpoint yet: does the sequencer run?")?;
    let signed = checkpoint::open_by_any(&note, keys)?;
    let before = before(folder, keys)?;
    goes_on(connection, before.as_ref(), &signed).await?;
    let mut left_out = Vec::new();
    for resource in resources(before.map_or(0, |before| before.size), signed.size) {
        let width = resource.width(signed.size);
        match db::trail_tiles::content(connection, signed.size, resource, width).await? {
            Content::Bytes(bytes) => put(&folder.join(resource.path(width)), &bytes)?,
            Content::TooLong(index) => left_out.push(index),
            Content::None => bail!("{} is not there", resource.path(width)),
        }
    }
    for line in db::trail::cosignatures(connection, signed.size).await? {
        note = note + &line + "\n";
    }
    // Last: whoever reads it finds all that it needs.
    put(&folder.join(CHECKPOINT), note.as_bytes())?;
    Ok((signed.size, left_out))
}

fn before(folder: &Path, keys: &[VerifierKey]) -> anyhow::Result<Option<Checkpoint>> {
    let path = folder.join(CHECKPOINT);
    match fs::read_to_string(&path) {
        Ok(note) => {
            let opened = checkpoint::open_by_any(&note, keys);
            Ok(Some(opened.with_context(|| path.display().to_string())?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// A folder is never carried on into another past.
async fn goes_on(
    connection: &mut PgConnection,
    before: Option<&Checkpoint>,
    signed: &Checkpoint,
) -> anyhow::Result<()> {
    let Some(before) = before else { return Ok(()) };
    let held = if before.size > signed.size {
        false
    } else {
        let ranges = tree::consistency(before.size, signed.size)?;
        let tiles = db::trail::tiles(connection, signed.size, &tile::needed(&ranges)).await?;
        let proof = tree::hashes(&ranges, &tiles)?;
        tree::verify_consistency((before.size, &before.root), (signed.size, &signed.root), &proof).is_ok()
    };
    let other = || {
        anyhow!("the log of {} entries does not go on from the {} in the folder", signed.size, before.size)
    };
    held.then_some(()).ok_or_else(other)
}

/// What a log of `size` has that was not full in one of `before`.
fn resources(before: u64, size: u64) -> impl Iterator<Item = Resource> {
    let levels = (0..).take_while(move |level| tile::stored(*level, size) > 0);
    let hashes = levels.flat_map(move |level| {
        let (full, all) = (tile::stored(level, before) / WIDTH, tile::stored(level, size).div_ceil(WIDTH));
        (full..all).map(move |index| Resource::Hashes(Tile { level, index }))
    });
    (before / WIDTH..size.div_ceil(WIDTH)).map(Resource::Entries).chain(hashes)
}

/// Whole or not at all, for those who read meanwhile.
fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(readable)?;
        file.persist(path).map_err(|error| error.error)?;
        std::io::Result::Ok(())
    };
    written().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_the_specification_lists_and_what_is_new() {
        let paths = |before, size| -> Vec<String> {
            resources(before, size).map(|resource| resource.path(resource.width(size))).collect()
        };
        // The specification's own example, with as many bundles as tiles of level 0.
        let all = paths(0, 70_000);
        assert_eq!(all.len(), 274 + 274 + 2 + 1);
        for path in ["tile/0/272", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"] {
            assert!(all.iter().any(|one| one == path), "{path}");
        }
        assert_eq!(paths(0, 256), ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]);
        assert_eq!(paths(0, 0), Vec::<String>::new());
        let new = ["tile/entries/002.p/90", "tile/0/002.p/90", "tile/1/000.p/2"];
        assert_eq!(paths(600, 602), new);
        assert_eq!(paths(512, 602), new);
        assert_eq!(paths(511, 602).len(), 5);
    }
}
