//! `kage runner`: the host-facing role. It holds the engine's socket, repositories and worktrees, and
//! neither a listening port nor a model credential.
//!
//! ```text
//! claim      takes queued runs, as many as there are free slots        lease     keeps them ours
//! drive      ONE run, told top to bottom:
//!   prepare    base, worktree, run folder, container                   pump      its output into events
//!   contained  what the sandbox looks like from inside, before the CLI begins
//!   refusals   system calls that the sandbox refused, into events
//!   room       a result waits for a disk that is full
//!   secrets    what looks like one in a branch
//!   conclude   container gone, harvest, branch, end (or another try)   retry     which ends are worth one
//!   trace      its part of the trace that its task came with
//!   flow       how many events a run's output makes, at most
//! keeper        the way to the process that holds the listeners for refused calls
//! keeper_trail  that it came or went, in the audit trail
//! redactor      secrets that it wrote, kept out of what is stored and told
//! host          what is found beneath the sandboxes at the start; a danger ends it
//! grant         a run's way to a model, asked of the gateway
//!   past_call  what the gateway's record of a call says (`domain::judgement` judges)
//! repositories  fulfils wishes: fetch, remove                          sweep     what nobody owns any more
//! watermark     the room on the disk: whether runs are begun            let_go    branches of results that were let go
//! ```

mod blocks;
mod claim;
mod conclude;
mod contained;
mod disk;
mod drive;
mod environment;
mod failure;
mod fetch_source;
mod flow;
mod folders;
mod grant;
mod harvest_record;
mod host;
mod keeper;
mod keeper_trail;
mod lease;
mod left_out;
mod let_go;
mod lines;
mod local_source;
mod notifier;
mod past_call;
mod patience;
mod prepare;
mod presence;
mod pump;
mod quarantine;
mod reconnect;
mod redactor;
mod refusals;
mod repositories;
mod retry;
mod review;
mod room;
mod runtimes;
mod secrets;
mod session;
mod sweep;
mod sweep_temporary;
mod told;
mod trace;
mod unfinished;
mod watermark;

use sqlx::PgPool;

use crate::config::runner::RunnerConfig;
use crate::db::patience::Patience;
use crate::lifecycle::Lifecycle;
use crate::runner::environment::Environment;
pub use crate::runner::failure::StartError;
use crate::runner::keeper::KeeperAccess;

/// Starts the runner's loops; they end with the lifecycle's tokens.
///
/// # Errors
/// [`StartError`] says what is missing on this host, and what to do.
pub async fn start(
    pool: PgPool,
    config: RunnerConfig,
    patience: Patience,
    lifecycle: &Lifecycle,
) -> Result<(), StartError> {
    let environment = Environment::open(pool, config, lifecycle).await?;
    host::check(&environment, patience).await?;
    watermark::look(&environment);
    presence::announce(&environment).await;
    let mut news = environment.keeper.as_ref().and_then(KeeperAccess::news);
    if let Some(news) = &mut news {
        keeper_trail::begin(&environment, news, patience).await.map_err(StartError::Audit)?;
    }
    lifecycle.spawn_essential("presence", presence::run(environment.clone()));
    let last = environment.clone();
    lifecycle.spawn_essential("lease", async move {
        let serve = async {
            lease::run(last.clone()).await;
            // No run is left.
            if let Some(keeper) = &last.keeper {
                keeper.leave().await;
            }
        };
        match news {
            Some(mut news) => {
                tokio::select! {
                    () = serve => {}
                    () = keeper_trail::follow(&last, &mut news) => {}
                }
                let told = keeper_trail::record(&last, &mut news).await;
                told.unwrap_or_else(|error| tracing::error!(%error, "runner.keeper_not_audited"));
            }
            None => serve.await,
        }
    });
    lifecycle.spawn_essential("notifier", notifier::run(environment.clone()));
    lifecycle.spawn_essential("repositories", repositories::run(environment.clone()));
    lifecycle.spawn_essential("watermark", watermark::run(environment.clone()));
    lifecycle.spawn_essential("sweep", sweep::run(environment.clone()));
    lifecycle.spawn_essential("claim", claim::run(environment));
    Ok(())
}
