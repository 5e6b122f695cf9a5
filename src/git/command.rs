//! The git command, in an environment that we made. It runs in bare repositories of ours and nowhere else.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::git::{
    confined::{Confined, Network},
    error::GitError,
    home::Home,
    said,
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Findings in old, honest histories that harm nobody. All else that fsck knows is an error.
const BENIGN: &[&str] = &[
    "badDate",
    "badDateOverflow",
    "badEmail",
    "badName",
    "badTimezone",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "multipleAuthors",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
];

/// Findings that git itself only warns of, and that are an attack or corruption to us.
const REFUSED: &[&str] = &[
    "emptyName",
    "fullPathname",
    "gitmodulesName",
    "gitmodulesPath",
    "gitmodulesSymlink",
    "gitmodulesUpdate",
    "gitmodulesUrl",
    "hasDot",
    "hasDotdot",
    "hasDotgit",
    "largePathname",
    "nullSha1",
    "treeNotSorted",
    "duplicateEntries",
];

/// One call of git.
pub(crate) struct GitCommand<'a> {
    pub what: &'static str,
    /// The bare repository of ours that it works in.
    pub git_dir: &'a Path,
    pub args: Vec<std::ffi::OsString>,
    /// Folders of other owners that it may read from.
    pub trusted: &'a [PathBuf],
    /// Where it writes objects to, beside the repository's own, which are read then. `None`: into the repository.
    pub objects: Option<PathBuf>,
    /// Whom it runs as, where it faces what is not ours.
    pub confined: Option<&'a Confined>,
    pub stdin: Stdio,
    pub limit: Duration,
}

impl GitCommand<'_> {
    /// Runs it; `watch` is asked every few milliseconds and may end it with an error. Returns its
    /// standard output, up to `max_output` bytes.
    pub fn run(
        self,
        max_output: u64,
        mut watch: impl FnMut() -> Result<(), GitError>,
    ) -> Result<Vec<u8>, GitError> {
        let home = Home::make()?;
        let config = home.path().join("config");
        let network = self.confined.map(|confined| &confined.network);
        fs::write(&config, config_text(self.trusted, network)).map_err(GitError::io("write", &config))?;
        if let Some(confined) = self.confined {
            confined.give(&config)?;
            confined.give(home.path())?;
        }
        let mut stdout = tempfile::tempfile().map_err(GitError::io("make", home.path()))?;
        let mut stderr = tempfile::tempfile().map_err(GitError::io("make", home.path()))?;
        let output =
            |file: &File| file.try_clone().map(Stdio::from).map_err(GitError::io("clone", home.path()));
        let mut command = self.confined.map_or_else(|| Command::new("git"), Confined::command);
        let own = self.objects.is_some().then(|| quoted(&self.git_dir.join("objects")));
        let child = command
            .env_clear()
            .envs(environment(home.path(), &config, network))
            .envs(self.objects.iter().map(|store| ("GIT_OBJECT_DIRECTORY", store.as_os_str())))
            .envs(own.as_deref().map(|store| ("GIT_ALTERNATE_OBJECT_DIRECTORIES", store)))
            .arg("--git-dir")
            .arg(self.git_dir)
            .args(&self.args)
            .current_dir(self.git_dir)
            .stdin(self.stdin)
            .stdout(output(&stdout)?)
            .stderr(output(&stderr)?)
            .process_group(0)
            .spawn()
            .map_err(GitError::io("start", Path::new(command.get_program())))?;
        let mut group = ProcessGroup { child, ended: false };
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = group.poll()? {
                break status;
            }
            if start.elapsed() > self.limit {
                return Err(GitError::TimedOut { what: self.what, limit: self.limit });
            }
            watch()?;
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        if !status.success() {
            let said = said::reason(&String::from_utf8_lossy(&tail(&mut stderr, 4096)?));
            let reason = if said.is_empty() { status.to_string() } else { said };
            return Err(GitError::Command { what: self.what, reason });
        }
        head(&mut stdout, max_output, self.what)
    }
}

/// Git and all that it started; none of it outlives the call.
struct ProcessGroup {
    child: Child,
    ended: bool,
}

impl ProcessGroup {
    fn poll(&mut self) -> Result<Option<ExitStatus>, GitError> {
        let status = self.child.try_wait().map_err(GitError::io("wait for", Path::new("git")))?;
        self.ended = status.is_some();
        Ok(status)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn environment(
    home: &Path,
    config: &Path,
    network: Option<&Network>,
) -> Vec<(&'static str, std::ffi::OsString)> {
    // Without options of its own there is no host that ssh could go to.
    let ssh = network.and_then(|network| network.ssh.as_deref());
    let ssh = ssh.map_or_else(|| "false".to_owned(), |options| format!("ssh -oBatchMode=yes {options}"));
    vec![
        ("PATH", PATH.into()),
        ("HOME", home.into()),
        ("LC_ALL", "C".into()),
        ("GIT_CONFIG_NOSYSTEM", "1".into()),
        ("GIT_CONFIG_GLOBAL", config.into()),
        ("GIT_ATTR_NOSYSTEM", "1".into()),
        ("GIT_TERMINAL_PROMPT", "0".into()),
        ("GIT_ASKPASS", "false".into()),
        ("SSH_ASKPASS", "false".into()),
        ("GIT_SSH_COMMAND", ssh.into()),
        ("GIT_ALLOW_PROTOCOL", "file:https:ssh".into()),
        ("GIT_NO_REPLACE_OBJECTS", "1".into()),
        ("GIT_NO_LAZY_FETCH", "1".into()),
        ("GIT_OPTIONAL_LOCKS", "0".into()),
    ]
}

/// The only configuration that git sees. It is a file, not `-c`, so that the programs that git starts
/// on a local source see it too.
fn config_text(trusted: &[PathBuf], network: Option<&Network>) -> String {
    let mut text = String::from(
        "[core]\n\thooksPath = /dev/null\n\tfsmonitor = false\n\tprotectHFS = true\n\tprotectNTFS = true\n\
         \taskPass = false\n[protocol \"ext\"]\n\tallow = never\n[protocol]\n\tversion = 2\n\
         [gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n[http]\n\tfollowRedirects = false\n\
         \tlowSpeedLimit = 1000\n\tlowSpeedTime = 60\n\tproxy =\n[filter \"lfs\"]\n\tsmudge =\n\tprocess =\n\trequired = false\n\
         [core]\n\tbigFileThreshold = 64m\n[credential]\n\thelper =\n\
         [submodule]\n\trecurse = false\n[fetch]\n\tunpackLimit = 1\n\trecurseSubmodules = false\n\
         \twriteCommitGraph = false\n[transfer]\n\tfsckObjects = true\n\tunpackLimit = 1\n\
         \tbundleURI = false\n\tadvertiseSID = false\n",
    );
    if let Some(resolve) = network.and_then(|network| network.resolve.as_deref()) {
        text.push_str(&format!("[http]\n\tcurloptResolve = {resolve}\n"));
    }
    text.push_str("[fetch \"fsck\"]\n");
    for finding in BENIGN {
        text.push_str(&format!("\t{finding} = warn\n"));
    }
    for finding in REFUSED {
        text.push_str(&format!("\t{finding} = error\n"));
    }
    if !trusted.is_empty() {
        text.push_str("[safe]\n");
    }
    for folder in trusted {
        text.push_str(&format!("\tdirectory = {}\n", quoted(folder)));
    }
    text
}

/// The same levels for a command that reads no configuration of them.
pub(crate) fn fsck_levels() -> String {
    let level = |names: &[&str], level: &str| -> Vec<String> {
        // An older git (before 2.44) stops at a name that it does not know.
        let known = names.iter().filter(|name| **name != "largePathname");
        known.map(|name| format!("{name}={level}")).collect()
    };
    [level(BENIGN, "warn"), level(REFUSED, "error")].concat().join(",")
}

/// A path as git's configuration wants it, and its lists of folders; the caller has refused control characters.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}

fn head(file: &mut File, limit: u64, what: &'static str) -> Result<Vec<u8>, GitError> {
    let error = || GitError::io("read the output of", Path::new("git"));
    file.seek(SeekFrom::Start(0)).map_err(error())?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(error())?;
    match bytes.len() as u64 {
        seen if seen > limit => Err(GitError::TooLarge { what, limit, seen }),
        _ => Ok(bytes),
    }
}

fn tail(file: &mut File, limit: i64) -> Result<Vec<u8>, GitError> {
    let error = || GitError::io("read the output of", Path::new("git"));
    let length = file.seek(SeekFrom::End(0)).map_err(error())?;
    let length = i64::try_from(length).unwrap_or(i64::MAX).min(limit);
    file.seek(SeekFrom::End(-length)).map_err(error())?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(error())?;
    Ok(bytes)
}

/// `text` as a standard input.
pub(crate) fn stdin_of(text: &[u8]) -> Result<Stdio, GitError> {
    let error = || GitError::io("write the input of", Path::new("git"));
    let mut file = tempfile::tempfile().map_err(error())?;
    file.write_all(text).map_err(error())?;
    file.seek(SeekFrom::Start(0)).map_err(error())?;
    Ok(Stdio::from(file))
}
