//! What came of a task, run by run.

use crate::cli::view::changes;
use crate::cli::{escape, findings, output};
use crate::wire::let_go;
use crate::wire::run::{ModelUse, Run};
use crate::wire::task::Task;

/// The table of a task's runs, what decided on each, what each was refused and did not see, the errors, and what to do
/// next. `told`: the runs' errors and warnings were shown already. Harmless; ends with a line end.
pub fn render(task: &Task, told: bool) -> String {
    let mut text = table(task);
    for run in &task.runs {
        let hidden = findings::hidden(run).filter(|_| !told);
        for line in outcome(run).into_iter().chain(hidden) {
            push(run, &line, &mut text);
        }
        if let Some(error) = run.error.as_ref().filter(|_| !told) {
            push(run, error.trim(), &mut text);
        }
    }
    if let Some(error) = task.error.as_ref().filter(|error| !is_of_a_run(task, error)) {
        text.push_str(&escape::line(error.trim()));
        text.push('\n');
    }
    text.push_str(&next(task));
    text
}

/// Of every run all that is known; `harvests`: the lines that only its files tell.
pub fn in_full(task: &Task, harvests: &[Vec<String>]) -> String {
    let mut text = table(task);
    for (at, run) in task.runs.iter().enumerate() {
        let harvest = harvests.get(at).into_iter().flatten().cloned();
        let own = outcome(run).into_iter().chain(findings::hidden(run)).chain(findings::held_by(run));
        for line in own.chain(harvest) {
            push(run, &line, &mut text);
        }
        if let Some(error) = &run.error {
            push(run, &format!("error: {}", error.trim()), &mut text);
        }
    }
    if let Some(error) = task.error.as_ref().filter(|error| !is_of_a_run(task, error)) {
        text.push_str(&escape::line(error.trim()));
        text.push('\n');
    }
    text.push_str(&next(task));
    text
}

fn table(task: &Task) -> String {
    let rows: Vec<Vec<String>> = task.runs.iter().map(row).collect();
    let header = ["RUN", "STATE", "TIME", "COST", "CHANGES", "COMMIT", "BRANCH"];
    format!("\ntask {} {}\n{}", task.id, task.status, output::table(&header, &rows, usize::MAX))
}

fn push(run: &Run, line: &str, text: &mut String) {
    text.push_str(&escape::line(&format!("[{}] {line}", run.name)));
    text.push('\n');
}

fn outcome(run: &Run) -> Vec<String> {
    let decided = run.decided_by.as_ref().map(|by| format!("decided by: {by}"));
    let lines = run.usage.as_ref().map(usage).into_iter().chain(decided);
    lines.chain(findings::refused(run)).collect()
}

/// The server makes a failed task's error of its runs' errors, `name: error`: those are told by the runs.
fn is_of_a_run(task: &Task, error: &str) -> bool {
    let of =
        |run: &Run| run.error.as_ref().is_some_and(|own| error.contains(&format!("{}: {own}", run.name)));
    task.runs.iter().any(of)
}

fn next(task: &Task) -> String {
    let kept = let_go::find(&task.let_go, let_go::RESULTS).is_none();
    if kept && task.runs.iter().any(|run| run.commit_hash.is_some()) {
        return format!("see the changes: kage diff {}\n", task.id);
    }
    String::new()
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
