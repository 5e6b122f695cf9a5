//! `kage tasks`: the list.

use crate::cli::connect;
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::domain::run::RunState;
use crate::domain::task::TaskStatus;
use crate::wire::task::{Task, TaskFilter};

/// List tasks, newest first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tasks that are pending, running, completed, failed or cancelled
    #[arg(long, value_name = "S")]
    status: Option<TaskStatus>,
    /// Which page, from 1
    #[arg(long, value_name = "N", default_value_t = 1)]
    page: u32,
    /// Tasks on a page, at most 100
    #[arg(long, value_name = "N", default_value_t = 20)]
    page_size: u32,
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let filter = TaskFilter { status: args.status, page: Some(args.page), page_size: Some(args.page_size) };
    let page = connect::client()?.tasks(&filter).await?;
    if globals.json {
        output::json(&page)?;
        return Ok(Exit::Success);
    }
    let rows: Vec<Vec<String>> = page.tasks.iter().map(row).collect();
    let header = ["ID", "STATUS", "CREATED", "REPOSITORY", "RUNS", "COST", "DESCRIPTION"];
    output::line(output::table(&header, &rows, output::width()).trim_end())?;
    let pages = page.total.div_ceil(u64::from(page.page_size.max(1)));
    if pages > 1 {
        output::note(&format!("page {} of {pages}, {} tasks", page.page, page.total));
    }
    Ok(Exit::Success)
}

fn row(task: &Task) -> Vec<String> {
    let good = task.runs.iter().filter(|run| run.state == RunState::Succeeded).count();
    vec![
        task.id.to_string(),
        task.status.to_string(),
        output::time(task.created_at),
        task.repository.clone(),
        format!("{good}/{}", task.runs.len()),
        output::cost(task.total_cost.unwrap_or_default()),
        output::first_line(&task.description).chars().take(200).collect(),
    ]
}
