//! What the runner finds beneath its sandboxes when it starts: told in the log and the audit trail. A danger that the
//! operator has not accepted ends the start.

use serde_json::json;

use crate::db;
use crate::db::error::DbError;
use crate::db::patience::Patience;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::security_event::{SecurityEvent, SecurityEventKind};
use crate::runner::environment::Environment;
use crate::runner::failure::StartError;
use crate::sandbox::host_check::{Finding, Severity, addresses_unreadable, judge, refusals};
use crate::sandbox::host_check_facts::HostFacts;

/// # Errors
/// [`StartError::Host`] names each danger; [`StartError::Audit`] if nothing could be recorded.
pub(super) async fn check(environment: &Environment, patience: Patience) -> Result<(), StartError> {
    let config = &environment.config;
    let facts = HostFacts::gather(&environment.engine, config.runtime.as_deref(), &config.data_dir).await?;
    let mut findings = judge(&facts);
    if environment.keeper.as_ref().is_some_and(|keeper| config.record_addresses && !keeper.reads_addresses) {
        findings.push(addresses_unreadable());
    }
    for finding in &findings {
        let accepted = config.accept_host.iter().any(|id| id == finding.id);
        if finding.severity > Severity::Info {
            tracing::warn!(finding = finding.id, accepted, "runner.host: {}", finding.text());
        }
    }
    let notes = findings.iter().filter(|finding| finding.severity == Severity::Info);
    let notes: Vec<&str> = notes.map(|finding| finding.id).collect();
    tracing::info!(notes = notes.join(","), "runner.host: `kage doctor host` says what each means");
    for id in &config.accept_host {
        if !findings.iter().any(|finding| finding.id == id) {
            tracing::warn!(id, "runner.host: KAGE_RUNNER_ACCEPT_HOST names what was not found here");
        }
    }
    let refused = refusals(&findings, &config.accept_host);
    let told = async || record(environment, &facts, &findings, !refused.is_empty()).await;
    patience.ask(DbError::is_transient, told).await.map_err(StartError::Audit)?;
    if refused.is_empty() {
        return Ok(());
    }
    Err(StartError::Host {
        ids: refused.iter().map(|finding| finding.id).collect(),
        texts: refused.iter().map(|finding| format!("{}: {}", finding.id, finding.text())).collect(),
    })
}

/// An entry for each start: with which host runs were held can be asked later.
async fn record(
    environment: &Environment,
    facts: &HostFacts,
    findings: &[Finding],
    refused: bool,
) -> Result<(), DbError> {
    let accepted = &environment.config.accept_host;
    let short = |finding: &Finding| {
        json!({
            "id": finding.id,
            "severity": finding.severity,
            "seen": finding.seen,
            "accepted": accepted.iter().any(|id| id == finding.id),
        })
    };
    let entry = Entry {
        actor: Actor::Runner(environment.id.to_string()),
        action: "runner.host",
        object: format!("runner:{}", environment.id),
        outcome: if refused { Outcome::Refused } else { Outcome::Done },
        details: json!({
            "engine": facts.engine,
            "containerd": facts.containerd,
            "runc": if facts.runc_revision.is_empty() { &facts.runc } else { &facts.runc_revision },
            "runtime": facts.runtime,
            "kernel": facts.kernel,
            "cgroup": facts.cgroup_version,
            "security_options": facts.security_options,
            "findings": findings.iter().map(short).collect::<Vec<_>>(),
        }),
    };
    let mut transaction = environment.pool.begin().await?;
    db::audit::append(&mut transaction, &entry).await?;
    let dangers = findings.iter().filter(|finding| finding.severity == Severity::Danger);
    let (accepted, left): (Vec<&str>, Vec<&str>) =
        dangers.map(|finding| finding.id).partition(|id| accepted.iter().any(|named| named == id));
    let both =
        [(SecurityEventKind::HostDangerAccepted, accepted), (SecurityEventKind::HostDangerRefused, left)];
    for (kind, ids) in both {
        if !ids.is_empty() {
            let details = json!({ "instance": environment.config.instance, "findings": ids });
            let event = SecurityEvent::new(kind, &format!("runner:{}", environment.id), &details);
            db::security_events::append(&mut transaction, &event).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}
