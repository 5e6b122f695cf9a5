//! `kage run`: submit a task and watch it.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::cli::exit::{CliError, Exit};
use crate::cli::output::Globals;
use crate::cli::view::View;
use crate::cli::view::json::JsonView;
use crate::cli::view::live::LiveView;
use crate::cli::view::plain::PlainView;
use crate::cli::watch::{Interrupt, Watched, watch};
use crate::cli::{connect, output, summary};
use crate::client::Client;
use crate::domain::model_name::ModelName;
use crate::domain::name::Name;
use crate::domain::task::MergeStrategy;
use crate::wire::task::{
    Assignment, Budget, DEFAULT_MAX_RETRIES, DEFAULT_RETRY_DELAY, DEFAULT_TIMEOUT, NewTask, Task,
};

/// The server's limit on a prompt, in bytes.
const MAX_PROMPT: u64 = 1024 * 1024;

/// Submit a task, watch its runs, and end as the task ends
#[derive(Debug, clap::Args)]
#[command(after_help = crate::cli::exit::HELP)]
pub struct Args {
    /// Name of a registered repository (may be left out when there is only one)
    #[arg(long, value_name = "NAME")]
    repo: Option<Name>,
    /// Branch, tag or commit to start from [default: the repository's default branch]
    #[arg(long, value_name = "REV")]
    base: Option<String>,
    /// CLI image to work on the task; give it again for another run
    #[arg(long, value_name = "NAME", required = true)]
    cli: Vec<Name>,
    /// Seconds for one attempt of a run, 60 to 3600
    #[arg(long, value_name = "S", default_value_t = DEFAULT_TIMEOUT)]
    timeout: u32,
    /// Seconds without output before a run is ended [default: the runner's]
    #[arg(long, value_name = "S")]
    idle_timeout: Option<u32>,
    /// Further attempts after a transient failure, 0 to 5
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_RETRIES)]
    max_retries: u32,
    /// Seconds before the first of them, 1 to 60; doubles each time
    #[arg(long, value_name = "S", default_value_t = DEFAULT_RETRY_DELAY)]
    retry_delay: u32,
    /// Count a clean exit that changed nothing as a success
    #[arg(long)]
    allow_no_changes: bool,
    /// OCI runtime of the sandboxes, such as runsc [default: the operator's]
    #[arg(long, value_name = "NAME")]
    runtime: Option<Name>,
    /// Model that the CLIs ask for [default: the operator's, or each image's]
    #[arg(long, value_name = "NAME")]
    model: Option<ModelName>,
    /// End the runs when together they have used models for so many USD
    #[arg(long, value_name = "USD")]
    budget_usd: Option<f64>,
    /// End the runs when together they have used so many tokens
    #[arg(long, value_name = "N")]
    budget_tokens: Option<u64>,
    /// A JSON object for the CLIs, as KAGE_CONTEXT and at the end of the prompt of those that ask a model
    #[arg(long, value_name = "JSON", value_parser = parse_context, default_value = "{}")]
    context: Map<String, Value>,
    /// Print the task's id once it is accepted, and leave
    #[arg(long, short)]
    detach: bool,
    /// Show the output as the runs write it, line by line, and not in words (control characters spelled out; kage logs gives the bytes)
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Read the prompt from a file
    #[arg(long, value_name = "F", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// What to do (10 characters to 1 MiB); - reads it from standard input
    #[arg(required_unless_present = "file")]
    prompt: Option<String>,
}

fn parse_context(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let client = connect::client()?;
    let (detach, raw) = (args.detach, args.raw);
    let new = new_task(args)?;
    let mut interrupt = Interrupt::listen()?;
    let task = tokio::select! {
        task = client.submit(&new) => task?,
        () = interrupt.pressed() => {
            output::note("interrupted while submitting: the task may have been accepted (kage tasks)");
            return Ok(Exit::Interrupted);
        }
    };
    if detach {
        return detached(&task, globals).map(|()| Exit::Success);
    }
    follow(&client, &task, view(&task, raw, globals)?, globals, &mut interrupt).await
}

fn view(task: &Task, raw: bool, globals: &Globals) -> Result<Box<dyn View>, CliError> {
    if globals.json {
        output::json(&serde_json::json!({ "event": "submitted", "data": task }))?;
        return Ok(Box::new(JsonView));
    }
    output::note(&format!("task {}", task.id));
    Ok(if raw {
        Box::new(PlainView::raw())
    } else if output::can_draw() {
        Box::new(LiveView::new(&task.runs, task.updated_at))
    } else {
        Box::new(PlainView::of(&task.runs))
    })
}

fn detached(task: &Task, globals: &Globals) -> Result<(), CliError> {
    if globals.json {
        output::json(task)?;
    } else {
        output::line(&task.id.to_string())?;
        output::note(&format!(
            "accepted; kage logs -f {id} watches it, kage cancel {id} ends it",
            id = task.id
        ));
    }
    Ok(())
}

async fn follow(
    client: &Client,
    task: &Task,
    mut view: Box<dyn View>,
    globals: &Globals,
    interrupt: &mut Interrupt,
) -> Result<Exit, CliError> {
    let watched = watch(&mut client.follow(task.id, None), view.as_mut(), interrupt).await;
    match watched {
        Ok(Watched::Ended(_)) => {}
        Ok(Watched::Interrupted) => {
            output::note(&format!("still running: kage logs -f {id}, kage cancel {id}", id = task.id));
            return Ok(Exit::Interrupted);
        }
        Err(error) => {
            output::note(&format!("the task may still be running: kage logs -f {id}", id = task.id));
            return Err(error);
        }
    }
    let watched = watched?;
    // The outcome is known; that its details cannot be had does not change it.
    match client.task(task.id).await {
        Ok(task) if globals.json => output::json(&serde_json::json!({ "event": "summary", "data": task }))?,
        Ok(task) => output::say(&summary::render(&task, view.tells_ends())),
        Err(error) => output::note(&format!("no summary: {error}")),
    }
    Ok(watched.exit())
}

fn new_task(args: Args) -> Result<NewTask, CliError> {
    let description = prompt(args.prompt, args.file)?;
    let cli_assignments = args
        .cli
        .into_iter()
        .map(|cli| Assignment {
            cli_name: cli.into(),
            context: args.context.clone(),
            timeout: args.timeout,
            idle_timeout: args.idle_timeout,
            allow_no_changes: args.allow_no_changes,
            model: args.model.clone().map(Into::into),
            runtime: args.runtime.clone(),
            budget: None,
        })
        .collect();
    let budget = Budget { usd: args.budget_usd, tokens: args.budget_tokens };
    Ok(NewTask {
        description,
        repository: args.repo.map(Into::into),
        base_revision: args.base,
        cli_assignments,
        max_retries: args.max_retries,
        retry_delay: args.retry_delay,
        merge_strategy: MergeStrategy::default(),
        budget: Some(budget).filter(|budget| *budget != Budget::default()),
        created_by: None,
    })
}

fn prompt(text: Option<String>, file: Option<PathBuf>) -> Result<String, CliError> {
    match (text, file) {
        (_, Some(path)) => {
            let named = |error| CliError::Usage(format!("{}: {error}", path.display()));
            read_prompt(File::open(&path).map_err(named)?).map_err(named)
        }
        (Some(text), None) if text == "-" => read_prompt(io::stdin().lock())
            .map_err(|error| CliError::Usage(format!("standard input: {error}"))),
        (Some(text), None) => Ok(text),
        (None, None) => Err(CliError::Usage("no prompt: give one, or -, or --file".to_owned())),
    }
}

fn read_prompt(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(MAX_PROMPT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_PROMPT {
        return Err(io::Error::other("a prompt has at most 1 MiB"));
    }
    Ok(text)
}
