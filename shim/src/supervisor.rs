//! The poll loop: runner, CLI, signals and clocks, in one thread.

use std::time::{Duration, Instant};

use kage_shim::containment::Facts;
use kage_shim::protocol::{self, EndedBy, Exited, FromRunner, FromShim, Hello, Job, Offsets, Stream};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::args::Args;
use crate::connection::Connection;
use crate::processes::{self, Processes};
use crate::proof;
use crate::run::Run;
use crate::signals::{Event, Signals};
use crate::timespec::timespec;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// Lives until the run is over and recorded; the exit status.
///
/// # Errors
/// A sentence, when the shim could not do its work; the CLI has been ended by then.
pub fn run(args: &Args) -> Result<u8, String> {
    let mut signals =
        Signals::install().map_err(|error| format!("cannot install signal handlers: {error}"))?;
    let mut supervisor = Supervisor::new(args);
    loop {
        let now = Instant::now();
        if let Some(result) = supervisor.step(now) {
            return result;
        }
        supervisor.wait(&signals, now).map_err(|error| format!("cannot poll: {error}"))?;
        for event in signals.take() {
            supervisor.on_signal(event, Instant::now());
        }
        supervisor.exchange(Instant::now());
    }
}

struct Supervisor {
    connection: Connection,
    /// Found before the first connection: nobody else is there yet.
    facts: Box<Facts>,
    processes: Processes,
    run: Option<Run>,
    /// When the shim stops waiting for a job.
    give_up: Option<Instant>,
    /// Since when there is no runner; none while there is.
    absent: Option<Instant>,
    exited: Option<Exited>,
    /// [`Exited`] was sent on this connection.
    told: bool,
    released: bool,
    /// Why the shim cannot go on: the CLI is ended, and then the shim.
    broken: Option<String>,
    /// The container's end was asked for before there was a job.
    terminated: bool,
}

impl Supervisor {
    fn new(args: &Args) -> Self {
        let now = Instant::now();
        Self {
            connection: Connection::new(args.socket.clone(), now),
            facts: Box::new(proof::look()),
            processes: Processes::of_this_process(),
            run: None,
            give_up: now.checked_add(args.wait),
            absent: Some(now),
            exited: None,
            told: false,
            released: false,
            broken: None,
            terminated: false,
        }
    }

    /// Does what is due; tells whether the shim is at its end.
    fn step(&mut self, now: Instant) -> Option<Result<u8, String>> {
        if let Some(run) = &mut self.run {
            for (pid, status) in processes::reap() {
                run.on_reaped(pid, status, now);
            }
            run.step(now);
        }
        self.end_if_orphaned(now);
        if self.broken.is_none() && self.connection.step(now) {
            self.greet();
        }
        self.read_rest();
        self.write(now);
        self.result(now)
    }

    /// When `step` has something to do, if nothing else happens.
    fn deadline(&self) -> Option<Instant> {
        let orphan = self.orphan_limit().filter(|_| !self.is_ending());
        let connection = if self.broken.is_none() { self.connection.deadline() } else { None };
        let waiting = self.give_up.filter(|_| self.run.is_none());
        let run = self.run.as_ref().and_then(Run::deadline);
        [orphan, self.exit_limit(), connection, waiting, run].into_iter().flatten().min()
    }

    fn is_ending(&self) -> bool {
        self.run.as_ref().is_some_and(Run::is_ending)
    }

    /// When the run has been without a runner for too long.
    fn orphan_limit(&self) -> Option<Instant> {
        self.absent?.checked_add(Duration::from_secs(self.run.as_ref()?.limits.orphan_secs))
    }

    /// When the shim stops waiting for a runner that takes the run's end.
    fn exit_limit(&self) -> Option<Instant> {
        let run = self.run.as_ref()?;
        let since = self.absent?.max(run.emptied()?);
        since.checked_add(Duration::from_secs(run.limits.orphan_secs))
    }

    fn end_if_orphaned(&mut self, now: Instant) {
        if self.orphan_limit().is_some_and(|limit| now >= limit)
            && let Some(run) = &mut self.run
        {
            run.end(EndedBy::Orphaned, now);
        }
    }

    fn result(&self, now: Instant) -> Option<Result<u8, String>> {
        let Some(run) = &self.run else {
            if self.terminated {
                return Some(Ok(128 + Signal::TERM.as_raw() as u8));
            }
            let late = self.give_up.is_some_and(|limit| now >= limit);
            let reason =
                self.broken.clone().or_else(|| late.then(|| "no job from a runner in time".to_owned()));
            return reason.map(Err);
        };
        if let Some(reason) = &self.broken {
            return run.emptied().map(|_| Err(reason.clone()));
        }
        let recorded = self.released && self.exited.is_some() && run.output.all_acked();
        let forsaken = self.exit_limit().is_some_and(|limit| now >= limit);
        (recorded || forsaken).then(|| Ok(run.status()))
    }

    fn greet(&mut self) {
        let hello = Hello {
            version: protocol::VERSION,
            session: self.run.as_ref().map(|run| run.session.clone()),
            acked: self.run.as_ref().map_or(Offsets::default(), |run| run.output.acked()),
            facts: self.run.is_none().then(|| self.facts.clone()),
        };
        self.post(&FromShim::Hello(hello));
    }

    fn post(&mut self, frame: &FromShim) {
        if let Err(error) = self.connection.post(frame) {
            self.give_out(format!("cannot encode a frame: {error}"), Instant::now());
        }
    }

    fn give_out(&mut self, reason: String, now: Instant) {
        self.broken.get_or_insert(reason);
        self.connection.hang_up(now);
        self.absent.get_or_insert(now);
        if let Some(run) = &mut self.run {
            run.end(EndedBy::Runner, now);
        }
    }

    fn lose_runner(&mut self, now: Instant) {
        self.connection.hang_up(now);
        self.absent.get_or_insert(now);
    }

    /// Waits until something can be read or written, a signal comes, or `step` is due.
    fn wait(&self, signals: &Signals, now: Instant) -> rustix::io::Result<()> {
        let mut polled = Vec::with_capacity(5);
        polled.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
        if let Some(socket) = self.connection.socket() {
            let writing = self.connection.has_mail() || self.has_output();
            let flags = if writing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            polled.push(PollFd::from_borrowed_fd(socket, flags));
        }
        if let Some(run) = self.run.as_ref().filter(|_| self.broken.is_none()) {
            // A pipe that is not wanted must not be polled at all: its end would be reported
            // again and again.
            for pipe in STREAMS.into_iter().filter_map(|stream| run.wants_to_read(stream)) {
                polled.push(PollFd::new(pipe, PollFlags::IN));
            }
            if let Some(stdin) = run.stdin.as_ref().and_then(|stdin| stdin.wants_to_write()) {
                polled.push(PollFd::from_borrowed_fd(stdin, PollFlags::OUT));
            }
        }
        let timeout = self.deadline().map(|deadline| timespec(deadline.saturating_duration_since(now)));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn has_output(&self) -> bool {
        self.connection.is_live() && self.run.as_ref().is_some_and(|run| !run.output.all_sent())
    }

    fn on_signal(&mut self, event: Event, now: Instant) {
        match (event, &mut self.run) {
            // Reaping is part of every step.
            (Event::ChildEnded, _) | (Event::Forward(_), None) => {}
            (Event::Terminate, Some(run)) => run.end(EndedBy::Container, now),
            (Event::Terminate, None) => self.terminated = true,
            (Event::Forward(signal), Some(run)) => run.forward(signal),
        }
    }

    /// Takes what the runner and the CLI have sent.
    fn exchange(&mut self, now: Instant) {
        let received = self.connection.receive();
        for frame in received.frames {
            if let Err(reason) = self.on_frame(frame, now) {
                return self.give_out(format!("the runner broke the protocol: {reason}"), now);
            }
        }
        if let Some(error) = received.malformed {
            return self.give_out(format!("the runner broke the protocol: {error}"), now);
        }
        if received.closed {
            self.lose_runner(now);
        }
        if let Some(run) = self.run.as_mut().filter(|_| self.broken.is_none()) {
            for stream in STREAMS {
                run.read(stream);
            }
            if let Some(stdin) = &mut run.stdin {
                stdin.write();
            }
        }
    }

    fn on_frame(&mut self, frame: FromRunner, now: Instant) -> Result<(), String> {
        if let FromRunner::Job(job) = frame {
            return self.on_job(*job, now);
        }
        let live = self.connection.is_live();
        let run = match (&mut self.run, frame) {
            (None, FromRunner::Terminate) => {
                self.terminated = true;
                return Ok(());
            }
            (None, _) => return Err("a frame before the job".to_owned()),
            (Some(run), FromRunner::Resume(resume)) if !live => {
                run.output.resume(resume.committed)?;
                self.connection.set_live();
                self.absent = None;
                // Told anew, so also released anew: it may be another runner.
                self.told = false;
                self.released = false;
                return Ok(());
            }
            (Some(_), _) if !live => return Err("a frame before the resumption".to_owned()),
            (Some(run), frame) => (run, frame),
        };
        match run {
            (run, FromRunner::Ack(offsets)) => run.output.acknowledge(offsets),
            (run, FromRunner::Terminate) => {
                run.end(EndedBy::Runner, now);
                Ok(())
            }
            (_, FromRunner::Release) if self.told => {
                self.released = true;
                Ok(())
            }
            (_, FromRunner::Release) => Err("a release before the end".to_owned()),
            (_, FromRunner::Job(_) | FromRunner::Resume(_)) => Err("a second resumption".to_owned()),
        }
    }

    fn on_job(&mut self, job: Job, now: Instant) -> Result<(), String> {
        if self.run.is_some() {
            return Err("a second job".to_owned());
        }
        self.connection.set_live();
        self.connection.move_to(&protocol::socket_of(&job.session));
        self.absent = None;
        let run = Run::start(job, self.processes, now);
        if run.is_started() {
            self.post(&FromShim::Started);
        }
        self.run = Some(run);
        Ok(())
    }

    /// Empties the pipes of a run whose processes are gone.
    fn read_rest(&mut self) {
        if let Some(run) = self.run.as_mut().filter(|run| run.emptied().is_some()) {
            for stream in STREAMS {
                while run.read(stream) {}
            }
        }
    }

    /// Sends what there is to send.
    fn write(&mut self, now: Instant) {
        if self.try_write().is_err() {
            // What the runner said before it went is still to be read.
            self.exchange(now);
            if self.connection.socket().is_some() {
                self.lose_runner(now);
            }
        }
    }

    fn try_write(&mut self) -> rustix::io::Result<()> {
        if !self.connection.write_mail()? {
            return Ok(());
        }
        let (true, Some(run)) = (self.connection.is_live(), &mut self.run) else { return Ok(()) };
        let Some(socket) = self.connection.socket() else { return Ok(()) };
        if !run.output.write_to(socket)? || self.told {
            return Ok(());
        }
        if self.exited.is_none() {
            self.exited = run.exited();
        }
        if let Some(exited) = self.exited.clone() {
            self.told = true;
            self.post(&FromShim::Exited(exited));
            self.connection.write_mail()?;
        }
        Ok(())
    }
}
