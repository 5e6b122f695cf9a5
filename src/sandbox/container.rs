//! One container as a value: made, started, waited for, removed; and loud when it is forgotten.

use std::collections::HashMap;
use std::time::Duration;

use bollard::errors::Error as ApiError;
use bollard::models::{ContainerStateStatusEnum, ContainerSummaryStateEnum};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures::StreamExt;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::sandbox::engine::Engine;
use crate::sandbox::error::SandboxError;
use crate::sandbox::host_kill;
use crate::sandbox::image_check;
use crate::sandbox::profile::{LABEL_ATTEMPT, LABEL_INSTANCE, LABEL_RUN, container_body};
use crate::sandbox::refusals::listener::SOCKET;
use crate::sandbox::seccomp::SeccompProfile;
use crate::sandbox::spec::Spec;

/// A container that is ours to remove.
#[derive(Debug)]
pub struct Sandbox {
    engine: Engine,
    id: String,
    /// Whether nothing is left to remove.
    done: bool,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running,
    /// Paused, restarting or being removed: no state that we put it into.
    Other,
    Exited,
}

/// What the engine knows of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    pub state: ContainerState,
    /// PID 1's process id on the engine's host, while it runs.
    pub pid: Option<u32>,
    pub exit_code: Option<i64>,
    /// The kernel ended a process of it for want of memory.
    pub oom_killed: bool,
    /// What the engine says went wrong; empty if nothing.
    pub error: String,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// PID 1's exit status; 128 and the number for a signal.
    pub exit_code: i64,
    /// The kernel ended a process of it for want of memory.
    pub oom_killed: bool,
    /// What the engine says went wrong; empty if nothing.
    pub error: String,
}

/// A container of this instance, as [`list`] finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub id: String,
    pub run_id: Uuid,
    pub attempt: u32,
    pub state: ContainerState,
    /// PID 1's process id on the engine's host, while it runs.
    pub pid: Option<u32>,
}

/// How long one wait call lasts before we look for ourselves: an engine can lose a waiter.
const WAIT_SLICE: Duration = Duration::from_secs(30);

/// How long [`Sandbox::wait`] bears an engine that does not answer, for example while it restarts.
const ENGINE_AWAY: Duration = Duration::from_secs(60);
/// The engine hears of a kill for want of memory apart from the container's end, and may hear of it later: so long is a
/// failed end looked at again.
const OOM_NEWS_WITHIN: Duration = Duration::from_secs(2);

impl Sandbox {
    /// Makes a container; it does not run yet.
    ///
    /// # Errors
    /// [`SandboxError::Spec`], [`SandboxError::ImageMissing`], [`SandboxError::ImageRefused`],
    /// [`SandboxError::NameTaken`], [`SandboxError::CreateRefused`], [`SandboxError::Unenforced`], or the engine is
    /// away. After an error no container is left, as far as the engine can be asked.
    pub async fn create(
        engine: &Engine,
        spec: &Spec,
        seccomp: &SeccompProfile,
    ) -> Result<Self, SandboxError> {
        spec.check()?;
        image_check::require_good(engine, &spec.image).await?;
        let name = spec.container_name();
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let call = engine.api().create_container(Some(options), container_body(spec, seccomp));
        match engine.call("create", engine.deadlines().create, call).await {
            Ok(made) => {
                let mut sandbox = Self { engine: engine.clone(), id: made.id, done: false };
                if made.warnings.is_empty() {
                    return Ok(sandbox);
                }
                // So an engine says that it has left out a limit which its kernel does not know.
                sandbox.remove().await?;
                Err(SandboxError::Unenforced(made.warnings.join("; ")))
            }
            Err(SandboxError::Refused { status: 409, message, .. }) if message.contains("already in use") => {
                Err(SandboxError::NameTaken { name })
            }
            Err(SandboxError::Refused { status: 404, message, .. })
                if message.to_lowercase().contains("no such image") =>
            {
                Err(SandboxError::ImageMissing { image: spec.image.to_string() })
            }
            Err(SandboxError::Refused { message, .. }) => Err(SandboxError::CreateRefused(message)),
            Err(error) => {
                // The answer is lost, not always the container.
                let lost = Self { engine: engine.clone(), id: name, done: true };
                if let Err(removal) = lost.remove_call().await {
                    tracing::warn!(container = lost.id, %removal, "a container may be left from a create call without an answer");
                }
                Err(error)
            }
        }
    }

    /// Takes over a container that exists, such as one that [`list`] found.
    ///
    /// # Errors
    /// [`SandboxError::Gone`] if it does not exist, or the engine is away.
    pub async fn adopt(engine: &Engine, id: &str) -> Result<Self, SandboxError> {
        inspect(engine, id).await?;
        Ok(Self { engine: engine.clone(), id: id.to_owned(), done: false })
    }

    /// The engine's id of the container.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// # Errors
    /// [`SandboxError::StartRefused`], [`SandboxError::NoListener`], [`SandboxError::Gone`], or the engine is away.
    pub async fn start(&self) -> Result<(), SandboxError> {
        let call = self.engine.api().start_container(&self.id, None);
        match self.engine.call("start", self.engine.deadlines().start, call).await {
            Err(SandboxError::Refused { status: 404, message, .. }) if is_gone(&message) => Err(self.gone()),
            // The runtime names the socket that it could not connect to.
            Err(SandboxError::Refused { message, .. }) if message.contains(SOCKET) => {
                Err(SandboxError::NoListener(message))
            }
            Err(SandboxError::Refused { message, .. }) => Err(SandboxError::StartRefused(message)),
            other => other,
        }
    }

    /// # Errors
    /// [`SandboxError::Gone`], or the engine is away.
    pub async fn inspect(&self) -> Result<Inspected, SandboxError> {
        inspect(&self.engine, &self.id).await
    }

    /// Waits until the container has ended, as long as it takes: the wall clock is the caller's. A lost
    /// connection, a lost waiter and an engine that restarts within a minute do not disturb it. May be dropped
    /// and called again.
    ///
    /// # Errors
    /// [`SandboxError::Gone`] if somebody else removed it; the engine's last error if it stays away.
    pub async fn wait(&self) -> Result<Ended, SandboxError> {
        let mut away_since: Option<Instant> = None;
        let mut failed_since: Option<Instant> = None;
        loop {
            // What the call says does not count, only that it returned: inspect knows all of it, and more.
            let asked = Instant::now();
            let _ = tokio::time::timeout(WAIT_SLICE, self.wait_call()).await;
            match self.inspect().await {
                Ok(Inspected { state: ContainerState::Exited, exit_code, oom_killed, error, .. }) => {
                    let since = *failed_since.get_or_insert_with(Instant::now);
                    if exit_code == Some(0) || oom_killed || since.elapsed() > OOM_NEWS_WITHIN {
                        return Ok(Ended { exit_code: exit_code.unwrap_or(-1), oom_killed, error });
                    }
                }
                Ok(_) => away_since = None,
                Err(error) if error.is_transient() => {
                    let since = *away_since.get_or_insert(asked);
                    if since.elapsed() > ENGINE_AWAY {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            // A wait call that fails at once must not become a busy loop.
            if asked.elapsed() < Duration::from_millis(200) {
                sleep(Duration::from_millis(200)).await;
            }
        }
    }

    async fn wait_call(&self) {
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let mut answers = std::pin::pin!(self.engine.api().wait_container(&self.id, Some(options)));
        let _ = answers.next().await;
    }

    /// Ends every process of the container now: through the engine, and if that does not answer, on the host.
    /// A container that does not run is left as it is.
    ///
    /// # Errors
    /// [`SandboxError::Gone`]; the engine's error if neither way worked.
    pub async fn kill(&self) -> Result<(), SandboxError> {
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        let call = self.engine.api().kill_container(&self.id, Some(options));
        match self.engine.call("kill", self.engine.deadlines().kill, call).await {
            Err(SandboxError::Refused { status: 404, .. }) => Err(self.gone()),
            Err(SandboxError::Refused { status: 409, .. }) => Ok(()),
            Err(error) if self.kill_on_host(&error) == 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the container, running or not, and makes sure that it is gone. Does nothing the second time.
    ///
    /// # Errors
    /// [`SandboxError::StillThere`] or the engine's error; it may be called again then.
    pub async fn remove(&mut self) -> Result<(), SandboxError> {
        if self.done {
            return Ok(());
        }
        let deadline = Instant::now() + self.engine.deadlines().remove * 2;
        loop {
            let reason = match self.remove_call().await {
                Ok(()) => match self.inspect().await {
                    Err(SandboxError::Gone { .. }) => {
                        self.done = true;
                        return Ok(());
                    }
                    Ok(left) => format!("it is still there ({:?})", left.state),
                    Err(error) => error.to_string(),
                },
                Err(error) => {
                    self.kill_on_host(&error);
                    error.to_string()
                }
            };
            if Instant::now() >= deadline {
                return Err(SandboxError::StillThere { id: self.id.clone(), reason });
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// `v`: an anonymous volume must not stay behind either. Engines answer 404 for one that is gone and 409 for
    /// one that is being removed.
    async fn remove_call(&self) -> Result<(), SandboxError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let call = self.engine.api().remove_container(&self.id, Some(options));
        match self.engine.call("remove", self.engine.deadlines().remove, call).await {
            Err(SandboxError::Refused { status: 404 | 409, .. }) => Ok(()),
            other => other,
        }
    }

    fn kill_on_host(&self, error: &SandboxError) -> usize {
        let killed = host_kill::kill_all(&self.id).unwrap_or_default();
        tracing::warn!(container = self.id, %error, killed, "the engine failed; killed the container's processes on the host");
        killed
    }

    /// Gives the container up without removing it, for a runner that leaves it to its successor.
    pub fn leave(mut self) -> String {
        self.done = true;
        self.id.clone()
    }

    fn gone(&self) -> SandboxError {
        SandboxError::Gone { id: self.id.clone() }
    }
}

impl Drop for Sandbox {
    /// Nothing can be awaited here, and a runner that is told to stop leaves its containers on purpose.
    fn drop(&mut self) {
        if !self.done {
            tracing::info!(
                container = self.id,
                "a container is left as it is; the next start takes it up, or the sweep removes it"
            );
        }
    }
}

/// All containers of an instance, running or not, by their labels.
///
/// # Errors
/// The engine is away.
pub async fn list(engine: &Engine, instance: &str) -> Result<Vec<Found>, SandboxError> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_INSTANCE}={instance}")])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let call = engine.api().list_containers(Some(options));
    let mut found = Vec::new();
    for summary in engine.call("list", engine.deadlines().ask, call).await? {
        let id = summary.id.unwrap_or_default();
        let labels = summary.labels.unwrap_or_default();
        let run_id = labels.get(LABEL_RUN).and_then(|text| text.parse().ok());
        let attempt = labels.get(LABEL_ATTEMPT).and_then(|text| text.parse().ok());
        let (Some(run_id), Some(attempt)) = (run_id, attempt) else {
            tracing::warn!(
                container = id,
                "a container carries our instance label but not our other labels; left alone"
            );
            continue;
        };
        let mut state = summary.state.map_or(ContainerState::Other, ContainerState::of_summary);
        let mut pid = None;
        if state == ContainerState::Running {
            match inspect(engine, &id).await {
                Ok(inspected) => (state, pid) = (inspected.state, inspected.pid),
                Err(SandboxError::Gone { .. }) => continue,
                Err(error) => return Err(error),
            }
        }
        found.push(Found { id, run_id, attempt, state, pid });
    }
    Ok(found)
}

async fn inspect(engine: &Engine, id: &str) -> Result<Inspected, SandboxError> {
    let question = async {
        match engine.api().inspect_container(id, None).await {
            Ok(answer) => Ok(Some(answer)),
            Err(ApiError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(other) => Err(other),
        }
    };
    let answer = engine.call("inspect", engine.deadlines().ask, question).await?;
    let answer = answer.ok_or_else(|| SandboxError::Gone { id: id.to_owned() })?;
    let state = answer.state.ok_or_else(|| SandboxError::Answer {
        call: "inspect",
        reason: "a container without a state".to_owned(),
    })?;
    Ok(Inspected {
        state: state.status.map_or(ContainerState::Other, ContainerState::of_inspect),
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0),
        exit_code: state.exit_code,
        oom_killed: state.oom_killed.unwrap_or_default(),
        error: state.error.unwrap_or_default(),
    })
}

impl ContainerState {
    const fn of_inspect(status: ContainerStateStatusEnum) -> Self {
        match status {
            ContainerStateStatusEnum::CREATED => Self::Created,
            ContainerStateStatusEnum::RUNNING => Self::Running,
            ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD => Self::Exited,
            _ => Self::Other,
        }
    }

    const fn of_summary(status: ContainerSummaryStateEnum) -> Self {
        match status {
            ContainerSummaryStateEnum::CREATED => Self::Created,
            ContainerSummaryStateEnum::RUNNING => Self::Running,
            ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD => Self::Exited,
            _ => Self::Other,
        }
    }
}

/// 404 is also what the engine answers to a start whose mount or runtime is missing.
fn is_gone(message: &str) -> bool {
    message.to_lowercase().contains("no such container")
}
