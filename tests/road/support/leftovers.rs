//! What a test must not leave: containers, mounts, run folders. Looks, then tidies up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::docker;

/// Ids of an instance's containers, running or not.
pub fn containers(instance: &str) -> Vec<String> {
    let filter = format!("label=kage.instance={instance}");
    docker(&["ps", "--all", "--quiet", "--filter", &filter]).lines().map(str::to_owned).collect()
}

/// Mount points below a folder, the deepest first.
pub fn mounts(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    below.sort();
    below.reverse();
    below
}

/// Folders of runs in every data folder of a world.
pub fn run_folders(world: &Path) -> Vec<PathBuf> {
    let entries =
        |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let of = |data: PathBuf| entries(data.join("runs")).chain(entries(data.join("model")));
    entries(world.to_owned()).flat_map(of).collect()
}

/// Removes everything, and says what was there.
pub fn take(instance: &str, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for id in containers(instance) {
        let seen = docker(&["inspect", "--format", "{{.State.Status}} {{json .Config.Labels}}", &id]);
        found.push(format!("container {id}: {}", seen.trim()));
        docker(&["rm", "--force", "--volumes", &id]);
    }
    found.extend(run_folders(folder).iter().map(|path| format!("run folder {}", path.display())));
    for point in mounts(folder) {
        found.push(format!("mount {}", point.display()));
        let status = Command::new("umount").arg(&point).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot unmount {}", point.display());
    }
    found.extend(private_cluster(folder));
    fs::remove_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    found
}

/// A private cluster that outlived its `kage serve`.
fn private_cluster(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join("data/postgres/data/postmaster.pid")).ok()?;
    let pid = rustix::process::Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
    // The fast shutdown.
    rustix::process::kill_process(pid, rustix::process::Signal::INT).ok()?;
    while rustix::process::test_kill_process(pid).is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Some(format!("private cluster {pid:?}"))
}
