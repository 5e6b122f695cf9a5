//! A disk that somebody else has filled, and freed again.

use std::fs::OpenOptions;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Less than this is as good as nothing, in bytes.
const LITTLE: u64 = 1 << 18;

/// Takes all the room there is; whether that could be done.
pub fn fill(folder: &Path) -> bool {
    let name = folder.join("filled-by-somebody-else");
    let Ok(file) = OpenOptions::new().create(true).append(true).open(name) else { return false };
    let mut taken = file.metadata().map_or(0, |found| found.len());
    // What the file system keeps of its own, or gives to others meanwhile, cannot be had: a little less, until it fits.
    for _ in 0..100 {
        let Ok(found) = statvfs(folder) else { return false };
        let mut more = found.f_bavail * found.f_frsize;
        if more < LITTLE {
            return true;
        }
        while more > LITTLE / 4 && fallocate(&file, FallocateFlags::empty(), taken, more).is_err() {
            more -= more / 64;
        }
        taken += more;
    }
    false
}

pub fn free(folder: &Path) {
    let _ = std::fs::remove_file(folder.join("filled-by-somebody-else"));
}
