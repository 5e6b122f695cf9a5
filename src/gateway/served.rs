//! One run as the gateway serves it: what was decided when its socket was opened, and what it has under way.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::config::gateway::GatewayConfig;
use crate::config::policy::CliPolicy;
use crate::config::providers::Provider;
use crate::db::grants::ActiveGrant;
use crate::dialect::request::{OnServerTool, Rules};
use crate::domain::model::Dialect;
use crate::gateway::rate::{Rate, Told};

/// Refusals a minute that are told one by one.
const TOLD_A_MINUTE: u32 = 10;
/// Distinct remarks that are told once each.
const REMARKS: usize = 50;
/// Output tokens of a call that names no limit of its own.
const DEFAULT_OUTPUT_TOKENS: u64 = 32_000;
/// Bodies of one run that are in memory at once, as a multiple of the largest.
const BODIES: usize = 2;

pub(super) struct ServedRun {
    pub run: Uuid,
    pub task: Uuid,
    pub attempt: i32,
    pub name: String,
    pub cli: String,
    pub dialect: Dialect,
    pub provider: Arc<Provider>,
    pub policy: CliPolicy,
    pub rules: Rules,
    /// Its calls count against keys' quotas.
    pub is_charged: bool,
    /// What continues the run's trace.
    pub traceparent: Option<String>,
    /// The name that the CLI was told to use.
    pub model: String,
    /// Ends the socket and every call on it.
    pub end: CancellationToken,
    /// The socket's connections.
    pub connections: TaskTracker,
    /// One permit a call.
    pub calls: Arc<Semaphore>,
    /// One permit for each kibibyte of a body that is being read or checked.
    pub bodies: Arc<Semaphore>,
    stopped: AtomicBool,
    rate: Mutex<Rate>,
    told: Mutex<Told>,
    remarks: Mutex<HashSet<String>>,
    /// Kinds of refusals that were booked since the last call that was.
    refusals: Mutex<HashSet<&'static str>>,
}

impl ServedRun {
    pub fn new(
        active: &ActiveGrant,
        dialect: Dialect,
        provider: Arc<Provider>,
        policy: CliPolicy,
        model: String,
        config: &GatewayConfig,
        end: CancellationToken,
    ) -> Self {
        let grant = &active.grant;
        let most = policy.max_output_tokens.unwrap_or(config.output_tokens);
        Self {
            run: grant.run_id,
            task: grant.task_id,
            attempt: grant.attempt,
            name: active.run_name.clone(),
            cli: grant.cli_name.clone(),
            is_charged: active.is_charged,
            traceparent: grant.traceparent.clone(),
            dialect,
            rules: Rules {
                server_tools: policy.server_tools.clone(),
                remote_references: policy.remote_references,
                max_output_tokens: most,
                default_output_tokens: most.min(DEFAULT_OUTPUT_TOKENS),
                on_server_tool: if policy.refuse_server_tools {
                    OnServerTool::Refuse
                } else {
                    OnServerTool::Remove
                },
            },
            model,
            end,
            connections: TaskTracker::new(),
            calls: Arc::new(Semaphore::new(config.calls)),
            bodies: Arc::new(Semaphore::new(BODIES * config.body_bytes.div_ceil(1024))),
            // A restart of the gateway does not take back what it has said.
            stopped: AtomicBool::new(grant.stop_reason.is_some()),
            rate: Mutex::new(Rate::new(policy.requests_per_minute.unwrap_or(config.requests_per_minute))),
            told: Mutex::new(Told::new(TOLD_A_MINUTE)),
            remarks: Mutex::default(),
            refusals: Mutex::default(),
            provider,
            policy,
        }
    }

    /// The run's budget is spent: it makes no more calls.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Takes one of the minute's requests, or says when there will be one.
    pub fn admit(&self) -> Result<(), u64> {
        lock(&self.rate).admit(Instant::now())
    }

    /// Whether to tell of a refusal, and how many before it were not told.
    pub fn tell(&self) -> Option<u64> {
        lock(&self.told).tell(Instant::now())
    }

    pub fn take_untold(&self) -> u64 {
        lock(&self.told).take_untold()
    }

    /// Whether a refusal of this kind is the first since the last call that was booked.
    pub fn is_first_refusal(&self, kind: &'static str) -> bool {
        lock(&self.refusals).insert(kind)
    }

    /// A refusal of this kind could not be booked.
    pub fn forget_refusal(&self, kind: &'static str) {
        lock(&self.refusals).remove(kind);
    }

    /// A call is in the books: what is refused after it counts anew.
    pub fn note_booked(&self) {
        lock(&self.refusals).clear();
    }

    /// Whether this remark is made for the first time.
    pub fn is_new(&self, remark: &str) -> bool {
        let mut remarks = lock(&self.remarks);
        remarks.len() < REMARKS && remarks.insert(remark.to_owned())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
