//! From the environment to a client.

use crate::cli::exit::CliError;
use crate::client::{Client, Patience};
use crate::config::client::ClientConfig;
use crate::domain::name::Name;
use crate::wire::task::Task;

/// A client for the server that environment or configuration file name.
///
/// # Errors
/// When either is missing, unsafe or not understood.
pub fn client() -> Result<Client, CliError> {
    let config = ClientConfig::load(|name| std::env::var_os(name))?;
    Ok(Client::new(&config, Patience::default())?)
}

/// The names of the runs to show: the one that was asked for, or all of the task's.
///
/// # Errors
/// When there is no such run, or a name breaks the rules.
pub fn run_names(task: &Task, wanted: Option<&Name>) -> Result<Vec<Name>, CliError> {
    let names: Vec<Name> = task
        .runs
        .iter()
        .map(|run| run.name.parse())
        .collect::<Result<_, _>>()
        .map_err(|error| CliError::Usage(format!("the server names a run badly: {error}")))?;
    match wanted {
        None => Ok(names),
        Some(wanted) if names.contains(wanted) => Ok(vec![wanted.clone()]),
        Some(wanted) => {
            let known = names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
            Err(CliError::Usage(format!("the task has no run {wanted}; it has {known}")))
        }
    }
}
