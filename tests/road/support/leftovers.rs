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
    found.extend(keepers(folder));
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

/// The process ids of a world's keepers of refused calls.
pub fn keeper(data: &Path) -> Option<rustix::process::Pid> {
    let text = fs::read_to_string(data.join("refusals/keeper.lock")).ok()?;
    let id: i32 = text.trim().parse().ok()?;
    // Its folder is among its words: the number may be another process's by now.
    let words = fs::read(format!("/proc/{id}/cmdline")).ok()?;
    let words = String::from_utf8_lossy(&words).into_owned();
    (words.contains("keeper") && words.contains(&*data.to_string_lossy()))
        .then(|| rustix::process::Pid::from_raw(id))
        .flatten()
}

/// One outlives its runner on purpose, until nothing is held; a signal spares us the wait. One that does not end then
/// is left over.
fn keepers(world: &Path) -> Vec<String> {
    let folders = fs::read_dir(world).into_iter().flatten().flatten().map(|entry| entry.path());
    folders.filter_map(|data| end_keeper(&data)).collect()
}

fn end_keeper(data: &Path) -> Option<String> {
    use rustix::process::{Signal, kill_process};
    let process = keeper(data)?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut signalled = false;
    while keeper(data).is_some() {
        if !signalled {
            signalled = kill_process(process, Signal::TERM).is_ok();
        }
        if std::time::Instant::now() > deadline {
            kill_process(process, Signal::KILL).ok()?;
            return Some(format!("keeper {process:?}"));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    None
}
