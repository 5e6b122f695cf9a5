//! One run of a CLI in the real sandbox, against a model server of its own.

use std::collections::BTreeSet;
use std::future::pending;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kage_model_server::fault::Fault;
use kage_model_server::script::Script;
use kage_model_server::server::{Fixed, Listen, Options, Server};
use kage_shim::protocol::{Bridge, Exited, FromShim, Job, JobFile, JobLimits, Stream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::domain::judgement::Told;
use crate::domain::limits::Enforcement;
use crate::image::mapped::{MappedEvent, Meaning};
use crate::image::mapping::{MAX_LINE, Mapping};
use crate::image::template::{GATEWAY_PORT, PROMPT_FILE};
use crate::kit::error::KitError;
use crate::kit::kept;
use crate::kit::observed::{Ended, Observed};
use crate::kit::processes::{self, Process};
use crate::kit::resolver::Resolver;
use crate::kit::stage::{Folders, Stage};
use crate::kit::tree::{self, Entry};
use crate::sandbox::container::Sandbox;
use crate::sandbox::profile::{HOME, MODEL_SOCKET, WORKSPACE};
use crate::sandbox::proof::{self, Kernel};
use crate::sandbox::refusals::listener::Watched;
use crate::sandbox::reporting::reports;
use crate::sandbox::seccomp::table;
use crate::sandbox::shim_link::{LinkError, ShimLink, new_session};
use crate::sandbox::shim_listener::ShimListener;
use crate::sandbox::spec::{SandboxUser, Spec};

/// How long a started sandbox's shim may take to connect.
const SHIM_WITHIN: Duration = Duration::from_secs(60);
/// Between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long the shim may take beyond that to say that all is over.
const END_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes of output that are kept.
const KEPT: usize = 4 << 20;

/// Different processes that are kept: a CLI may start thousands.
const MOST_PROCESSES: usize = 500;

/// What is tried.
pub struct Plan {
    /// Which item it is for.
    pub id: &'static str,
    pub prompt: String,
    pub script: Script,
    pub faults: Vec<Fault>,
    /// For the fault `fixed`.
    pub fixed: Option<Fixed>,
    pub user: SandboxUser,
    pub within: Duration,
    /// SIGTERM as soon as the model was asked.
    pub terminate_when_asked: bool,
}

/// # Errors
/// [`KitError`], for what is not the image's doing.
pub async fn attempt(stage: &Stage, plan: &Plan) -> Result<Observed, KitError> {
    let folders = stage.folders(plan.user)?;
    let options = Options {
        faults: plan.faults.clone(),
        fixed: plan.fixed.clone(),
        ..Options::new(plan.script.clone())
    };
    // The sandbox's user is none of ours.
    let listen = Listen::Unix(folders.model_dir.join("model.sock"), 0o666);
    let server = Server::bind(listen, options).await.map_err(KitError::ModelServer)?;
    let recorder = server.recorder();
    let asked = || !recorder.requests().is_empty();
    let mut observed = tokio::select! {
        stopped = server.serve(pending()) => {
            return Err(KitError::ModelServer(stopped.err().unwrap_or_else(|| std::io::Error::other("it stopped"))));
        }
        observed = in_sandbox(stage, plan, &folders, &asked) => observed?,
    };
    observed.0.requests = recorder.requests();
    let first = observed.0.requests.first().map(|request| request.at_ms);
    observed.0.first_request = first.map(|at| Duration::from_millis(at.saturating_sub(observed.1)));
    if let Some(folder) = &stage.keep {
        kept::keep(folder, plan.id, &observed.0)?;
    }
    Ok(observed.0)
}

/// With the CLI's start in milliseconds since 1970.
async fn in_sandbox(
    stage: &Stage,
    plan: &Plan,
    folders: &Folders,
    asked: &impl Fn() -> bool,
) -> Result<(Observed, u64), KitError> {
    let spec = Spec {
        instance: stage.instance.clone(),
        run_id: Uuid::new_v4(),
        attempt: 1,
        image: stage.image.digest.clone(),
        user: plan.user,
        limits: stage.limits.clone(),
        // A check's folder is the operator's own, and short-lived.
        worktree_held: Enforcement::Soft,
        workspace: folders.workspace.clone(),
        io_dir: folders.io_dir.clone(),
        model_dir: stage.manifest.model.as_ref().map(|_| folders.model_dir.clone()),
        shim: stage.shim.clone(),
        writable: stage.manifest.writable.clone(),
        runtime: stage.runtime.clone(),
        log_copy_bytes: None,
    };
    let listener = ShimListener::bind(&folders.io_dir, plan.user)?;
    // Whoever stops a check leaves no container behind.
    let hear = |kind| signal(kind).map_err(KitError::Signals);
    let (mut interrupt, mut terminate) = (hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?);
    let begun = Instant::now();
    let reports = reports(&stage.engine, stage.runtime.as_deref()).await?;
    let watched = reports.then(|| stage.refusals.expect());
    let seccomp = watched
        .as_ref()
        .map_or_else(|| stage.seccomp.clone(), |watched| watched.profile(table::Told::RefusedAndAddresses));
    let mut sandbox = Sandbox::create(&stage.engine, &spec, &seccomp).await?;
    let done = tokio::select! {
        done = drive(stage, plan, folders, (&spec, &sandbox, watched.as_ref()), listener, (begun, asked)) => done,
        _ = interrupt.recv() => Err(KitError::Interrupted),
        _ = terminate.recv() => Err(KitError::Interrupted),
    };
    let removed = sandbox.remove().await;
    let mut done = done?;
    removed?;
    done.0.refused = watched.map(|watched| watched.tally().take_news().unwrap_or_default());
    Ok(done)
}

async fn drive(
    stage: &Stage,
    plan: &Plan,
    folders: &Folders,
    (spec, sandbox, watched): (&Spec, &Sandbox, Option<&Watched>),
    listener: ShimListener,
    (begun, asked): (Instant, &impl Fn() -> bool),
) -> Result<(Observed, u64), KitError> {
    sandbox.start().await?;
    let (mut link, found) = listener.accept_first(SHIM_WITHIN).await?;
    let ready = begun.elapsed();
    let runtime = stage.runtime.as_deref().unwrap_or_default();
    let here = proof::namespaces_here().map_err(KitError::file(Path::new("/proc/self/ns")))?;
    let surprises = proof::surprises(spec, Kernel::of(runtime), &here, &found);
    if !surprises.is_empty() {
        return Err(KitError::Containment(surprises.join("; ")));
    }
    // What the shim tried is no news of the CLI.
    if let Some(watched) = watched {
        watched.tally().forget();
    }
    let pid = sandbox.inspect().await?.pid;
    let resolver = pid.and_then(|pid| Resolver::listen(pid).ok());
    let started_ms = now_ms();
    link.give(job(stage, plan)?).await?;
    let mut watch = Watch::new(stage, sandbox.id(), pid);
    let exited = watch.follow(&mut link, plan, asked).await?;
    // All processes but the shim are gone, and its namespaces are still there.
    let written = pid.and_then(|pid| written(pid, &stage.manifest.writable));
    let after =
        tree::walk(&folders.workspace, WORKSPACE, ".git").map_err(KitError::file(&folders.workspace))?;
    let observed = Observed {
        memory_peak: pid.and_then(processes::memory_peak),
        hosts_asked: resolver.map(|resolver| resolver.names()),
        changed: tree::changed(&folders.before, after),
        ..watch.observed(exited, ready, written)
    };
    link.release().await?;
    Ok((observed, started_ms))
}

/// What is in the sandbox's tmpfs mounts. None: the host does not show them.
fn written(pid: u32, writable: &[String]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    for path in ["/tmp", HOME].into_iter().chain(writable.iter().map(String::as_str)) {
        entries.append(&mut tree::walk_tmpfs(pid, path).ok()?);
    }
    Some(entries)
}

fn job(stage: &Stage, plan: &Plan) -> Result<Job, KitError> {
    let mut launch = stage.manifest.launch(&plan.prompt, None)?;
    let ours = [
        ("KAGE_TASK_ID", Uuid::nil().to_string()),
        ("KAGE_RUN", stage.manifest.name.to_string()),
        ("KAGE_ATTEMPT", "1".to_owned()),
        ("KAGE_CONTEXT", "null".to_owned()),
    ];
    launch.env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    let with_model = stage.manifest.model.is_some();
    Ok(Job {
        session: new_session(),
        argv: launch.argv,
        env: launch.env,
        cwd: WORKSPACE.to_owned(),
        stdin: launch.stdin,
        file: launch.file.map(|text| JobFile { path: PROMPT_FILE.to_owned(), text }),
        bridge: with_model.then(|| Bridge { port: GATEWAY_PORT, socket: MODEL_SOCKET.to_owned() }),
        places: Vec::new(),
        copy_output: false,
        limits: JobLimits {
            wall_secs: plan.within.as_secs() + 60,
            orphan_secs: 60,
            grace_ms: u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX),
            buffer_bytes: 8 << 20,
        },
    })
}

/// What is noted while the CLI runs.
struct Watch<'a> {
    container: &'a str,
    shim: Option<u32>,
    mapping: Option<Mapping>,
    after_final: Duration,
    start: Instant,
    line: Vec<u8>,
    output: Vec<u8>,
    stdout: Vec<u8>,
    events: Vec<MappedEvent>,
    ignored: u32,
    first_output: Option<Duration>,
    final_event: Option<Duration>,
    /// When it last said or did something.
    at_work: Duration,
    ended: Ended,
    told_to_end: Option<Instant>,
    processes: BTreeSet<Process>,
    most_processes: usize,
    total: Duration,
}

impl<'a> Watch<'a> {
    fn new(stage: &Stage, container: &'a str, shim: Option<u32>) -> Self {
        Self {
            container,
            shim,
            mapping: stage.manifest.mapping(),
            after_final: Duration::from_secs(u64::from(stage.manifest.after_final_secs)),
            start: Instant::now(),
            line: Vec::new(),
            output: Vec::new(),
            stdout: Vec::new(),
            events: Vec::new(),
            ignored: 0,
            first_output: None,
            final_event: None,
            at_work: Duration::ZERO,
            ended: Ended::ByItself,
            told_to_end: None,
            processes: BTreeSet::new(),
            most_processes: 0,
            total: Duration::ZERO,
        }
    }

    /// Until the CLI has ended, by itself or by us.
    async fn follow(
        &mut self,
        link: &mut ShimLink,
        plan: &Plan,
        asked: &impl Fn() -> bool,
    ) -> Result<Exited, KitError> {
        let mut look = self.start;
        loop {
            tokio::select! {
                said = link.recv() => match said? {
                    FromShim::Output { stream, bytes, .. } => {
                        self.take(stream, &bytes);
                        link.ack(link.received()).await?;
                    }
                    FromShim::Exited(exited) => {
                        self.total = self.start.elapsed();
                        self.map_rest();
                        return Ok(exited);
                    }
                    FromShim::Started | FromShim::Hello(_) => {}
                },
                () = sleep_until(look) => {
                    look = Instant::now() + LOOK;
                    self.look();
                }
            }
            if let Some(told) = self.told_to_end {
                if told.elapsed() > GRACE + END_WITHIN {
                    return Err(LinkError::Stalled(GRACE + END_WITHIN).into());
                }
            } else if let Some(why) = self.reason_to_end(plan, asked) {
                self.ended = why;
                self.told_to_end = Some(Instant::now());
                link.terminate().await?;
            }
        }
    }

    fn reason_to_end(&self, plan: &Plan, asked: &impl Fn() -> bool) -> Option<Ended> {
        let elapsed = self.start.elapsed();
        if plan.terminate_when_asked && asked() {
            Some(Ended::AsPlanned)
        } else if self.final_event.is_some_and(|at| elapsed > at.max(self.at_work) + self.after_final) {
            Some(Ended::AfterFinal)
        } else {
            (elapsed > plan.within).then_some(Ended::OverTime)
        }
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        self.first_output.get_or_insert_with(|| self.start.elapsed());
        let keep = |kept: &mut Vec<u8>| {
            let room = KEPT.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        };
        keep(&mut self.output);
        if stream != Stream::Stdout {
            return;
        }
        keep(&mut self.stdout);
        let Some(mapping) = self.mapping.clone() else { return };
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.map(&mapping, &line);
            } else if self.line.len() <= MAX_LINE {
                self.line.push(*byte);
            }
        }
    }

    /// As the runner does: what follows the last newline is a line too.
    fn map_rest(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Some(mapping) = self.mapping.clone().filter(|_| !line.is_empty()) {
            self.map(&mapping, &line);
        }
    }

    fn map(&mut self, mapping: &Mapping, line: &[u8]) {
        let mapped = mapping.map_line(line);
        self.ignored += mapped.ignored;
        // As the runner counts: one that goes on after a final event has its time anew.
        for event in &mapped.events {
            match event.note(&mut Told::default()) {
                Meaning::Done => self.final_event = Some(self.start.elapsed()),
                Meaning::AtWork => self.at_work = self.start.elapsed(),
                Meaning::Nothing => {}
            }
        }
        self.events.extend(mapped.events);
    }

    fn look(&mut self) {
        let Some(shim) = self.shim else { return };
        let seen = processes::of_container(self.container, shim);
        self.most_processes = self.most_processes.max(seen.len());
        let room = MOST_PROCESSES.saturating_sub(self.processes.len());
        self.processes.extend(seen.into_iter().take(room));
    }

    fn observed(self, exited: Exited, sandbox: Duration, written: Option<Vec<Entry>>) -> Observed {
        Observed {
            exited,
            ended: self.ended,
            sandbox,
            first_output: self.first_output,
            first_request: None,
            final_event: self.final_event,
            total: self.total,
            stopping: self.told_to_end.map(|told| (self.start + self.total).saturating_duration_since(told)),
            events: self.events,
            ignored: self.ignored,
            output: self.output,
            stdout: self.stdout,
            requests: Vec::new(),
            processes: self.processes,
            most_processes: self.most_processes,
            memory_peak: None,
            changed: Vec::new(),
            written,
            refused: None,
            hosts_asked: None,
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
