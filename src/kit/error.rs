//! Why a check could not be made. What an image does wrong is no error: it is in the report.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::error::LaunchError;
use crate::sandbox::error::SandboxError;
use crate::sandbox::shim_link::LinkError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    #[error("{path}: {error}", path = path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("the worktree for the check: {0}")]
    Repository(#[from] git2::Error),
    #[error("the scripted model server: {0}")]
    ModelServer(io::Error),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(
        "the sandbox is not contained as it must be (by this host; or the image has a link at /tmp or HOME): {0}"
    )]
    Containment(String),
    #[error("{0} is there already, and is left as it is: go on with it, or give another name")]
    InTheWay(PathBuf),
    #[error(
        "nothing would be tried: no attempt's id begins with {only:?}. There are: {}{}",
        .ids.join(" "),
        if *.quick { " (and those that --quick leaves out)" } else { "" }
    )]
    NothingToTry { only: String, ids: Vec<&'static str>, quick: bool },
    #[error("signals cannot be heard: {0}")]
    Signals(io::Error),
    #[error("interrupted")]
    Interrupted,
}

impl KitError {
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::File { path, error }
    }
}
