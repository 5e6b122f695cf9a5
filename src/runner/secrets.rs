//! What looks like a secret in the files of a branch. They are the user's: nothing is taken out, but it is said.

use bstr::ByteSlice;
use git2::Oid;

use crate::git::diff::{self, FileChange};
use crate::git::error::GitError;
use crate::git::mirror::Mirror;
use crate::redact::patterns::Patterns;

/// Bytes of new content that are looked at.
const MOST: usize = 128 << 20;
/// Paths that are named.
const NAMED: usize = 20;

#[derive(Debug, Default)]
pub(super) struct Found {
    /// As they are shown: escaped where they are not plain text. The first of them.
    pub paths: Vec<String>,
    pub warnings: Vec<String>,
}

pub(super) fn in_files(
    mirror: &Mirror,
    commit: Oid,
    files: &[FileChange],
    patterns: &Patterns,
) -> Result<Found, GitError> {
    let mut paths = Vec::new();
    let all = diff::contents(mirror, commit, files, MOST, |file, content| {
        if !patterns.are_absent(content) || !patterns.are_absent(&file.path) {
            // The path itself may be what is looked for.
            let mut path = format!("{:?}", file.path.as_bstr());
            patterns.redact_text(&mut path);
            paths.push(path);
        }
    })?;
    let one = |path: &String| {
        format!("Secret {path}: something in it looks like one; the branch holds it as the run left it")
    };
    let mut warnings: Vec<String> = paths.iter().take(NAMED).map(one).collect();
    match paths.len().saturating_sub(NAMED) {
        0 => {}
        more => warnings.push(format!("… and {more} more files with what looks like a secret")),
    }
    if !all {
        warnings.push(format!("more than {} MiB were not searched for secrets", MOST >> 20));
    }
    paths.truncate(NAMED);
    Ok(Found { paths, warnings })
}
