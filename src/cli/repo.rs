//! `kage repo`: the repositories that tasks can work on.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget};

use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::cli::{approve, connect, escape};
use crate::client::Client;
use crate::client::error::ClientError;
use crate::domain::name::Name;
use crate::domain::repository::RepositoryState;
use crate::wire::repository::{NewRepository, Repository};

const FIRST_POLL: Duration = Duration::from_millis(100);
const MOST_POLL: Duration = Duration::from_secs(2);

/// Register, list, fetch and remove repositories; approve of their configuration
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: RepoCommand,
}

#[derive(Debug, clap::Subcommand)]
enum RepoCommand {
    /// Register a repository and wait until it is fetched
    Add {
        /// What to call it: a-z, 0-9, '.', '_' and '-'
        name: Name,
        /// Path on the runner's host, or URL, that the operator allowed (KAGE_REPOSITORIES_ALLOW)
        source: String,
        /// Do not wait
        #[arg(long)]
        detach: bool,
    },
    /// List repositories
    #[command(visible_alias = "ls")]
    List,
    /// Fetch a repository's branches and tags anew
    Fetch {
        name: Name,
        /// Do not wait
        #[arg(long)]
        detach: bool,
    },
    /// List the configuration of CLIs that the repository brings, which runs do not see; or approve of it
    Approve(approve::ApproveArgs),
    /// List what is approved
    Approvals { name: Name },
    /// Take an approval back
    Revoke(approve::RevokeArgs),
    /// Remove a repository; its source is not touched
    Rm {
        name: Name,
        /// Do not wait
        #[arg(long)]
        detach: bool,
    },
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let client = connect::client()?;
    match args.command {
        RepoCommand::Add { name, source, detach } => {
            let new = NewRepository { name: name.clone().into(), source: absolute(source) };
            let repository = client.add_repository(&new).await?;
            fetched(&client, &name, repository, detach, globals).await
        }
        RepoCommand::Fetch { name, detach } => {
            let repository = client.fetch_repository(&name).await?;
            fetched(&client, &name, repository, detach, globals).await
        }
        RepoCommand::List => list(&client, globals).await,
        RepoCommand::Approve(args) => approve::approve(&client, args, globals).await,
        RepoCommand::Approvals { name } => approve::approvals(&client, &name, globals).await,
        RepoCommand::Revoke(args) => approve::revoke(&client, args, globals).await,
        RepoCommand::Rm { name, detach } => {
            client.remove_repository(&name).await?;
            if !detach {
                gone(&client, &name).await?;
            }
            if globals.json {
                output::json(&serde_json::json!({ "name": name, "removed": !detach }))?;
            } else {
                output::note(&format!("{name} is {}", if detach { "being removed" } else { "removed" }));
            }
            Ok(Exit::Success)
        }
    }
}

/// A path that means something here is made to mean the same to a runner on this host.
fn absolute(source: String) -> String {
    let path = Path::new(&source);
    if path.is_relative()
        && path.is_dir()
        && let Ok(path) = path.canonicalize()
        && let Some(path) = path.to_str()
    {
        return path.to_owned();
    }
    source
}

async fn list(client: &Client, globals: &Globals) -> Result<Exit, CliError> {
    let repositories = client.repositories().await?;
    if globals.json {
        output::json(&repositories)?;
        return Ok(Exit::Success);
    }
    let row = |repository: &Repository| {
        let dash = || "-".to_owned();
        vec![
            repository.name.clone(),
            repository.state.as_str().to_owned(),
            repository.default_branch.clone().unwrap_or_else(dash),
            repository.refs.len().to_string(),
            repository.fetched_at.map_or_else(dash, output::time),
            repository.source.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = repositories.repositories.iter().map(row).collect();
    let header = ["NAME", "STATE", "BRANCH", "REFS", "FETCHED", "SOURCE"];
    output::line(output::table(&header, &rows, output::width()).trim_end())?;
    // In full, and not in a column that is cut at the terminal's width.
    for (name, error) in
        repositories.repositories.iter().filter_map(|it| Some((&it.name, it.error.as_ref()?)))
    {
        output::line(&escape::line(&format!("{name} could not be fetched: {error}")))?;
    }
    Ok(Exit::Success)
}

/// Waits for a fetch to end, and tells its end.
async fn fetched(
    client: &Client,
    name: &Name,
    mut repository: Repository,
    detach: bool,
    globals: &Globals,
) -> Result<Exit, CliError> {
    let waiting = Waiting::begin(&format!("fetching {name}…"));
    let mut delay = FIRST_POLL;
    while !detach && matches!(repository.state, RepositoryState::Pending | RepositoryState::Fetching) {
        delay = waiting.pause(delay).await;
        repository = client.repository(name).await?;
    }
    waiting.end();
    let exit = match repository.state {
        RepositoryState::Failed | RepositoryState::Removing => Exit::Failed,
        RepositoryState::Pending | RepositoryState::Fetching | RepositoryState::Ready => Exit::Success,
    };
    if globals.json {
        output::json(&repository)?;
        return Ok(exit);
    }
    let branch = repository.default_branch.as_deref().unwrap_or("none");
    let why = repository.error.as_deref().unwrap_or("no reason given");
    output::note(&match repository.state {
        RepositoryState::Ready => {
            format!("{name} is ready: {} branches and tags, default branch {branch}", repository.refs.len())
        }
        RepositoryState::Failed => format!("{name} could not be fetched: {why}"),
        RepositoryState::Removing => format!("{name} is being removed"),
        RepositoryState::Pending | RepositoryState::Fetching => format!("{name} will be fetched"),
    });
    Ok(exit)
}

async fn gone(client: &Client, name: &Name) -> Result<(), ClientError> {
    let waiting = Waiting::begin(&format!("removing {name}…"));
    let mut delay = FIRST_POLL;
    loop {
        match client.repository(name).await {
            Ok(_) => delay = waiting.pause(delay).await,
            Err(error) if error.is_not_found() => {
                waiting.end();
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Says that something lasts: a spinner with the time on a terminal, a line elsewhere, and nothing at
/// all for what is done at once.
struct Waiting {
    text: String,
    bar: ProgressBar,
}

impl Waiting {
    fn begin(text: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { text: escape::line(text), bar }
    }

    /// Waits, and gives the next wait.
    async fn pause(&self, delay: Duration) -> Duration {
        if delay == FIRST_POLL {
            if output::can_draw() {
                self.bar.set_draw_target(ProgressDrawTarget::stderr());
                self.bar.set_message(self.text.clone());
                self.bar.enable_steady_tick(Duration::from_millis(150));
            } else {
                output::note(&self.text);
            }
        }
        tokio::time::sleep(delay).await;
        (delay * 2).min(MOST_POLL)
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
