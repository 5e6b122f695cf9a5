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

/// Ends a container's group, where the kernel can do that in one step (`cgroup.kill`, since Linux 5.14).
pub(super) fn kill(cgroups: &BTreeSet<String>, container_id: &str) -> bool {
    let Some(root) = Hierarchies::of_this_process().unified else { return false };
    let paths = groups(cgroups, "", container_id).into_iter();
    paths.map(|path| fs::write(root.join(path).join("cgroup.kill"), "1")).any(|done| done.is_ok())
}

/// Groups that stand still until this is dropped.
pub(super) struct Stopped(Vec<PathBuf>);

impl Stopped {
    /// Of version 1; nothing where there is none.
    pub fn new(cgroups: &BTreeSet<String>, container_id: &str) -> Self {
        let Some(root) = Hierarchies::of_this_process().freezer else { return Self(Vec::new()) };
        let paths = groups(cgroups, "freezer", container_id).into_iter();
        let states = paths.map(|path| root.join(path).join("freezer.state"));
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

/// A container's own groups, by the lines for one controller in `/proc/PID/cgroup` files; relative to the hierarchy's
/// root. An empty controller: version 2.
///
/// A process may be in the container's group of one hierarchy and in its engine's of another (where both versions are
/// mounted): that one is not the container's to end.
fn groups<'a>(cgroups: &'a BTreeSet<String>, controller: &str, container_id: &str) -> BTreeSet<&'a Path> {
    let of_line = |line: &'a str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = of_container(path, container_id)?;
        controllers.split(',').any(|one| one == controller).then(|| Path::new(path))
    };
    cgroups.iter().flat_map(|text| text.lines()).filter_map(of_line).collect()
}

/// The part of a group's path that ends with the container's id, relative to the root: `/docker/ID` (cgroupfs),
/// `docker-ID.scope` or `libpod-ID.scope` (systemd). Groups below are the container's too.
pub(super) fn of_container<'a>(path: &'a str, container_id: &str) -> Option<&'a str> {
    if container_id.len() != 64 || !container_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let path = path.strip_prefix('/')?;
    let mut end = 0;
    for part in path.split('/') {
        end += part.len();
        let bare = part.strip_suffix(".scope").unwrap_or(part);
        let bare = bare.strip_prefix("docker-").or_else(|| bare.strip_prefix("libpod-")).unwrap_or(bare);
        if part == ".." {
            return None;
        }
        if bare == container_id {
            return path.get(..end);
        }
        end += 1;
    }
    None
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
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

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
    fn a_group_is_the_containers_own_and_never_its_engines() {
        let id = "0123456789abcdef".repeat(4);
        let texts = BTreeSet::from([
            format!("7:cpu,cpuacct:/a/{id}\n6:freezer:/b/docker-{id}.scope/below\n0::/c/{id}\n"),
            format!("6:freezer:/../{id}\n0::/\n"),
            format!("6:freezer:/{id}x\n0::/system.slice/docker.service\n"),
        ]);
        let path = |text: &str| PathBuf::from(text.replace("ID", &id));
        assert_eq!(groups(&texts, "freezer", &id), BTreeSet::from([&*path("b/docker-ID.scope")]));
        assert_eq!(groups(&texts, "", &id), BTreeSet::from([&*path("c/ID")]));
        assert_eq!(groups(&texts, "cpuacct", &id), BTreeSet::from([&*path("a/ID")]));
        assert_eq!(groups(&texts, "", ""), BTreeSet::new());
    }

    /// A hierarchy of version 2, mounted for this if it is nowhere: it needs no controllers.
    struct Unified(PathBuf, Option<tempfile::TempDir>);

    impl Unified {
        fn new() -> Self {
            if let Some(root) = Hierarchies::of_this_process().unified {
                return Self(root, None);
            }
            let folder = tempfile::tempdir().expect("a folder");
            let mount = Command::new("mount").args(["-t", "cgroup2", "cgroup2"]).arg(folder.path()).status();
            assert!(mount.expect("mount").success(), "this takes root, and Linux 5.14");
            Self(folder.path().to_owned(), Some(folder))
        }
    }

    impl Drop for Unified {
        fn drop(&mut self) {
            if self.1.is_some() {
                let _ = Command::new("umount").arg(&self.0).status();
            }
        }
    }

    /// Real processes that make others as fast as they can, in a real group: one write ends them all, and their
    /// neighbour, whose group this is not, lives.
    #[test]
    fn a_group_of_version_2_is_ended_in_one_step() {
        let unified = Unified::new();
        let own = unified.0.join(format!("kage-test-{}", std::process::id()));
        let id = format!("{:064x}", std::process::id());
        let (engine, container) = (own.join("engine"), own.join(&id));
        fs::create_dir(&own).expect("takes root");
        let begin = |group: &Path, script: &str| {
            fs::create_dir(group).expect("a group");
            let script = format!("echo $$ > {}/cgroup.procs && {script}", group.display());
            Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("sh")
        };
        let mut neighbour = begin(&engine, "exec sleep 60");
        let mut storm = begin(&container, "for i in $(seq 1 3000); do sleep 60 & done; wait");
        let members = |group: &Path| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let wait = |what: &str, done: &dyn Fn() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !done() {
                assert!(Instant::now() < deadline, "never: {what}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait("they begin", &|| members(&container).lines().count() > 100 && !members(&engine).is_empty());
        let below = |group: &Path| group.strip_prefix(&unified.0).expect("below").display().to_string();
        // What a process shows that is in the container's group of one hierarchy, and in its engine's of this one.
        let theirs = format!("6:freezer:/docker/{id}\n0::/{}\n", below(&engine));
        assert!(!kill(&BTreeSet::from([theirs]), &id), "that group is not the container's");
        let ours = fs::read_to_string(format!("/proc/{}/cgroup", storm.id())).expect("it lives");
        assert!(ours.contains(&format!("0::/{}", below(&container))), "{ours}");
        assert!(kill(&BTreeSet::from([ours]), &id), "Linux 5.14 has cgroup.kill");
        assert!(!storm.wait().expect("ends").success());
        wait("all are gone", &|| {
            fs::read_to_string(container.join("cgroup.events")).is_ok_and(|text| text.contains("populated 0"))
        });
        assert!(neighbour.try_wait().expect("ours").is_none(), "the neighbour was ended too");
        neighbour.kill().expect("ours");
        neighbour.wait().expect("ours");
        wait("the groups go", &|| {
            [&container, &engine, &own].iter().all(|group| fs::remove_dir(group).is_ok() || !group.exists())
        });
    }
}
