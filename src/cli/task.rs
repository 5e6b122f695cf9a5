//! `kage task`: one task in full.

use uuid::Uuid;

use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::cli::{connect, escape, findings, summary};
use crate::wire::let_go;
use crate::wire::task::{Budget, Task};

/// Show a task and its runs
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The task's id
    id: Uuid,
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let client = connect::client()?;
    let task = client.task(args.id).await?;
    if globals.json {
        output::json(&task)?;
        return Ok(Exit::Success);
    }
    let mut harvests = Vec::new();
    let kept = let_go::find(&task.let_go, let_go::RESULTS).is_none();
    for run in task.runs.iter().filter(|_| kept) {
        let unknown = |error| vec![format!("what was left out of its result cannot be had: {error}")];
        harvests.push(findings::of_harvest(&client, args.id, run).await.unwrap_or_else(unknown));
    }
    output::line(render(&task, &harvests).trim_end())?;
    Ok(Exit::Success)
}

fn budget(budget: Budget) -> String {
    let usd = budget.usd.map(output::cost);
    let tokens = budget.tokens.map(|tokens| format!("{tokens} tokens"));
    usd.into_iter().chain(tokens).collect::<Vec<_>>().join(", ")
}

fn render(task: &Task, harvests: &[Vec<String>]) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("{name:<12}{}\n", escape::line(&value)));
        }
    };
    field("repository", Some(task.repository.clone()));
    field("base", task.base_revision.clone());
    field("created", Some(output::time(task.created_at)));
    field("by", task.created_by.clone());
    field("started", task.started_at.map(output::time));
    field("ended", task.completed_at.map(output::time));
    field("cost", task.total_cost.filter(|cost| *cost > 0.0).map(output::cost));
    field("budget", task.budget.map(budget));
    field("best", task.best_cli.clone());
    for gone in &task.let_go {
        field("let go", Some(gone.words()));
    }
    text.push_str(&summary::in_full(task, harvests));
    text.push('\n');
    for line in task.description.trim_end().lines() {
        text.push_str(&format!("    {}\n", escape::line(line)));
    }
    text
}
