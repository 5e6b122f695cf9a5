//! A container's control groups on the host: they end or stop all its processes at once, so that none can be made
//! while the others are being ended.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the hierarchies are mounted that can end (version 2) or stop (version 1) a group. Only whole ones: what a
/// runner in a container sees of its own group says nothing of others.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hierarchies {
    unified: Option<PathBuf>,
    freezer: Option<PathBuf>,
}

/// Ends a group, where the kernel can do that in one step (`cgroup.kill`, since Linux 5.14).
pub(super) fn kill(cgroups: &BTreeSet<String>) -> bool {
    let Some(root) = Hierarchies::of_this_process().unified else { return false };
    groups(cgroups, "")
        .map(|path| fs::write(root.join(path).join("cgroup.kill"), "1"))
        .any(|done| done.is_ok())
}

/// Groups that stand still until this is dropped.
pub(super) struct Stopped(Vec<PathBuf>);

impl Stopped {
    /// Of version 1; nothing where there is none.
    pub fn new(cgroups: &BTreeSet<String>) -> Self {
        let Some(root) = Hierarchies::of_this_process().freezer else { return Self(Vec::new()) };
        let states = groups(cgroups, "freezer").map(|path| root.join(path).join("freezer.state"));
        Self(states.filter(|state| fs::write(state, "FROZEN").is_ok()).collect())
    }
}

impl Drop for Stopped {
    /// A process that was signalled dies when it runs again.
    fn drop(&mut self) {
        for state in &self.0 {
            if let Err(error) = fs::write(state, "THAWED") {
                tracing::error!(%error, "a container's processes stay frozen");
            }
        }
    }
}

/// Paths of the lines for one controller in `/proc/PID/cgroup` files, relative to the hierarchy's root; empty: version 2.
fn groups<'a>(cgroups: &'a BTreeSet<String>, controller: &'a str) -> impl Iterator<Item = &'a Path> {
    cgroups.iter().flat_map(|text| text.lines()).filter_map(move |line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let of = controllers.split(',').any(|one| one == controller);
        let path = path.strip_prefix('/').filter(|path| !path.is_empty())?;
        (of && !path.split('/').any(|part| part == "..")).then(|| Path::new(path))
    })
}

impl Hierarchies {
    fn of_this_process() -> Self {
        fs::read_to_string("/proc/self/mountinfo").map_or_else(|_| Self::default(), |text| Self::parse(&text))
    }

    /// `man 5 proc_pid_mountinfo`.
    fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let before: Vec<&str> = before.split(' ').collect();
            let after: Vec<&str> = after.split(' ').collect();
            let (Some(&root), Some(&point), Some(&kind)) = (before.get(3), before.get(4), after.first())
            else {
                continue;
            };
            let options = after.get(2).copied().unwrap_or_default();
            match kind {
                _ if root != "/" => {}
                "cgroup2" => found.unified = Some(point.into()),
                "cgroup" if options.split(',').any(|option| option == "freezer") => {
                    found.freezer = Some(point.into());
                }
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_hierarchies_count() {
        let text = "30 25 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n\
                    31 30 0:27 / /sys/fs/cgroup/freezer rw shared:10 - cgroup cgroup rw,freezer\n\
                    32 30 0:28 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n\
                    33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(text);
        assert_eq!(found.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(found.freezer.as_deref(), Some(Path::new("/sys/fs/cgroup/freezer")));
        let inside = "31 30 0:27 /docker/abc /sys/fs/cgroup/freezer ro - cgroup cgroup rw,freezer\n\
                      33 30 0:29 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(Hierarchies::parse(inside), Hierarchies::default());
    }

    #[test]
    fn a_group_is_the_one_of_its_controller_and_never_above_the_root() {
        let texts = BTreeSet::from([
            "7:cpu,cpuacct:/docker/x\n6:freezer:/docker/y\n0::/docker/z\n".to_owned(),
            "6:freezer:/../../etc\n0::/\n".to_owned(),
        ]);
        assert_eq!(groups(&texts, "freezer").collect::<Vec<_>>(), [Path::new("docker/y")]);
        assert_eq!(groups(&texts, "").collect::<Vec<_>>(), [Path::new("docker/z")]);
        assert_eq!(groups(&texts, "cpuacct").collect::<Vec<_>>(), [Path::new("docker/x")]);
    }
}
