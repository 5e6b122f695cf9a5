//! What is on this host under our name, and cannot be proved to be dead: no sweep removes it.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::cli::host::Configuration;
use crate::config::runner::RunnerConfig;
use crate::db;
use crate::db::Zone;
use crate::sandbox::container;
use crate::sandbox::engine::Engine;

/// What was found.
pub(super) struct Leftovers {
    pub text: String,
    /// Somebody should look.
    pub is_warning: bool,
}

/// # Errors
/// Why it cannot be told.
pub(super) async fn look(config: &RunnerConfig) -> Result<Leftovers, String> {
    let told = |error: &dyn std::error::Error| format!("cannot be told: {error}");
    let engine = Engine::connect(&config.docker).await.map_err(|error| told(&error))?;
    let found = container::list(&engine, config.instance.as_str()).await.map_err(|error| told(&error))?;
    let folders = folders(config);
    let configuration = Configuration::load_with_database().map_err(|error| told(&error))?;
    let pool = db::connect(&configuration.database, Zone::Owner).await.map_err(|error| told(&error))?;
    let runs: BTreeSet<Uuid> =
        found.iter().map(|found| found.run_id).chain(folders.iter().copied()).collect();
    let runs: Vec<Uuid> = runs.into_iter().collect();
    let known = db::runs::ends_of(&pool, &runs).await.map_err(|error| told(&error))?;
    let containers: Vec<&str> = found
        .iter()
        .filter(|found| !known.contains_key(&found.run_id))
        .map(|found| found.id.as_str())
        .collect();
    let folders: Vec<String> =
        folders.iter().filter(|run| !known.contains_key(run)).map(Uuid::to_string).collect();
    if containers.is_empty() && folders.is_empty() {
        let text = "the database knows the run of every container and folder of this instance".to_owned();
        return Ok(Leftovers { text, is_warning: false });
    }
    let text = format!(
        "{} containers and {} run folders carry the name of this instance ({}), and this database does not know their runs: it is an old one \
         or another's, or another installation has the same KAGE_INSTANCE. No sweep removes them. If nobody needs them: docker rm --force{}{}",
        containers.len(),
        folders.len(),
        config.instance,
        containers.iter().map(|id| format!(" {id:.12}")).collect::<String>(),
        match folders.as_slice() {
            [] => String::new(),
            some => format!("; then remove runs/ and model/ of {}", some.join(", ")),
        }
    );
    Ok(Leftovers { text, is_warning: true })
}

/// Runs with a folder here; none where there is no data folder, or where we may not look.
fn folders(config: &RunnerConfig) -> BTreeSet<Uuid> {
    let entries = |name: &str| std::fs::read_dir(config.data_dir.join(name)).into_iter().flatten().flatten();
    let names = entries("runs").chain(entries("model")).map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).collect()
}
