//! One run of the CLI, from its start until nothing of it is left but output.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use kage_shim::protocol::{EndedBy, Exited, Job, JobLimits, Stream};
use rustix::process::{Pid, Signal, WaitStatus};

use crate::bridge::Bridge;
use crate::cgroup::Counts;
use crate::child::{self, Cli, SpawnFailure};
use crate::copies::Copies;
use crate::ending::Ending;
use crate::output::{Output, Read};
use crate::processes::Processes;
use crate::room::Room;
use crate::stdin::Feed;

/// Reads of one pipe before it is the other's turn.
const READS_PER_TURN: usize = 4;

/// How the CLI's main process came to its end.
enum Outcome {
    Ended(WaitStatus),
    NotStarted(SpawnFailure),
}

pub struct Run {
    pub session: String,
    pub limits: JobLimits,
    pub output: Output,
    pub stdin: Option<Feed>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    processes: Processes,
    cli: Option<Pid>,
    outcome: Option<Outcome>,
    ended_by: EndedBy,
    ending: Option<Ending>,
    /// Dropped when the run begins to end: what is being ended makes no more calls.
    bridge: Option<Bridge>,
    wall_clock: Option<Instant>,
    counts_before: Counts,
    room: Room,
    /// When the last process had ended.
    emptied: Option<Instant>,
}

impl Run {
    /// Starts the CLI. If that fails, the run is over at once and tells why.
    pub fn start(job: Job, processes: Processes, now: Instant) -> Self {
        let counts_before = Counts::now();
        let mut run = Self {
            output: Output::new(job.limits.buffer_bytes, job.copy_output.then(Copies::open)),
            limits: job.limits,
            stdin: None,
            stdout: None,
            stderr: None,
            processes,
            cli: None,
            outcome: None,
            ended_by: EndedBy::Itself,
            ending: None,
            bridge: None,
            wall_clock: now.checked_add(Duration::from_secs(job.limits.wall_secs)),
            counts_before,
            room: Room::new(job.places.clone(), now),
            emptied: None,
            session: String::new(),
        };
        match launch(&job) {
            Ok((cli, bridge)) => {
                run.bridge = bridge;
                run.cli = Some(cli.pid);
                run.stdin = Some(Feed::new(cli.stdin, job.stdin.into_bytes()));
                run.stdout = Some(cli.stdout);
                run.stderr = Some(cli.stderr);
            }
            Err(failure) => {
                run.outcome = Some(Outcome::NotStarted(failure));
                run.emptied = Some(now);
            }
        }
        run.session = job.session;
        run
    }

    /// Whether the CLI's process was made.
    pub fn is_started(&self) -> bool {
        self.cli.is_some()
    }

    /// Takes note of a process that was reaped.
    pub fn on_reaped(&mut self, pid: Pid, status: WaitStatus, now: Instant) {
        if self.cli == Some(pid) && self.outcome.is_none() {
            // Before what it has left behind is ended, and gives room back.
            self.room.look(now);
            self.outcome = Some(Outcome::Ended(status));
            self.begin_ending(now);
        }
    }

    /// Ends the run, unless it is ending already: the first cause is the one reported.
    pub fn end(&mut self, cause: EndedBy, now: Instant) {
        if !self.is_ending() {
            self.ended_by = cause;
            self.begin_ending(now);
        }
    }

    /// Whether nothing more is needed to bring the run to its end.
    pub fn is_ending(&self) -> bool {
        self.outcome.is_some() || self.ending.is_some()
    }

    fn begin_ending(&mut self, now: Instant) {
        self.bridge = None;
        let grace = Duration::from_millis(self.limits.grace_ms);
        self.ending.get_or_insert_with(|| Ending::begin(self.processes, grace, now));
    }

    /// Passes a signal on to the CLI's process group.
    pub fn forward(&self, signal: Signal) {
        if let (Some(cli), None) = (self.cli, &self.outcome) {
            // Nothing is lost if the group has just ended.
            let _ = rustix::process::kill_process_group(cli, signal);
        }
    }

    /// Does what is due.
    pub fn step(&mut self, now: Instant) {
        if self.wall_clock.is_some_and(|limit| now >= limit) {
            self.end(EndedBy::WallClock, now);
        }
        if self.emptied.is_none() {
            self.room.look_if_due(now);
        }
        if let Some(ending) = &mut self.ending {
            ending.step(now);
            if ending.is_over() && self.emptied.is_none() {
                self.emptied = Some(now);
                self.stdin = None;
            }
        }
    }

    /// When [`Run::step`] has to be called next, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        let next = match &self.ending {
            Some(ending) => ending.deadline(),
            None if self.outcome.is_some() => None,
            None => self.wall_clock,
        };
        let room = self.room.deadline().filter(|_| self.emptied.is_none());
        [next, room].into_iter().flatten().min()
    }

    /// When the last process had ended; none while there are processes.
    pub fn emptied(&self) -> Option<Instant> {
        self.emptied
    }

    /// The pipe of a stream, while there is something to read from it and room to keep it.
    pub fn wants_to_read(&self, stream: Stream) -> Option<&OwnedFd> {
        let pipe = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        pipe.as_ref().filter(|_| self.output.has_room())
    }

    /// Reads a stream as far as its turn goes; true if it may hold more.
    pub fn read(&mut self, stream: Stream) -> bool {
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        for _ in 0..READS_PER_TURN {
            let Some(open) = pipe.as_ref() else { return false };
            if !self.output.has_room() {
                return false;
            }
            match self.output.read_from(stream, open.as_fd()) {
                Ok(Read::Bytes(_)) => self.room.on_output(Instant::now()),
                // With no process left nobody writes any more, though a copy of the pipe may
                // still lie in some socket's queue and keep it from ending.
                Ok(Read::Empty) if self.emptied.is_none() => return false,
                Ok(Read::Empty | Read::End) | Err(_) => *pipe = None,
            }
        }
        pipe.is_some()
    }

    /// How the CLI ended, as soon as no process and no unread output is left.
    pub fn exited(&self) -> Option<Exited> {
        let outcome = self.outcome.as_ref();
        if self.emptied.is_none() || self.stdout.is_some() || self.stderr.is_some() {
            return None;
        }
        let (code, signal, spawn_error) = match outcome {
            Some(Outcome::Ended(status)) => (status.exit_status(), status.terminating_signal(), None),
            Some(Outcome::NotStarted(failure)) => (None, None, Some(failure.reason.clone())),
            // Not even SIGKILL ended it: the container's end will.
            None => (None, Some(Signal::KILL.as_raw()), None),
        };
        let counts = Counts::now().since(self.counts_before);
        Some(Exited {
            code,
            signal,
            spawn_error,
            ended_by: self.ended_by,
            oom_kills: counts.oom_kills,
            refused_forks: counts.refused_forks,
            full: self.room.full(),
            total: self.output.total(),
        })
    }

    /// The shim's own exit status: the CLI's, as a shell would tell it.
    pub fn status(&self) -> u8 {
        match &self.outcome {
            Some(Outcome::NotStarted(failure)) => failure.status,
            Some(Outcome::Ended(status)) => {
                let signalled = status.terminating_signal().map(|signal| 128 + signal);
                let status = status.exit_status().or(signalled);
                status.and_then(|status| u8::try_from(status).ok()).unwrap_or(u8::MAX)
            }
            None => 128 + 9,
        }
    }
}

/// What the CLI needs is there before it starts, or it does not start.
fn launch(job: &Job) -> Result<(Cli, Option<Bridge>), SpawnFailure> {
    if let Some(file) = &job.file {
        let failed = |error: io::Error| {
            SpawnFailure::other(format!("cannot write the prompt to {:?}: {error}", file.path))
        };
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file.path);
        opened.and_then(|mut opened| opened.write_all(file.text.as_bytes())).map_err(failed)?;
    }
    let bridge = job.bridge.as_ref().map(|wanted| {
        Bridge::open(wanted).map_err(|error| {
            SpawnFailure::other(format!("cannot bridge 127.0.0.1:{} to the gateway: {error}", wanted.port))
        })
    });
    let bridge = bridge.transpose()?;
    Ok((child::spawn(job)?, bridge))
}
