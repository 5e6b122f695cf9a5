//! No job before its sandbox was looked at from inside, and found to be what it was asked to be.

use chrono::Utc;
use kage_shim::containment::Facts;
use serde_json::json;

use crate::db;
use crate::db::runs::RunRow;
use crate::metrics::metrics;
use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;
use crate::sandbox::proof::{self, Check, Kernel, Seen};
use crate::sandbox::spec::Spec;
use crate::wire::containment::{CheckResult, Containment, ContainmentCheck, ContainmentState};

impl Drive<'_> {
    /// The result is committed before the job is handed out.
    pub(super) async fn require_containment(
        &self,
        run: &RunRow,
        spec: &Spec,
        found: Facts,
    ) -> Result<(), RunFailure> {
        let runtime = spec.runtime.as_deref().unwrap_or(self.environment.runtimes.default());
        let here = proof::namespaces_here().map_err(RunFailure::io("/proc/self/ns"))?;
        let checks = proof::examine(spec, Kernel::of(runtime), &here, &found);
        let proof = record(run.attempt.unsigned_abs(), checks, found.micros);
        let (pool, lease, facts) = (&self.environment.pool, self.lease, json!(found));
        self.commit(|| db::containment::record(pool, lease, run, &proof, &facts)).await?;
        // What the shim tried, to see that it is refused, is no news of the CLI.
        if let Some(counted) = self.here.counted.get() {
            counted.forget().await?;
        }
        match proof.state {
            ContainmentState::Refused => {
                metrics().runs.containment_refused();
                Err(RunFailure::Containment(proof.surprises))
            }
            ContainmentState::Proved | ContainmentState::ProvedInPart => Ok(()),
        }
    }
}

/// One surprise refuses; what cannot be seen is not proved.
fn record(attempt: u32, checks: Vec<Check>, micros: u64) -> Containment {
    let result = |check: &Check| match check.seen {
        _ if !check.surprises.is_empty() => CheckResult::Surprise,
        Seen::All => CheckResult::Ok,
        Seen::Part(_) => CheckResult::OkInPart,
        Seen::Nothing(_) => CheckResult::NotSeen,
    };
    let not_seen: Vec<String> = checks
        .iter()
        .filter_map(|check| match check.seen {
            Seen::All => None,
            Seen::Part(why) | Seen::Nothing(why) => Some(why.to_owned()),
        })
        .collect();
    let told = checks.iter().map(|it| ContainmentCheck { name: it.name.to_owned(), result: result(it) });
    let told = told.collect();
    let surprises: Vec<String> = checks.into_iter().flat_map(|check| check.surprises).collect();
    let state = match (surprises.is_empty(), not_seen.is_empty()) {
        (false, _) => ContainmentState::Refused,
        (true, false) => ContainmentState::ProvedInPart,
        (true, true) => ContainmentState::Proved,
    };
    let took_ms = micros as f64 / 1000.0;
    Containment { attempt, state, checks: told, surprises, not_seen, took_ms, at: Utc::now() }
}
