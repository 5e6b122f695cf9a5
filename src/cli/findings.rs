//! What a person should know of a run beside its end: what held it, what it was refused, what it did not see, and what of
//! its work was not taken or wants a look. Each in a line, not yet made harmless.

use uuid::Uuid;

use crate::cli::escape;
use crate::client::Client;
use crate::client::error::ClientError;
use crate::domain::limits::Enforcement;
use crate::domain::name::Name;
use crate::wire::containment::{CheckResult, Containment, ContainmentState};
use crate::wire::quarantine::Quarantined;
use crate::wire::run::{FlaggedKind, HeldLimit, RefusedCall, Rejected, Run, SandboxRecord};

/// Lines of one kind that are shown; `GET …/files` has all.
const SHOWN: usize = 12;

/// What held it: the proof, the sandbox, its limits.
pub fn held_by(run: &Run) -> Vec<String> {
    let mut lines = containment(run);
    if let Some(sandbox) = &run.sandbox {
        lines.push(walls(sandbox));
        lines.extend(limits(sandbox, Enforcement::Hard));
        lines.extend(limits(sandbox, Enforcement::Soft));
    }
    lines
}

/// The proof in a line, and one for each thing that could not be seen.
pub fn containment(run: &Run) -> Vec<String> {
    let Some(found) = &run.containment else { return Vec::new() };
    let not_seen = found.not_seen.iter().map(|what| format!("not seen from inside: {what}"));
    [proof(found)].into_iter().chain(not_seen).collect()
}

fn proof(proof: &Containment) -> String {
    let ok = proof.checks.iter().filter(|check| check.result == CheckResult::Ok).count();
    let (all, took) = (proof.checks.len(), proof.took_ms);
    match proof.state {
        ContainmentState::Proved => format!("contained: proved before it began ({all} checks, {took:.1} ms)"),
        ContainmentState::ProvedInPart => {
            format!("contained: proved in part before it began ({ok} of {all} checks in full, {took:.1} ms)")
        }
        ContainmentState::Refused => {
            format!("contained: no; the run was refused: {}", proof.surprises.join("; "))
        }
    }
}

fn walls(sandbox: &SandboxRecord) -> String {
    let runtime = sandbox.runtime.as_deref().unwrap_or("the engine's own runtime");
    let worktree = sandbox.worktree.as_ref().map(|kind| format!(", worktree: {kind}")).unwrap_or_default();
    let notes: String = sandbox.notes.iter().map(|note| format!("; {note}")).collect();
    format!("sandbox: {runtime}{worktree}{notes}")
}

/// Those that are held so, if there are any.
fn limits(sandbox: &SandboxRecord, held: Enforcement) -> Option<String> {
    let word = match held {
        Enforcement::Hard => "hard limits",
        Enforcement::Soft => "soft limits (looked at every few seconds)",
    };
    let such = sandbox.limits.iter().filter(|(_, limit)| limit.held == held);
    let named: Vec<String> = such.map(|(name, limit)| self::limit(name, *limit)).collect();
    (!named.is_empty()).then(|| format!("{word}: {}", named.join(", ")))
}

fn limit(name: &str, HeldLimit { value, .. }: HeldLimit) -> String {
    if let Some(what) = name.strip_suffix("_bytes") {
        return format!("{} {}", what.replace('_', " "), bytes(value));
    }
    if let Some(what) = name.strip_suffix("_secs") {
        return format!("{} {value} s", what.replace('_', " "));
    }
    match name {
        "cpu_millis" => format!("CPU {}.{:02}", value / 1000, value % 1000 / 10),
        "pids" => format!("processes {value}"),
        other => format!("{} {value}", other.replace('_', " ")),
    }
}

/// `2 GiB`, `512 MiB`, `1000 B`: exact, or to a tenth.
fn bytes(value: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| value >> shift > 0) {
        None => format!("{value} B"),
        Some((unit, shift)) if value.is_multiple_of(1 << shift) => format!("{} {unit}", value >> shift),
        Some((unit, shift)) => format!("{:.1} {unit}", value as f64 / f64::from(1 << shift)),
    }
}

/// `refused: bpf, socket (AF_PACKET, SOCK_RAW, protocol 768) x3`; what ordinary programs try is not named.
pub fn refused(run: &Run) -> Vec<String> {
    let calls = run.refused_calls.iter().flatten().filter(|refused| !refused.expected);
    let one = |refused: &RefusedCall| {
        let form = if refused.form.is_empty() { String::new() } else { format!(" ({})", refused.form) };
        let times = if refused.count == 1 { String::new() } else { format!(" x{}", refused.count) };
        format!("{}{form}{times}", refused.call)
    };
    let named: Vec<String> = calls.map(one).collect();
    let named = (!named.is_empty()).then(|| format!("refused: {}", shortened(named, "kinds")));
    let recorded = run.refused_calls_recorded.as_ref().filter(|word| *word != "recorded");
    named.into_iter().chain(recorded.map(|word| format!("refused calls: {word}"))).collect()
}

/// What it did not see, since nobody has approved of it.
pub fn hidden(run: &Run) -> Option<String> {
    let one = |it: &Quarantined| match &it.obstacle {
        Some(obstacle) => format!("{} (cannot be approved: {obstacle})", escape::name(&it.path)),
        None => escape::name(&it.path),
    };
    let names: Vec<String> = run.quarantined.iter().map(one).collect();
    (!names.is_empty()).then(|| format!("hidden from it: {}", shortened(names, "paths")))
}

fn shortened(mut named: Vec<String>, what: &str) -> String {
    if let Some(more) = named.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        named.truncate(SHOWN);
        named.push(format!("and {more} more {what}"));
    }
    named.join(", ")
}

/// What the harvest did not take, and what of the change wants a look. None for a run that has not ended.
///
/// # Errors
/// [`ClientError`].
pub async fn of_harvest(client: &Client, task: Uuid, run: &Run) -> Result<Vec<String>, ClientError> {
    let Some(name) = run.name.parse::<Name>().ok().filter(|_| run.state.has_ended()) else {
        return Ok(Vec::new());
    };
    let files = client.files(task, &name).await?;
    let mut lines: Vec<String> = files.rejected.iter().map(rejected).collect();
    let of = |kind| {
        let such = files.flagged.iter().filter(move |flagged| flagged.kind == kind);
        such.map(|flagged| escape::name(&flagged.path)).collect::<Vec<_>>()
    };
    if let Some(more) = lines.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        lines.truncate(SHOWN);
        lines.push(format!("and {more} more paths that were not taken: GET …/runs/{name}/files has all"));
    }
    let (configuration, review) = (of(FlaggedKind::Configuration), of(FlaggedKind::Review));
    if !configuration.is_empty() {
        let names = shortened(configuration, "paths");
        lines.push(format!("read before you merge (a CLI obeys it before its first prompt): {names}"));
    }
    if !review.is_empty() {
        let names = shortened(review, "paths");
        lines.push(format!("read before you merge (programs obey it without being asked): {names}"));
    }
    Ok(lines)
}

fn rejected(it: &Rejected) -> String {
    let what = match it.kind.as_str() {
        "held" => "held back",
        "ignored" => "not taken",
        _ => "left out",
    };
    format!("{what}: {}: {}", escape::name(&it.path), it.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_words_with_how_they_are_held() {
        let held = |value, held| HeldLimit { value, held };
        let sandbox = SandboxRecord {
            attempt: 1,
            runtime: Some("runc".to_owned()),
            worktree: Some("overlay".to_owned()),
            limits: [
                ("memory_bytes".to_owned(), held(2 << 30, Enforcement::Hard)),
                ("cpu_millis".to_owned(), held(1500, Enforcement::Hard)),
                ("wall_secs".to_owned(), held(600, Enforcement::Hard)),
                ("pids".to_owned(), held(512, Enforcement::Hard)),
                ("worktree_bytes".to_owned(), held(1_572_864, Enforcement::Soft)),
            ]
            .into(),
            notes: Vec::new(),
        };
        let hard = limits(&sandbox, Enforcement::Hard).unwrap();
        assert_eq!(hard, "hard limits: CPU 1.50, memory 2 GiB, processes 512, wall 600 s");
        let soft = limits(&sandbox, Enforcement::Soft).unwrap();
        assert_eq!(soft, "soft limits (looked at every few seconds): worktree 1.5 MiB");
        assert_eq!(walls(&sandbox), "sandbox: runc, worktree: overlay");
        assert_eq!(shortened(vec!["x".to_owned(); 14], "paths").matches('x').count(), 12);
    }
}
