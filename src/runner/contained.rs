//! No job before its sandbox was looked at from inside, and found to be what it was asked to be.

use kage_shim::containment::Facts;
use serde_json::json;

use crate::db;
use crate::db::runs::RunRow;
use crate::runner::drive::Drive;
use crate::runner::failure::RunFailure;
use crate::sandbox::proof::{self, Kernel};
use crate::sandbox::spec::Spec;

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
        let surprises = proof::surprises(spec, Kernel::of(runtime), &here, &found);
        let (pool, lease, facts) = (&self.environment.pool, self.lease, json!(found));
        self.commit(|| db::containment::record(pool, lease, run, &facts, &surprises)).await?;
        // What the shim tried, to see that it is refused, is no news of the CLI.
        if let Some(counted) = self.here.counted.get() {
            counted.forget().await?;
        }
        if surprises.is_empty() { Ok(()) } else { Err(RunFailure::Containment(surprises)) }
    }
}
