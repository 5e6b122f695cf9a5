//! The secret that a run's shim shows when it connects again, written just before the shim is given it. That there is none says that the
//! CLI has not begun.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;

/// Never seen in the sandbox's files.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("session")
}

/// Flushed with its folder before this returns, so that a power cut just after the CLI's start does not undo it: the run would be begun
/// a second time.
pub(super) async fn write(drive: Drive<'_>, run: Uuid, session: &str) -> Result<(), RunFailure> {
    let (folder, session) = (drive.environment.folders.run(run), session.to_owned());
    let failed = RunFailure::io(path(&folder));
    let written = drive.here.threads.spawn_blocking(move || write_flushed(&folder, &session)).await;
    written.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)
}

fn write_flushed(folder: &Path, session: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path(folder))?;
    file.write_all(session.as_bytes())?;
    file.sync_all()?;
    // The folder may be as new as the file.
    [Some(folder), folder.parent()]
        .into_iter()
        .flatten()
        .try_for_each(|folder| File::open(folder)?.sync_all())
}
