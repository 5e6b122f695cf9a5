//! The device nodes that loop mounts need, for a runner in a container: its `/dev` has none.

use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;

/// Majors and minors as the kernel assigns them (`Documentation/admin-guide/devices.txt`).
const LOOP_CONTROL: (u32, u32) = (10, 237);
const LOOP: u32 = 7;
/// Devices of other programs on the host count too.
const NODES: u32 = 256;

/// Makes them where there are none. Without the right to, nothing is made: the mount then says what is missing.
pub fn provide() {
    if Path::new("/dev/loop-control").exists() {
        return;
    }
    let mode = Mode::RUSR | Mode::WUSR;
    let (major, minor) = LOOP_CONTROL;
    let mut made = mknodat(CWD, "/dev/loop-control", FileType::CharacterDevice, mode, makedev(major, minor));
    for minor in 0..NODES {
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                tracing::debug!(%error, "disk.no_loop_nodes");
                return;
            }
        }
        let path = format!("/dev/loop{minor}");
        made = mknodat(CWD, path, FileType::BlockDevice, mode, makedev(LOOP, minor));
    }
}
