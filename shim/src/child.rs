//! Starts the CLI.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use kage_shim::protocol::Job;
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use crate::signals;

/// Bytes of each pipe. Not more: the kernel counts all pipes of a user together, and
/// shrinks new ones to a page once they hold 64 MiB (pipe(7), pipe-user-pages-soft).
const PIPE_BYTES: usize = 256 * 1024;

/// The CLI's main process and the shim's ends of its pipes, all non-blocking.
pub struct Cli {
    /// Also the number of its process group.
    pub pid: Pid,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Why the CLI could not be started.
#[derive(Debug, PartialEq, Eq)]
pub struct SpawnFailure {
    pub reason: String,
    /// As shells have it: 127 for "not found", 126 for all else.
    pub status: u8,
}

impl SpawnFailure {
    pub fn other(reason: String) -> Self {
        Self { reason, status: 126 }
    }

    fn new(reason: String, error: &io::Error) -> Self {
        let status = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        Self { reason, status }
    }
}

/// Runs the job's program in a process group of its own, with the job's environment and
/// nothing else. Only the standard streams are open in it.
///
/// # Errors
/// Whatever kept the program from being executed.
pub fn spawn(job: &Job) -> Result<Cli, SpawnFailure> {
    let (program, arguments) = job
        .argv
        .split_first()
        .ok_or_else(|| SpawnFailure { reason: "the job has no program".to_owned(), status: 126 })?;
    if let Some(name) = job.env.keys().find(|name| name.is_empty() || name.contains('=')) {
        let reason = format!("{name:?} cannot name an environment variable");
        return Err(SpawnFailure { reason, status: 126 });
    }
    if !fs::metadata(&job.cwd).is_ok_and(|folder| folder.is_dir()) {
        return Err(SpawnFailure { reason: format!("no working directory {:?}", job.cwd), status: 126 });
    }
    let pipes =
        Pipes::open().map_err(|error| SpawnFailure::new(format!("cannot open pipes: {error}"), &error))?;
    // std resets SIGPIPE in the child; `signals` sees to the rest.
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&job.env)
        .current_dir(&job.cwd)
        .stdin(Stdio::from(pipes.stdin.read))
        .stdout(Stdio::from(pipes.stdout.write))
        .stderr(Stdio::from(pipes.stderr.write))
        .process_group(0);
    let child = signals::while_unblocked(|| command.spawn())
        .map_err(|error| SpawnFailure::new(format!("cannot start {program:?}: {error}"), &error))?;
    prefer_for_oom_killer(child.id());
    Ok(Cli {
        pid: Pid::from_child(&child),
        stdin: pipes.stdin.write,
        stdout: pipes.stdout.read,
        stderr: pipes.stderr.read,
    })
}

/// The shim must outlive the CLI to tell that memory ran out. Raising the score needs no
/// privilege, and the CLI's children inherit it.
fn prefer_for_oom_killer(pid: u32) {
    // Without a writable /proc the kernel's own choice has to do.
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // A user over the limit keeps the size that the kernel gave.
        let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_BYTES);
        Ok(Self { read, write })
    }
}

struct Pipes {
    stdin: Pipe,
    stdout: Pipe,
    stderr: Pipe,
}

impl Pipes {
    /// Only the shim's ends do not block.
    fn open() -> io::Result<Self> {
        let pipes = Self { stdin: Pipe::open()?, stdout: Pipe::open()?, stderr: Pipe::open()? };
        for end in [&pipes.stdin.write, &pipes.stdout.read, &pipes.stderr.read] {
            rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        Ok(pipes)
    }
}
