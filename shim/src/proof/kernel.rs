//! What the kernel says of this process, and what it tells about the host.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use kage_shim::containment::MASKED;

use crate::proof::text;

const STATUS: [&str; 10] =
    ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];

pub fn status() -> BTreeMap<String, String> {
    let status = match text("/proc/self/status") {
        Ok(status) => status,
        Err(error) => return BTreeMap::from([("unreadable".to_owned(), error)]),
    };
    let fields = status.lines().filter_map(|line| line.split_once(':'));
    let wanted = fields.filter(|(name, _)| STATUS.contains(name));
    let words = |value: &str| value.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found: BTreeMap<String, String> =
        wanted.map(|(name, value)| (name.to_owned(), words(value))).collect();
    for (name, path) in [("UidMap", "/proc/self/uid_map"), ("GidMap", "/proc/self/gid_map")] {
        found.insert(name.to_owned(), text(path).map_or_else(|error| error, |map| words(&map)));
    }
    found
}

pub fn namespaces() -> BTreeMap<String, String> {
    let name = |kind: &str| match std::fs::read_link(format!("/proc/self/ns/{kind}")) {
        Ok(link) => link.to_string_lossy().into_owned(),
        Err(error) => format!("unreadable: {error}"),
    };
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    kinds.into_iter().map(|kind| (kind.to_owned(), name(kind))).collect()
}

/// Those of the paths to be masked that tell anything.
pub fn unmasked() -> Vec<String> {
    MASKED.iter().filter(|path| tells(Path::new(path))).map(|path| (*path).to_owned()).collect()
}

/// Whether a folder has an entry, or a file a byte. Some of them block their reader until there is news.
fn tells(path: &Path) -> bool {
    if let Ok(mut entries) = std::fs::read_dir(path) {
        return entries.next().is_some();
    }
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path);
    file.is_ok_and(|mut file| file.read(&mut [0; 1]).is_ok_and(|read| read > 0))
}
