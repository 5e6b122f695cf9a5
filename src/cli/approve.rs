//! `kage repo approve`, `approvals` and `revoke`: which of a repository's own CLI configuration runs may see.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal};

use uuid::Uuid;

use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::client::Client;
use crate::domain::name::Name;
use crate::wire::quarantine::{Configuration, NewApproval};

#[derive(Debug, clap::Args)]
pub struct ApproveArgs {
    name: Name,
    /// A path of the list; may be given more than once
    #[arg(long = "path", value_name = "PATH", conflicts_with = "all")]
    paths: Vec<String>,
    /// With --path: this content of it, rather than the one that was seen last
    #[arg(long, requires = "paths")]
    digest: Option<String>,
    /// Everything in the list that can be approved
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    name: Name,
    /// As `kage repo approvals` shows it
    id: Uuid,
}

/// Lists what is hidden, or approves of it.
///
/// # Errors
/// [`CliError`].
pub async fn approve(client: &Client, args: ApproveArgs, globals: &Globals) -> Result<Exit, CliError> {
    let found = client.configuration(&args.name).await?.configuration;
    if args.paths.is_empty() && !args.all {
        let latest = latest(&found);
        if globals.json {
            output::json(&latest)?;
        } else if latest.is_empty() {
            output::note(&format!("no configuration of a CLI was found in {}", args.name));
        } else {
            print(&latest)?;
            output::note(
                "runs do not see what is hidden; `--path PATH` or `--all` approves what stands here. Read it first, in the \
                 repository: git show COMMIT:PATH",
            );
        }
        return Ok(Exit::Success);
    }
    let wanted = chosen(&found, &args)?;
    if wanted.is_empty() {
        output::note("there is nothing to approve");
        return Ok(Exit::Success);
    }
    if !globals.json {
        print(&wanted)?;
    }
    if !args.yes && !asked(wanted.len())? {
        output::note("nothing was approved");
        return Ok(Exit::Failed);
    }
    let mut made = Vec::new();
    for it in wanted {
        // Exactly what was shown, whatever was fetched since.
        let new = NewApproval { path: it.path.clone(), digest: it.digest.clone() };
        made.push(client.approve(&args.name, &new).await?);
    }
    if globals.json {
        output::json(&made)?;
    } else {
        output::note(&format!("approved {} path(s) for runs that begin from now on", made.len()));
    }
    Ok(Exit::Success)
}

/// # Errors
/// [`CliError`].
pub async fn approvals(client: &Client, name: &Name, globals: &Globals) -> Result<Exit, CliError> {
    let approvals = client.approvals(name).await?;
    if globals.json {
        output::json(&approvals)?;
        return Ok(Exit::Success);
    }
    let rows: Vec<Vec<String>> = approvals
        .approvals
        .iter()
        .map(|it| {
            let at = output::time(it.approved_at);
            vec![it.id.to_string(), at, it.approved_by.clone(), it.digest.clone(), escape::name(&it.path)]
        })
        .collect();
    let header = ["ID", "APPROVED", "BY", "DIGEST", "PATH"];
    output::line(output::table(&header, &rows, usize::MAX).trim_end())?;
    Ok(Exit::Success)
}

/// # Errors
/// [`CliError`].
pub async fn revoke(client: &Client, args: RevokeArgs, globals: &Globals) -> Result<Exit, CliError> {
    let revoked = client.revoke(&args.name, args.id).await?;
    if globals.json {
        output::json(&revoked)?;
    } else {
        output::note(&format!("{} is hidden again from runs that begin from now on", revoked.path));
    }
    Ok(Exit::Success)
}

/// Of each path the content that was seen last; by path.
fn latest(found: &[Configuration]) -> Vec<&Configuration> {
    let mut latest = BTreeMap::new();
    for it in found {
        // The server sends the latest first.
        latest.entry(it.path.as_str()).or_insert(it);
    }
    latest.into_values().collect()
}

fn chosen<'a>(found: &'a [Configuration], args: &ApproveArgs) -> Result<Vec<&'a Configuration>, CliError> {
    let open = |it: &&Configuration| it.obstacle.is_none() && it.approval.is_none();
    if args.all {
        return Ok(latest(found).into_iter().filter(open).collect());
    }
    let mut chosen = Vec::new();
    for path in &args.paths {
        let digest = |it: &&Configuration| args.digest.as_ref().is_none_or(|digest| *digest == it.digest);
        let it = found.iter().filter(digest).find(|it| it.path == *path).ok_or_else(|| {
            CliError::Usage(format!(
                "no fetch and no run has found {path:?} so; `kage repo approve {}` lists what was found",
                args.name
            ))
        })?;
        if let Some(obstacle) = &it.obstacle {
            return Err(CliError::Usage(format!("{path:?} cannot be approved: {obstacle}")));
        }
        chosen.extend(Some(it).filter(open));
    }
    Ok(chosen)
}

/// In full: a digest that is cut off approves of nothing.
fn print(found: &[&Configuration]) -> Result<(), CliError> {
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|it| {
            let state = match (&it.obstacle, it.approval) {
                (Some(obstacle), _) => format!("hidden ({obstacle})"),
                (None, Some(_)) => "approved".to_owned(),
                (None, None) => "hidden".to_owned(),
            };
            let commit = it.commit_hash.get(..12).unwrap_or(&it.commit_hash).to_owned();
            let size = format!("{} B in {} file(s)", it.bytes, it.files);
            vec![escape::name(&it.path), it.kind.clone(), size, it.digest.clone(), commit, state]
        })
        .collect();
    let header = ["PATH", "KIND", "SIZE", "DIGEST", "COMMIT", "STATE"];
    output::line(output::table(&header, &rows, usize::MAX).trim_end())?;
    Ok(())
}

fn asked(count: usize) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::Usage(
            "nobody is there to be asked; add --yes to approve all the same".to_owned(),
        ));
    }
    output::say(&format!("CLIs will obey what {count} path(s) say. Approve? [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
