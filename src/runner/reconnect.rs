//! A shim whose link broke: it comes back, or its sandbox has ended.

use std::time::Duration;

use kage_shim::protocol::Offsets;
use uuid::Uuid;

use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;
use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;
use crate::sandbox::container::Sandbox;
use crate::sandbox::error::SandboxError;
use crate::sandbox::shim_link::ShimLink;

/// How long a shim that broke off may take to come back.
const WITHIN: Duration = Duration::from_secs(30);

/// Waits for the shim to come back; else says how the sandbox ended.
pub(super) async fn wait(
    drive: Drive<'_>,
    run: Uuid,
    sandbox: &Sandbox,
    session: &str,
    committed: Offsets,
) -> Result<Result<ShimLink, Verdict>, RunFailure> {
    let listener = drive.listen(run, session)?;
    let accept = listener.accept_resumed(session, committed, WITHIN);
    let verdict = tokio::select! {
        link = accept => match link {
            Ok(link) => return Ok(Ok(link)),
            Err(error) => {
                let limit = drive.environment.config.limits.output_bytes;
                let verdict = if committed.stdout + committed.stderr >= limit {
                    // Cut by a runner that died since: the shim was told to forget what nobody kept.
                    Verdict::new(RunState::OutputLimit, format!("wrote more than {limit} bytes; the rest is cut"))
                } else {
                    Verdict::new(RunState::Lost, format!("its shim did not come back: {error}"))
                };
                // Whatever still runs there must not go on unseen.
                if let Err(error) = sandbox.kill().await {
                    tracing::warn!(run = %run, %error, "runner.kill_failed");
                }
                verdict
            }
        },
        ended = sandbox.wait() => match ended {
            Ok(ended) if ended.oom_killed => {
                Verdict::new(RunState::OutOfMemory, "over its memory limit; the kernel ended the sandbox")
            }
            Ok(ended) => Verdict::of_silence(ended.exit_code, &ended.error),
            Err(SandboxError::Gone { .. }) => {
                Verdict::new(RunState::SandboxError, "its container was removed from outside")
            }
            Err(error) => return Err(error.into()),
        },
    };
    Ok(Err(verdict))
}
