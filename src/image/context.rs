//! The files that an image is built from, as a tar archive.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use tar::{Builder, EntryType, Header, HeaderMode};

use crate::image::error::ImageError;

/// Most bytes of a build context.
pub const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Most files of a build context.
pub const MAX_FILES: usize = 20_000;

const IGNORE_FILE: &str = ".dockerignore";

/// A file that is in the archive and not in the folder. It wins over one of the same name there.
#[derive(Debug, Clone, Copy)]
pub struct Extra<'a> {
    pub name: &'a str,
    pub bytes: &'a [u8],
}

/// Packs a folder. Links are kept as links; owners and times are left out, so that the same files make the same
/// archive. Blocking.
///
/// # Errors
/// [`ImageError::File`], or [`ImageError::Context`] for too much, or for a file that is neither file, folder nor link.
pub fn pack(folder: &Path, extra: Option<Extra<'_>>) -> Result<Vec<u8>, ImageError> {
    let ignored = ignored(folder)?;
    let mut files = Vec::new();
    collect(folder, folder, &ignored, &mut files)?;
    let mut archive = Builder::new(Vec::new());
    archive.mode(HeaderMode::Deterministic);
    archive.follow_symlinks(false);
    let mut total = 0;
    for path in files {
        append(&mut archive, folder, &path, &mut total)?;
    }
    if let Some(Extra { name, bytes }) = extra {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        archive
            .append_data(&mut header, name, bytes)
            .map_err(|error| ImageError::File { path: folder.join(name), error })?;
    }
    archive.into_inner().map_err(|error| ImageError::File { path: folder.to_owned(), error })
}

fn append(
    archive: &mut Builder<Vec<u8>>,
    folder: &Path,
    path: &Path,
    total: &mut u64,
) -> Result<(), ImageError> {
    let failed = |error: io::Error| ImageError::File { path: path.to_owned(), error };
    let refused = |reason: String| ImageError::Context { path: path.to_owned(), reason };
    let name = path.strip_prefix(folder).map_err(|_| refused("it is outside of the folder".to_owned()))?;
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    let kind = metadata.file_type();
    let mut header = Header::new_gnu();
    header.set_mode(if metadata.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        archive.append_data(&mut header, name, io::empty()).map_err(failed)
    } else if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        let target = fs::read_link(path).map_err(failed)?;
        archive.append_link(&mut header, name, &target).map_err(failed)
    } else if kind.is_file() {
        *total += metadata.len();
        if *total > MAX_BYTES {
            return Err(refused(format!("the files are more than {MAX_BYTES} bytes")));
        }
        header.set_size(metadata.len());
        let file = File::open(path).map_err(failed)?;
        archive.append_data(&mut header, name, io::Read::take(file, metadata.len())).map_err(failed)
    } else {
        Err(refused("it is neither a file nor a folder nor a link".to_owned()))
    }
}

/// In the order of their names, folders before what is in them.
fn collect(
    folder: &Path,
    at: &Path,
    ignored: &Gitignore,
    files: &mut Vec<PathBuf>,
) -> Result<(), ImageError> {
    let failed = |error: io::Error| ImageError::File { path: at.to_owned(), error };
    let mut entries = fs::read_dir(at).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        // The two files that a build needs are never left out, as with Docker.
        let needed = at == folder && (entry.file_name() == "Dockerfile" || entry.file_name() == IGNORE_FILE);
        let left_out = !needed && ignored.matched_path_or_any_parents(&path, is_dir).is_ignore();
        if !left_out {
            files.push(path.clone());
            if files.len() > MAX_FILES {
                let reason = format!("more than {MAX_FILES} files");
                return Err(ImageError::Context { path: folder.to_owned(), reason });
            }
        }
        // Also below a folder that is left out: a later pattern may take something in it back.
        if is_dir && (!left_out || ignored.num_whitelists() > 0) {
            collect(folder, &path, ignored, files)?;
        }
    }
    Ok(())
}

/// Docker's patterns count from the context's root; git's do not unless they begin with a slash.
fn ignored(folder: &Path) -> Result<Gitignore, ImageError> {
    let path = folder.join(IGNORE_FILE);
    let refused = |reason: String| ImageError::Context { path: path.clone(), reason };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Gitignore::empty()),
        Err(error) => return Err(ImageError::File { path, error }),
    };
    let mut builder = GitignoreBuilder::new(folder);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (mark, pattern) =
            line.strip_prefix('!').map_or(("", line), |pattern| ("!", pattern.trim_start()));
        let pattern = pattern.trim_start_matches("./").trim_start_matches('/').trim_end_matches('/');
        builder
            .add_line(None, &format!("{mark}/{pattern}"))
            .map_err(|error| refused(format!("{line}: {error}")))?;
    }
    builder.build().map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().expect("an archive");
        entries
            .map(|entry| entry.expect("an entry").path().expect("a path").to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn packs_the_same_files_to_the_same_bytes_and_leaves_out_what_is_ignored() {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("sub/deep")).expect("mkdir");
        for (name, text) in [
            ("Dockerfile", "FROM x"),
            ("a.log", "1"),
            ("sub/a.log", "2"),
            ("sub/deep/keep", "3"),
            ("sub/b", "4"),
        ] {
            fs::write(at(name), text).expect("write");
        }
        symlink("/etc/shadow", at("link")).expect("symlink");
        fs::write(at(".dockerignore"), "# x\n*.log\nsub/deep\n!sub/deep/keep\nDockerfile\n").expect("write");
        let first = pack(folder.path(), None).expect("packs");
        assert_eq!(
            names(&first),
            [".dockerignore", "Dockerfile", "link", "sub", "sub/a.log", "sub/b", "sub/deep/keep"]
        );
        assert_eq!(first, pack(folder.path(), None).expect("packs"));
        let mut archive = tar::Archive::new(&first[..]);
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("entry");
            assert_eq!((entry.header().uid().ok(), entry.header().mtime().ok()), (Some(0), Some(0)));
            if entry.path().expect("path").ends_with("link") {
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("reads");
                assert_eq!(
                    (text.as_str(), entry.header().entry_type()),
                    ("", EntryType::Symlink),
                    "never followed"
                );
            }
        }
    }

    #[test]
    fn refuses_special_files() {
        let folder = tempfile::tempdir().expect("tempdir");
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("s")).expect("socket");
        let error = pack(folder.path(), None).expect_err("a socket");
        assert!(matches!(error, ImageError::Context { .. }), "{error}");
    }
}
