//! A file system of its own for each run, in a sparse file: the kernel refuses what goes beyond it, in bytes and in
//! inodes, and what is in it is gone with the file.
//!
//! An ext4 without a journal, made once as a template and copied (some hundred kilobytes) for each run. Its metadata
//! is written by `mkfs` and the kernel alone, never by a run. Project quotas would do the same, but need a kernel and
//! a file system that were made for them; a loop device is nearly everywhere.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{SeekFrom, seek, statvfs, syncfs};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::disk::error::DiskError;

const BLOCK: u64 = 4096;
const INODE: u64 = 256;
/// The largest pool that ext4 keeps back for itself, in blocks (kernel: `ext4_calculate_resv_clusters`).
const KEPT_BACK: u64 = 4096;
/// Bitmaps, descriptors, the root folder, `lost+found`.
const OVERHEAD: u64 = 256 * 1024;

/// Beside the run's other things: the file, and where it is mounted.
const FILE: &str = "disk.img";
/// Its name once something of it is lost. The kernel says so a single time, to whoever asks first.
const LOST: &str = "disk.lost";

/// Nothing in it is a device or gains rights; no run survives a restart, so nothing need be flushed in order; inode
/// tables of a sparse file are zero already.
const OPTIONS: &str = "loop,nosuid,nodev,noatime,nobarrier,noinit_itable,errors=remount-ro";

/// Makes the file systems of one size.
#[derive(Debug)]
pub struct Images {
    template: PathBuf,
    bytes: u64,
    inodes: u64,
}

impl Images {
    /// Makes the template in `folder`, unless it is there, and mounts it once: whoever has a value of this type can
    /// mount images.
    ///
    /// # Errors
    /// [`DiskError`] says what this machine lacks.
    pub fn open(folder: &Path, bytes: u64, inodes: u64) -> Result<Self, DiskError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(DiskError::io("make", folder))?;
        // One for each block: more would never be used by files that have content, and ext4 has room for no more.
        let inodes = inodes.min(bytes / BLOCK);
        let this = Self { template: folder.join(format!("ext4-{bytes}-{inodes}.img")), bytes, inodes };
        if !this.template.exists() {
            this.make_template()?;
        }
        let probe = folder.join("probe");
        remove_tree(&probe)?;
        let mounted = this.mount(&probe, "mnt")?;
        let room = statvfs(&mounted).map_err(DiskError::io("measure", &mounted));
        release(&mounted)?;
        remove_tree(&probe)?;
        let room = room?;
        let (has_bytes, has_inodes) = (room.f_bavail.saturating_mul(room.f_frsize), room.f_favail);
        // Within a fiftieth: groups of blocks and of inodes are rounded.
        if has_bytes.saturating_mul(50) < bytes.saturating_mul(49) || has_inodes < inodes - inodes / 50 {
            return Err(DiskError::TooSmall { bytes, inodes, has_bytes, has_inodes });
        }
        Ok(this)
    }

    /// As many as a run may really use.
    pub const fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Mounts a new, empty file system at `name` in the folder `run`, which is made if need be. What was mounted there
    /// before must have been taken off.
    ///
    /// # Errors
    /// The image cannot be written or mounted; then nothing is mounted.
    pub fn mount(&self, run: &Path, name: &str) -> Result<PathBuf, DiskError> {
        DirBuilder::new().recursive(true).mode(0o700).create(run).map_err(DiskError::io("make", run))?;
        let (file, target) = (run.join(FILE), run.join(name));
        for before in [&file, &run.join(LOST)] {
            match fs::remove_file(before) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(DiskError::io("remove", before)(error));
                }
                _ => {}
            }
        }
        copy_sparse(&self.template, &file).map_err(DiskError::io("write", &file))?;
        match DirBuilder::new().mode(0o700).create(&target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(DiskError::io("make", &target)(error));
            }
            _ => {}
        }
        let (file, target_path) = (file.as_os_str(), target.as_os_str());
        program(
            "mount",
            &[
                "-n".as_ref(),
                "-t".as_ref(),
                "ext4".as_ref(),
                "-o".as_ref(),
                OPTIONS.as_ref(),
                file,
                target_path,
            ],
        )?;
        Ok(target)
    }

    fn make_template(&self) -> Result<(), DiskError> {
        let unfinished = self.template.with_extension("new");
        let tables = self.inodes.next_multiple_of(BLOCK / INODE) * INODE;
        let kept_back = (self.bytes / 50).min(KEPT_BACK * BLOCK) + BLOCK;
        let size = (self.bytes + tables + kept_back + OVERHEAD + self.bytes / 1024).next_multiple_of(BLOCK);
        let file = File::create(&unfinished).map_err(DiskError::io("make", &unfinished))?;
        file.set_len(size).map_err(DiskError::io("make", &unfinished))?;
        drop(file);
        let inodes = self.inodes.to_string();
        let fixed = ["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-O"];
        let features = "^has_journal,^resize_inode,^metadata_csum_seed,^orphan_file";
        let rest = [features, "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-N", &inodes];
        let mut args: Vec<&std::ffi::OsStr> = fixed.iter().chain(&rest).map(AsRef::as_ref).collect();
        args.push(unfinished.as_os_str());
        program("mkfs.ext4", &args)?;
        fs::rename(&unfinished, &self.template).map_err(DiskError::io("keep", &self.template))
    }
}

/// Has the kernel write all that is still in memory of the file system at `name` in the folder `run`, if there is one. The
/// file beneath is sparse: where the disk is full, what was written and not yet stored is dropped, and reads as zeroes.
///
/// # Errors
/// [`DiskError::Lost`] if that has happened, however often this is asked.
pub fn settle(run: &Path, name: &str) -> Result<(), DiskError> {
    let (file, lost, mounted) = (run.join(FILE), run.join(LOST), run.join(name));
    if lost.exists() {
        return Err(DiskError::Lost(mounted));
    }
    if !file.exists() {
        return Ok(());
    }
    let root = File::open(&mounted).map_err(DiskError::io("open", &mounted))?;
    if let Err(error) = syncfs(&root) {
        tracing::warn!(%error, mounted = %mounted.display(), "disk.lost");
        fs::rename(&file, &lost).map_err(DiskError::io("rename", &file))?;
        return Err(DiskError::Lost(mounted));
    }
    Ok(())
}

/// Takes a file system off, whoever still uses it; one that is not mounted is left. Its loop device goes with it.
///
/// # Errors
/// We may not.
pub fn release(mounted: &Path) -> Result<(), DiskError> {
    match unmount(mounted, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(DiskError::io("unmount", mounted)(error)),
    }
}

/// Ours alone; nothing of a run is in it.
fn remove_tree(folder: &Path) -> Result<(), DiskError> {
    let mounted = folder.join("mnt");
    if mounted.exists() {
        release(&mounted)?;
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DiskError::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// The bytes that are there, and holes for the rest.
fn copy_sparse(source: &Path, target: &Path) -> io::Result<()> {
    let mut from = File::open(source)?;
    let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match seek(&from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&from, SeekFrom::Hole(start))?;
        from.seek(io::SeekFrom::Start(start))?;
        to.seek(io::SeekFrom::Start(start))?;
        let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        from.read_exact(&mut bytes)?;
        to.write_all(&bytes)?;
        at = end;
    }
    Ok(())
}

/// Runs a program of the system's and waits for it.
fn program(name: &'static str, args: &[&std::ffi::OsStr]) -> Result<(), DiskError> {
    let output = Command::new(name)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| DiskError::NotStarted { program: name, source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(DiskError::Failed { program: name, status: output.status.to_string(), said })
}
