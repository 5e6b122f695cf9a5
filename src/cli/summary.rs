//! What came of a task, run by run.

use crate::cli::view::changes;
use crate::cli::{escape, output};
use crate::wire::run::{ModelUse, RefusedCall, Run};
use crate::wire::task::Task;

/// The table of a task's runs, the errors, and what to do next. Harmless; ends with a line end.
pub fn render(task: &Task) -> String {
    let rows: Vec<Vec<String>> = task.runs.iter().map(row).collect();
    let mut text = format!("\ntask {} {}\n", task.id, task.status);
    text.push_str(&output::table(
        &["RUN", "STATE", "TIME", "COST", "CHANGES", "COMMIT", "BRANCH"],
        &rows,
        usize::MAX,
    ));
    for run in &task.runs {
        let decided = run.decided_by.as_ref().map(|by| format!("decided by: {by}"));
        let refused = refused(run);
        for line in run.usage.as_ref().map(usage).into_iter().chain(decided).chain(refused) {
            text.push_str(&escape::line(&format!("[{}] {line}", run.name)));
            text.push('\n');
        }
    }
    let errors = task.runs.iter().filter_map(|run| run.error.as_ref().map(|error| (Some(&run.name), error)));
    for (run, error) in errors.chain(task.error.iter().map(|error| (None, error))) {
        let place = run.map(|run| format!("[{run}] ")).unwrap_or_default();
        text.push_str(&escape::line(&format!("{place}{}", error.trim())));
        text.push('\n');
    }
    if task.runs.iter().any(|run| run.commit_hash.is_some()) {
        text.push_str(&format!("see the changes: kage diff {}\n", task.id));
    }
    text
}

/// `claude-sonnet-4-5 by anthropic: 3 calls, 3702 tokens in (33 cached), 168 out`.
fn usage(used: &ModelUse) -> String {
    let model = used.model.as_deref().unwrap_or("no model");
    let provider = used.provider.as_ref().map(|provider| format!(" by {provider}")).unwrap_or_default();
    let calls = if used.calls == 1 { "call" } else { "calls" };
    format!(
        "{model}{provider}: {} {calls}, {} tokens in ({} cached), {} out",
        used.calls, used.input_tokens, used.cached_input_tokens, used.output_tokens
    )
}

/// `refused: bpf, socket (AF_PACKET, SOCK_RAW, protocol 768) x3`; what ordinary programs try is not named.
fn refused(run: &Run) -> Option<String> {
    const SHOWN: usize = 8;
    let calls: Vec<_> = run.refused_calls.iter().filter(|refused| !refused.expected).collect();
    let one = |refused: &&RefusedCall| {
        let form = if refused.form.is_empty() { String::new() } else { format!(" ({})", refused.form) };
        let times = if refused.count == 1 { String::new() } else { format!(" x{}", refused.count) };
        format!("{}{form}{times}", refused.call)
    };
    let mut named: Vec<String> = calls.iter().take(SHOWN).map(one).collect();
    if calls.len() > SHOWN {
        named.push(format!("and {} more kinds", calls.len() - SHOWN));
    }
    (!named.is_empty()).then(|| format!("refused: {}", named.join(", ")))
}

fn row(run: &Run) -> Vec<String> {
    let time = match (run.started_at, run.finished_at) {
        (Some(from), Some(to)) => output::span(to - from),
        _ => "-".to_owned(),
    };
    let commit =
        run.commit_hash.as_ref().map_or_else(|| "-".to_owned(), |hash| hash.chars().take(12).collect());
    vec![
        run.name.clone(),
        run.state.to_string(),
        time,
        output::cost(run.cost),
        changes(run),
        commit,
        run.branch.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
