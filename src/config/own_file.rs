//! Files that hold a key and must be their owner's alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::config::client_error::ClientConfigError;

/// Opens it, if there is one, after looking at who else could: on the open file, so that nobody can swap it in between.
pub(super) fn open(path: &Path) -> Result<Option<File>, ClientConfigError> {
    // Not blocking: a FIFO in its place must not hang the client.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(ClientConfigError::Unreadable { path: path.to_owned(), source }),
    };
    check_owner_only(path, &file, rustix::process::geteuid().as_raw())?;
    Ok(Some(file))
}

fn check_owner_only(path: &Path, file: &File, uid: u32) -> Result<(), ClientConfigError> {
    let path = path.to_owned();
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(source) => return Err(ClientConfigError::Unreadable { path, source }),
    };
    if !metadata.is_file() {
        return Err(ClientConfigError::NotAFile { path });
    }
    if metadata.uid() != uid {
        return Err(ClientConfigError::NotYours { path, owner: metadata.uid(), uid });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ClientConfigError::Exposed { path, mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_file_of_another_user() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("config.toml");
        std::fs::write(&path, "key = \"hush\"\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let file = File::open(&path).unwrap();
        let uid = file.metadata().unwrap().uid();
        assert!(check_owner_only(&path, &file, uid).is_ok());
        let error = check_owner_only(&path, &file, uid + 1).unwrap_err();
        assert!(matches!(error, ClientConfigError::NotYours { .. }));
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains("chmod 600"), "{text}");
    }
}
