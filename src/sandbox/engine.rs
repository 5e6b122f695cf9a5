//! The container engine, through its API, with a deadline on every call.

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::errors::Error as ApiError;
use tracing::Instrument as _;

use crate::metrics::metrics;
use crate::sandbox::error::SandboxError;
use crate::sandbox::remap::{self, Users};
use crate::sandbox::spec::ImageDigest;
use crate::traces;

/// How long each kind of call may take. After that the call is given up, whatever the engine does.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Questions: ping, version, inspect, list.
    pub ask: Duration,
    pub create: Duration,
    pub start: Duration,
    pub kill: Duration,
    pub remove: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            ask: Duration::from_secs(10),
            create: Duration::from_secs(30),
            start: Duration::from_secs(60),
            kill: Duration::from_secs(10),
            remove: Duration::from_secs(30),
        }
    }
}

/// A handle on one engine; cheap to clone. Every call opens its own connection.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
    uri: String,
    deadlines: Deadlines,
    /// Images that were found good. A digest's content does not change, so once is enough.
    good_images: Arc<Mutex<HashSet<ImageDigest>>>,
}

/// What an engine says about itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EngineInfo {
    pub version: String,
    /// Highest API version that it speaks.
    pub api: String,
    pub runtimes: BTreeSet<String>,
    pub default_runtime: String,
    /// Such as `name=seccomp,profile=builtin`, `name=rootless`.
    pub security_options: Vec<String>,
    /// What it does with the users of its containers.
    #[serde(skip)]
    pub users: Users,
    /// `1` or `2`.
    pub cgroup_version: String,
    pub kernel: String,
    pub architecture: String,
}

/// Bollard's own limit, which must never be the one that strikes: it covers an answer's head alone.
const TRANSPORT_TIMEOUT_SECS: u64 = 24 * 3600;

impl Engine {
    /// Connects and agrees on an API version.
    ///
    /// # Errors
    /// [`SandboxError::EngineAddress`] if `uri` is neither `unix://…` nor an absolute path,
    /// [`SandboxError::EngineUnavailable`] or [`SandboxError::Deadline`] if nobody answers there.
    pub async fn connect(uri: &str) -> Result<Self, SandboxError> {
        Self::connect_with(uri, Deadlines::default()).await
    }

    /// As [`Engine::connect`], with other deadlines.
    ///
    /// # Errors
    /// Those of [`Engine::connect`].
    pub async fn connect_with(uri: &str, deadlines: Deadlines) -> Result<Self, SandboxError> {
        let path = uri.strip_prefix("unix://").unwrap_or(uri);
        if !Path::new(path).is_absolute() {
            return Err(SandboxError::EngineAddress { uri: uri.to_owned() });
        }
        let unavailable = |reason: &ApiError| SandboxError::EngineUnavailable {
            uri: uri.to_owned(),
            reason: reason.to_string(),
        };
        let docker = Docker::connect_with_unix(path, TRANSPORT_TIMEOUT_SECS, bollard::API_DEFAULT_VERSION)
            .map_err(|error| unavailable(&error))?;
        let negotiated = tokio::time::timeout(deadlines.ask, docker.negotiate_version()).await;
        let docker = negotiated
            .map_err(|_| SandboxError::Deadline { call: "version", after: deadlines.ask })?
            .map_err(|error| unavailable(&error))?;
        Ok(Self { docker, uri: uri.to_owned(), deadlines, good_images: Arc::default() })
    }

    /// # Errors
    /// [`SandboxError::EngineUnavailable`] or [`SandboxError::Deadline`].
    pub async fn ping(&self) -> Result<(), SandboxError> {
        self.call("ping", self.deadlines.ask, self.docker.ping()).await.map(|_| ())
    }

    /// # Errors
    /// [`SandboxError::EngineUnavailable`] or [`SandboxError::Deadline`].
    pub async fn info(&self) -> Result<EngineInfo, SandboxError> {
        let info = self.call("info", self.deadlines.ask, self.docker.info()).await?;
        let version = self.call("version", self.deadlines.ask, self.docker.version()).await?;
        let security_options = info.security_options.unwrap_or_default();
        let root_dir = info.docker_root_dir.unwrap_or_default();
        Ok(EngineInfo {
            users: Users::of(&security_options, &root_dir, remap::sees_all()),
            version: version.version.unwrap_or_default(),
            api: version.api_version.unwrap_or_default(),
            runtimes: info.runtimes.unwrap_or_default().into_keys().collect(),
            default_runtime: info.default_runtime.unwrap_or_default(),
            security_options,
            cgroup_version: info.cgroup_version.map(|v| v.to_string()).unwrap_or_default(),
            kernel: info.kernel_version.unwrap_or_default(),
            architecture: info.architecture.unwrap_or_default(),
        })
    }

    /// The address it was given.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    pub const fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// The API itself. Only for use inside [`Engine::call`].
    pub const fn api(&self) -> &Docker {
        &self.docker
    }

    /// The images that [`crate::sandbox::image_check`] has found good.
    pub(crate) fn good_images(&self) -> MutexGuard<'_, HashSet<ImageDigest>> {
        // A set is whole also when somebody panicked while he held it.
        self.good_images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Awaits one call until its deadline, and folds what the API says into our errors.
    ///
    /// # Errors
    /// [`SandboxError::Deadline`], [`SandboxError::EngineUnavailable`], or the engine's refusal.
    pub async fn call<T>(
        &self,
        call: &'static str,
        after: Duration,
        future: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, SandboxError> {
        let began = Instant::now();
        let answer = match tokio::time::timeout(after, future.instrument(traces::engine_call(call))).await {
            Err(_) => Err(SandboxError::Deadline { call, after }),
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.fold(call, error)),
        };
        metrics().engine.called(call, outcome(&answer), began.elapsed());
        answer
    }

    fn fold(&self, call: &'static str, error: ApiError) -> SandboxError {
        match error {
            ApiError::DockerResponseServerError { status_code, message } => {
                SandboxError::Refused { call, status: status_code, message }
            }
            ApiError::RequestTimeoutError => {
                SandboxError::Deadline { call, after: Duration::from_secs(TRANSPORT_TIMEOUT_SECS) }
            }
            ApiError::SocketNotFoundError(_)
            | ApiError::IOError { .. }
            | ApiError::HyperResponseError { .. }
            | ApiError::HyperLegacyError { .. } => SandboxError::EngineUnavailable {
                uri: self.uri.clone(),
                reason: format!("{call}: {}", root_cause(&error)),
            },
            ApiError::DockerStreamError { error } => {
                SandboxError::Refused { call, status: 500, message: error }
            }
            other => SandboxError::Answer { call, reason: other.to_string() },
        }
    }
}

const fn outcome<T>(answer: &Result<T, SandboxError>) -> &'static str {
    match answer {
        Ok(_) => "ok",
        Err(SandboxError::Deadline { .. }) => "deadline",
        Err(SandboxError::EngineUnavailable { .. }) => "unavailable",
        Err(SandboxError::Answer { .. }) => "nonsense",
        Err(_) => "refused",
    }
}

/// The innermost error: "No such file or directory" says more than "client error (Connect)".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
