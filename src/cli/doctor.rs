//! `kage doctor`: whether what the roles need is there. Asks, and changes nothing; costs nothing.

use std::time::Duration;

use serde_json::json;

use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::gateway::probe;
use crate::sandbox::engine::Engine;

/// For the engine's and the database's answer.
const WITHIN: Duration = Duration::from_secs(15);

/// Check the providers, the database and the engine, without spending anything (on the server's host)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these: providers by name, `database`, `engine`
    names: Vec<String>,
    /// Only what this role needs, as in its container
    #[arg(long, value_enum, conflicts_with = "names")]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Api,
    Runner,
    Gateway,
}

#[derive(Debug, serde::Serialize)]
struct Line {
    /// `provider`, `database` or `engine`.
    kind: &'static str,
    name: String,
    ok: bool,
    text: String,
}

/// # Errors
/// [`CliError`] if the settings are wrong, or no such thing is known.
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = crate::cli::host::load()?;
    let mut known: Vec<&str> =
        configuration.gateway.providers.providers.iter().map(|provider| provider.name.as_str()).collect();
    known.extend(["database", "engine"]);
    if let Some(unknown) = args.names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(CliError::Usage(format!("{unknown:?} is none of {}", known.join(", "))));
    }
    let wanted = |name: &str| match args.role {
        None => args.names.is_empty() || args.names.iter().any(|asked| asked == name),
        Some(Role::Api) => name == "database",
        Some(Role::Runner) => matches!(name, "database" | "engine"),
        Some(Role::Gateway) => name != "engine",
    };
    let mut gateway = configuration.gateway.clone();
    gateway.providers.providers.retain(|provider| wanted(&provider.name));
    let mut lines = Vec::new();
    if wanted("database") {
        lines.push(database().await);
    }
    if wanted("engine") {
        lines.push(engine(&configuration).await);
    }
    let findings = probe::all(&gateway).await;
    for (provider, finding) in findings.map_err(|error| CliError::Host(anyhow::Error::new(error)))? {
        let text = format!("{} at {}: {}", provider.dialect, provider.base_url, finding.text);
        lines.push(Line { kind: "provider", name: provider.name, ok: finding.ok, text });
    }
    if globals.json {
        output::json(&json!(lines))?;
    } else {
        for line in &lines {
            let mark = if line.ok { "ok    " } else { "BROKEN" };
            output::line(&escape::line(&format!("{mark}  {} {}: {}", line.kind, line.name, line.text)))?;
        }
    }
    Ok(if lines.iter().all(|line| line.ok) { Exit::Success } else { Exit::Failed })
}

async fn database() -> Line {
    let ask = async {
        // Of its own: where no database is configured it is that of a `kage serve`, if there is one.
        let configuration = Configuration::load_with_database().map_err(|error| error.to_string())?;
        let pool =
            db::connect(&configuration.database, Zone::Owner).await.map_err(|error| error.to_string())?;
        match db::schema_is_current(&pool).await {
            Ok(true) => Ok("reachable, its schema is this version's".to_owned()),
            Ok(false) => {
                Err("reachable, but its schema is not this version's: run `kage migrate`".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    };
    line("database", "database", ask).await
}

async fn engine(configuration: &Configuration) -> Line {
    let ask = async {
        let engine =
            Engine::connect(&configuration.runner.docker).await.map_err(|error| error.to_string())?;
        engine.ping().await.map_err(|error| error.to_string())?;
        Ok(format!("reachable at {}", configuration.runner.docker))
    };
    line("engine", "engine", ask).await
}

async fn line(kind: &'static str, name: &str, ask: impl Future<Output = Result<String, String>>) -> Line {
    let (ok, text) = match tokio::time::timeout(WITHIN, ask).await {
        Ok(Ok(text)) => (true, text),
        Ok(Err(text)) => (false, text),
        Err(_) => (false, format!("no answer within {} s", WITHIN.as_secs())),
    };
    Line { kind, name: name.to_owned(), ok, text }
}
