//! Liveness, readiness, and what is where. No key needed; nothing said that an attacker could use.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::api::state::ApiState;
use crate::db;
use crate::db::runners::RunnerRow;
use crate::db::schema::Schema;
use crate::wire::health::{Dependency, Health, Ready};

/// A sequencer that is so far behind is gone, or cannot keep up.
const SEQUENCER_LAG: Duration = Duration::from_secs(60);

fn healthy() -> Json<Health> {
    Json(Health { status: "healthy".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
}

/// The process lives.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Health)))]
pub(super) async fn live() -> Json<Health> {
    healthy()
}

/// The process lives (the predecessor's path).
#[utoipa::path(get, path = "/api/v1/health", tag = "health", responses((status = 200, body = Health)))]
pub(super) async fn live_v1() -> Json<Health> {
    healthy()
}

/// Whether tasks can be taken and run, with each dependency's state.
#[utoipa::path(get, path = "/ready", tag = "health",
    responses((status = 200, body = Ready), (status = 503, body = Ready)))]
pub(super) async fn ready(State(state): State<ApiState>) -> (StatusCode, Json<Ready>) {
    let mut dependencies = BTreeMap::new();
    let mut say = |name: &str, ok: bool, detail: String| {
        dependencies.insert(name.to_owned(), Dependency { ok, detail });
    };
    // Asked once: a database that is away takes its time not to answer.
    let runners = match db::schema::state(&state.pool).await {
        Ok(schema) => {
            let refusal = schema.refusal().map(|refusal| refusal.to_string());
            let detail = refusal.unwrap_or_else(|| "answers; schema is current".to_owned());
            say("database", schema == Schema::Current, detail);
            db::runners::alive(&state.pool).await.ok()
        }
        Err(_) => {
            say("database", false, "does not answer".to_owned());
            None
        }
    };
    match runners {
        Some(runners) => {
            let working = runners.iter().filter(|runner| !runner.draining).count();
            say("runner", working > 0, format!("{working} take(s) runs"));
            let engines = runners.iter().filter(|runner| runner.engine_ok).count();
            say("engine", engines > 0, format!("{engines} of {} answer(s)", runners.len()));
            let keepers: Vec<bool> = runners.iter().filter_map(|runner| runner.keeper_ok).collect();
            if !keepers.is_empty() {
                let answering = keepers.iter().filter(|ok| **ok).count();
                let detail = format!("{answering} of {} answer(s)", keepers.len());
                say("keeper", answering == keepers.len(), detail);
            }
            if let Some((ok, detail)) = disk(&runners) {
                say("disk", ok, detail);
            }
        }
        None => say("runner", false, "unknown: the database does not answer".to_owned()),
    }
    if let Some(lag) = sequencer_lag(&state).await {
        let waits = format!("the entry that waits longest has waited for {} s", lag.as_secs());
        say(
            "sequencer",
            lag <= SEQUENCER_LAG,
            if lag.is_zero() { "no entry waits".to_owned() } else { waits },
        );
    }
    // Runs go on without these: a run whose keeper is gone says so itself, and what waits for room is not lost.
    let needed = |name: &str| !matches!(name, "disk" | "keeper" | "sequencer");
    let ready = dependencies.iter().all(|(name, dependency)| dependency.ok || !needed(name));
    let degraded = ready && dependencies.values().any(|dependency| !dependency.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, degraded, dependencies }))
}

/// A runner whose disk is low says what is free of it. No path and no name: nobody had to show a key.
fn disk(runners: &[RunnerRow]) -> Option<(bool, String)> {
    let looked: Vec<(bool, &str)> =
        runners.iter().filter_map(|runner| Some((runner.disk_ok?, runner.disk.as_deref()?))).collect();
    let low: Vec<&str> = looked.iter().filter(|(ok, _)| !ok).map(|(_, words)| *words).collect();
    match low.first() {
        Some(words) => {
            Some((false, format!("{} of {} runner(s) begin no run: {words}", low.len(), looked.len())))
        }
        None => looked.first().map(|(_, words)| (true, (*words).to_owned())),
    }
}

async fn sequencer_lag(state: &ApiState) -> Option<Duration> {
    let mut connection = state.pool.acquire().await.ok()?;
    db::trail::lag(&mut connection).await.ok()
}

/// What is where.
#[utoipa::path(get, path = "/", tag = "health", responses((status = 200, description = "Index")))]
pub(super) async fn index() -> Json<serde_json::Value> {
    Json(serde_json::json!({
        "name": "Kage Bunshin",
        "version": env!("CARGO_PKG_VERSION"),
        "docs": "/docs",
        "openapi": "/openapi.json",
        "health": "/health",
        "ready": "/ready",
        "api": "/api/v1",
    }))
}
