//! Tasks and events as a server would send them.

use chrono::{DateTime, TimeDelta, Utc};
use kage::domain::run::RunState;
use kage::domain::task::{MergeStrategy, TaskStatus};
use kage::wire::event::{Connected, Log, Notice, RunResult, State, TaskComplete};
use kage::wire::run::{Files, Run};
use kage::wire::task::Task;
use serde::Serialize;
use uuid::Uuid;

pub const TASK: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0001);

pub fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

pub fn run(name: &str, state: RunState) -> Run {
    Run {
        id: Uuid::from_u128(7),
        name: name.to_owned(),
        cli_name: "shell".to_owned(),
        state,
        error: None,
        exit_code: Some(0),
        attempt: 1,
        started_at: Some(start()),
        finished_at: Some(start() + TimeDelta::milliseconds(4200)),
        image: "sha256:00".to_owned(),
        base_commit: Some("b".repeat(40)),
        branch: Some(format!("task-{TASK}-{name}")),
        commit_hash: Some("c".repeat(40)),
        files_changed: 2,
        insertions: 10,
        deletions: 3,
        output_bytes: 12,
        cost: 0.0,
        usage: None,
        decided_by: None,
        contained: None,
        containment: None,
        refused_calls: None,
        refused_calls_recorded: None,
        quarantined: Vec::new(),
        sandbox: None,
        events: false,
    }
}

/// A run with all that a person should know of it.
pub fn run_in_full() -> Run {
    let value = serde_json::json!({
        "containment": {
            "attempt": 1, "state": "proved_in_part", "took_ms": 3.25, "at": start(),
            "checks": [{ "name": "network", "result": "ok" }, { "name": "limits", "result": "not_seen" }],
            "not_seen": ["limits: this kernel does not show them"],
        },
        "sandbox": {
            "attempt": 1, "runtime": "runsc", "worktree": "overlay",
            "limits": {
                "memory_bytes": { "value": 2_147_483_648_u64, "held": "hard" },
                "worktree_bytes": { "value": 1_048_576, "held": "soft" },
            },
        },
        "quarantined": [
            { "path": ".claude ", "digest": "sha256:00" },
            { "path": ".gemini", "digest": "sha256:00", "obstacle": "it holds a link" },
        ],
    });
    let mut run = run("shell", RunState::Succeeded);
    run.containment = serde_json::from_value(value["containment"].clone()).unwrap();
    run.sandbox = serde_json::from_value(value["sandbox"].clone()).unwrap();
    run.quarantined = serde_json::from_value(value["quarantined"].clone()).unwrap();
    run.refused_calls_recorded = Some("interrupted: the keeper has ended".to_owned());
    run
}

pub fn files(name: &str) -> Files {
    Files {
        run: name.to_owned(),
        branch: None,
        commit_hash: None,
        files: Vec::new(),
        rejected: Vec::new(),
        flagged: Vec::new(),
        total: 0,
        next: None,
        warnings: Vec::new(),
    }
}

pub fn task(status: TaskStatus, runs: Vec<Run>) -> Task {
    Task {
        id: TASK,
        description: "do what is to be done".to_owned(),
        status,
        repository: "demo".to_owned(),
        base_revision: None,
        cli_assignments: Vec::new(),
        contexts_left_out: false,
        max_retries: 3,
        retry_delay: 5,
        merge_strategy: MergeStrategy::Theirs,
        budget: None,
        created_by: None,
        created_at: start(),
        updated_at: start(),
        started_at: Some(start()),
        completed_at: None,
        error: None,
        runs,
        cli_results: None,
        success_count: None,
        failure_count: None,
        total_cost: None,
        total_duration: None,
        best_cli: None,
        let_go: Vec::new(),
    }
}

/// One frame of a stream.
#[derive(Debug, Clone)]
pub struct Sent {
    pub id: Option<u64>,
    pub text: String,
}

pub fn sent(id: Option<u64>, event: &str, data: &impl Serialize) -> Sent {
    let data = serde_json::to_string(data).unwrap();
    let line = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    Sent { id, text: format!("{line}event: {event}\ndata: {data}\n\n") }
}

pub fn connected() -> Sent {
    let data = Connected { task_id: TASK, status: TaskStatus::Running, timestamp: start() };
    sent(None, "connected", &data)
}

pub fn log(run: &str, stream: &str, offset: u64, text: &str) -> Log {
    Log {
        run: run.to_owned(),
        attempt: 1,
        stream: stream.to_owned(),
        offset,
        text: text.to_owned(),
        base64: None,
    }
}

pub fn state(run: &str, state: RunState) -> State {
    State {
        task_id: TASK,
        run: run.to_owned(),
        run_id: Uuid::from_u128(7),
        state,
        attempt: 1,
        reason: None,
        timestamp: start(),
    }
}

pub fn result(run: Run) -> RunResult {
    RunResult { task_id: TASK, run, files_modified: vec!["a".to_owned()], warnings: Vec::new() }
}

pub fn notice(run: Option<&str>, message: &str) -> Notice {
    Notice { task_id: TASK, run: run.map(str::to_owned), message: message.to_owned(), timestamp: start() }
}

pub fn complete(status: TaskStatus) -> TaskComplete {
    TaskComplete {
        task_id: TASK,
        status,
        success_count: 1,
        failure_count: 0,
        best_cli: None,
        timestamp: start(),
    }
}

/// A whole task of two runs; ids rise, but not by one.
pub fn story(status: TaskStatus) -> Vec<Sent> {
    vec![
        sent(Some(3), "state", &state("shell", RunState::Preparing)),
        sent(Some(4), "state", &state("shell", RunState::Running)),
        sent(Some(7), "log", &log("shell", "stdout", 0, "one\ntw")),
        sent(Some(8), "log", &log("shell-2", "stdout", 0, "other\n")),
        sent(Some(9), "log", &log("shell", "stderr", 0, "careful\n")),
        sent(Some(12), "log", &log("shell", "stdout", 6, "o\nlast without end")),
        sent(Some(13), "warning", &notice(Some("shell"), "mind the gap")),
        sent(Some(20), "novelty", &serde_json::json!({"from": "the future"})),
        sent(Some(21), "result", &result(run("shell", RunState::Succeeded))),
        sent(Some(22), "result", &result(run("shell-2", RunState::Succeeded))),
        sent(Some(30), "task_complete", &complete(status)),
    ]
}
