//! Says every few seconds that this runner lives, and whether its engine does.

use std::sync::Arc;
use std::time::Duration;

use crate::db;
use crate::db::deadline::{ANSWER_WITHIN, within};
use crate::db::runners::Presence;
use crate::runner::environment::Environment;

const BEAT: Duration = Duration::from_secs(5);

/// Runs until the soft token.
pub(super) async fn run(environment: Arc<Environment>) {
    while !environment.lifecycle.soft().is_cancelled() {
        announce(&environment).await;
        tokio::select! {
            () = environment.lifecycle.soft().cancelled() => {}
            () = tokio::time::sleep(BEAT) => {}
        }
    }
    announce(&environment).await;
}

pub(super) async fn announce(environment: &Environment) {
    let (engine, engine_ok) = match environment.engine.info().await {
        Ok(info) => (info.version, true),
        Err(error) => (error.to_string(), false),
    };
    let presence = Presence {
        id: environment.id,
        instance: environment.config.instance.to_string(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        concurrency: i32::try_from(environment.config.concurrency).unwrap_or(i32::MAX),
        draining: environment.lifecycle.soft().is_cancelled(),
        engine,
        engine_ok,
        runtime: environment.runtimes.default().to_owned(),
        runtimes: environment.runtimes.allowed(),
        keeper_ok: match &environment.keeper {
            Some(keeper) => Some(keeper.answers().await),
            None => None,
        },
        disk: environment.watermark.words(),
        disk_ok: environment.watermark.has_room(),
    };
    if let Err(error) = within(ANSWER_WITHIN, db::runners::announce(&environment.pool, &presence)).await {
        tracing::warn!(%error, "runner.presence_failed");
    }
}
