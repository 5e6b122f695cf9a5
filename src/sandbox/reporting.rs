//! Which runtimes tell of refused calls.

use crate::sandbox::engine::Engine;
use crate::sandbox::error::SandboxError;

/// Runtimes that hand over the kernel's listener, by the names that engines give them. gVisor's and Kata's have a kernel
/// of their own behind the host's, and ignore the profile.
const REPORTING_RUNTIMES: [&str; 3] = ["runc", "io.containerd.runc.v2", "crun"];

/// Whether a runtime (`None`: the engine's default) hands over the kernel's listener.
///
/// # Errors
/// The engine is away.
pub async fn reports(engine: &Engine, runtime: Option<&str>) -> Result<bool, SandboxError> {
    let runtime = match runtime {
        Some(runtime) => runtime.to_owned(),
        None => engine.info().await?.default_runtime,
    };
    Ok(REPORTING_RUNTIMES.contains(&runtime.as_str()))
}
