//! `kage doctor`: whether what the roles need is there. Asks, and changes nothing; costs nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::api::tls;
use crate::cli::doctor_leftovers;
use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::cli::output::{self, Globals};
use crate::config::gateway::GatewayConfig;
use crate::config::providers::Provider;
use crate::config::runner::{KeeperMode, RunnerConfig};
use crate::config::settings::InForce;
use crate::db;
use crate::db::Zone;
use crate::db::schema::Schema;
use crate::gateway::probe;
use crate::keeper;
use crate::sandbox::engine::Engine;
use crate::sandbox::host_check::{Finding, Severity, addresses_unreadable, judge, refusals};
use crate::sandbox::host_check_facts::HostFacts;
use crate::sandbox::host_check_good::good;
use crate::sandbox::refusals::client::{Keeper, KeeperError};
use crate::secret::error::SecretError;
use crate::secret::source::Source;

/// For the engine's and the database's answer.
const WITHIN: Duration = Duration::from_secs(15);

/// Check the providers, the database, the certificate, the engine, the keeper of refused calls, what was left and the host beneath, without spending anything (on the server's host)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these: providers by name, `database`, `tls`, `engine`, `keeper`, `leftovers`, `host`
    names: Vec<String>,
    /// Only what this role needs [default: that of the database's user in KAGE_DATABASE_URL, as in a role's container]
    #[arg(long, value_enum, conflicts_with = "names")]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Api,
    Runner,
    Gateway,
    Sequencer,
    Notifier,
    Retention,
    Keeper,
}

impl Role {
    const fn words(self) -> &'static str {
        match self {
            Self::Api => "the API",
            Self::Runner => "the runner",
            Self::Gateway => "the gateway",
            Self::Sequencer => "the sequencer",
            Self::Notifier => "the notifier",
            Self::Retention => "retention",
            Self::Keeper => "the keeper",
        }
    }
}

/// The role whose database user this is; the providers' credentials are the gateway's business, and the engine the
/// runner's.
fn own_role(configuration: &Configuration) -> Option<Role> {
    let options = configuration.database.connect_options().ok()?;
    match options.get_username() {
        "kage_api" => Some(Role::Api),
        "kage_runner" => Some(Role::Runner),
        "kage_gateway" => Some(Role::Gateway),
        "kage_sequencer" => Some(Role::Sequencer),
        "kage_notifier" => Some(Role::Notifier),
        "kage_retention" => Some(Role::Retention),
        _ => None,
    }
}

#[derive(Debug, serde::Serialize)]
struct Line {
    /// `provider`, `database`, `tls`, `engine`, `keeper`, `leftovers` or `host`.
    kind: &'static str,
    name: String,
    ok: bool,
    /// A provider of the built-in table that nobody has set up here: nothing is wrong with it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    not_configured: bool,
    /// It works, and should not stay as it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    warning: bool,
    text: String,
    /// Of something found on the host.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    finding: Option<Finding>,
}

impl Line {
    fn new(kind: &'static str, name: &str, ok: bool, text: String) -> Self {
        Self { kind, name: name.to_owned(), ok, not_configured: false, warning: false, text, finding: None }
    }
}

/// # Errors
/// [`CliError`] if the settings are wrong, or no such thing is known.
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = crate::cli::host::load()?;
    let mut known: Vec<&str> =
        configuration.gateway.providers.providers.iter().map(|provider| provider.name.as_str()).collect();
    known.extend(["database", "tls", "engine", "keeper", "leftovers", "host"]);
    if let Some(unknown) = args.names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(CliError::Usage(format!("{unknown:?} is none of {}", known.join(", "))));
    }
    let role = args.role.or_else(|| own_role(&configuration).filter(|_| args.names.is_empty()));
    if let (None, Some(role), false) = (args.role, role, globals.json) {
        output::note(&format!(
            "checked: what {} needs; name other things, or a --role, to check them",
            role.words()
        ));
    }
    let wanted = |name: &str| match role {
        None => args.names.is_empty() || args.names.iter().any(|asked| asked == name),
        Some(Role::Api) => matches!(name, "database" | "tls"),
        Some(Role::Runner) => matches!(name, "database" | "engine" | "keeper" | "leftovers" | "host"),
        Some(Role::Gateway) => !matches!(name, "tls" | "engine" | "keeper" | "leftovers" | "host"),
        Some(Role::Sequencer | Role::Notifier | Role::Retention) => name == "database",
        Some(Role::Keeper) => name == "keeper",
    };
    let mut gateway = configuration.gateway.clone();
    gateway.providers.providers.retain(|provider| wanted(&provider.name));
    let asked_for = role.is_some() || !args.names.is_empty();
    let spare = if asked_for { BTreeSet::new() } else { not_set_up(&configuration) };
    let mut lines = Vec::new();
    if wanted("database") {
        lines.push(database().await);
    }
    if wanted("tls") {
        lines.push(tls(&configuration).await);
    }
    if wanted("engine") {
        lines.push(engine(&configuration).await);
    }
    if wanted("keeper") {
        lines.push(keeper(&configuration.runner).await);
    }
    if wanted("leftovers") {
        lines.push(leftovers(&configuration.runner).await);
    }
    if wanted("host") {
        lines.extend(host(&configuration.runner).await);
    }
    lines.extend(providers(&gateway, &spare).await?);
    if globals.json {
        output::json(&json!(lines))?;
    } else {
        for line in &lines {
            // `database database` says it twice.
            let kind = if line.kind == line.name { String::new() } else { format!("{} ", line.kind) };
            let text = format!("{}  {kind}{}: {}", mark(line), line.name, line.text);
            output::line(&escape::line(&text))?;
        }
    }
    Ok(if lines.iter().all(|line| line.ok) { Exit::Success } else { Exit::Failed })
}

/// Built-in providers that nobody has set up here: their credential is not set, or they want none and whether one
/// runs at that address is anybody's choice. A table of the operator's own names what shall work.
fn not_set_up(configuration: &Configuration) -> BTreeSet<String> {
    let own = |one: &InForce| one.name == "KAGE_GATEWAY_PROVIDERS" && !one.value.is_empty();
    if configuration.settings.in_force().iter().any(own) {
        return BTreeSet::new();
    }
    let gateway = &configuration.gateway;
    let unset = |credential: &Source| {
        matches!(gateway.resolver.read_at_once(credential), Err(SecretError::NotSet(_)))
    };
    let spare = |provider: &&Provider| provider.credential.as_ref().is_none_or(unset);
    gateway.providers.providers.iter().filter(spare).map(|provider| provider.name.clone()).collect()
}

/// Those of `spare` that cannot be asked are not set up, and no more than that.
async fn providers(gateway: &GatewayConfig, spare: &BTreeSet<String>) -> Result<Vec<Line>, CliError> {
    let mut lines = Vec::new();
    let findings = probe::all(gateway).await;
    for (provider, finding) in findings.map_err(|error| CliError::Host(anyhow::Error::new(error)))? {
        let untried = provider.credential.is_some() || finding.text.starts_with("unreachable");
        let not_configured = !finding.ok && untried && spare.contains(&provider.name);
        let state = if not_configured { "not configured: " } else { "" };
        let text = format!("{} at {}: {state}{}", provider.dialect, provider.base_url, finding.text);
        let ok = finding.ok || not_configured;
        lines.push(Line { not_configured, ..Line::new("provider", &provider.name, ok, text) });
    }
    Ok(lines)
}

async fn database() -> Line {
    let ask = async {
        // Of its own: where no database is configured it is that of a `kage serve`, if there is one.
        let configuration = Configuration::load_with_database().map_err(|error| error.to_string())?;
        let pool =
            db::connect(&configuration.database, Zone::Owner).await.map_err(|error| error.to_string())?;
        match db::schema::state(&pool).await.map(Schema::refusal) {
            Ok(None) => Ok("reachable, its schema is this version's".to_owned()),
            Ok(Some(refusal)) => Err(format!("reachable, but {refusal}")),
            Err(error) => Err(error.to_string()),
        }
    };
    line("database", "database", ask).await
}

/// The certificate, its key and who signs clients', as the API would take them now.
async fn tls(configuration: &Configuration) -> Line {
    let ask = async {
        let Some(config) = &configuration.api.edge.tls else {
            return Ok("off: plain HTTP, on loopback or behind something that does it".to_owned());
        };
        let identity = tls::examine(config).map_err(|error| error.to_string())?;
        let exposed = tls::exposed_key(config).map(|(path, mode)| {
            let path = path.display();
            format!("; {path}, its key, can be read or written by others (mode {mode:03o}): chmod 600 {path}")
        });
        let exposed = exposed.unwrap_or_default();
        let told = |validity: String| format!("the certificate of {} {validity}{exposed}", identity.subject);
        match tls::validity(&identity) {
            Ok(validity) if tls::ends_soon(&identity) => Err(format!("{}: renew it", told(validity))),
            Ok(validity) => Ok(told(validity)),
            Err(ended) => Err(told(ended)),
        }
    };
    let mut line = line("tls", "tls", ask).await;
    line.warning =
        configuration.api.edge.tls.as_ref().is_some_and(|config| tls::exposed_key(config).is_some());
    line
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

/// Where the runner starts it, none is as good as one.
async fn keeper(config: &RunnerConfig) -> Line {
    let keeper = Keeper::new(&config.data_dir.join(keeper::FOLDER));
    let ask = async {
        match keeper.connect().await {
            Ok(found) => {
                let reads = if found.hello.reads_addresses { ", reads addresses" } else { "" };
                Ok(format!("holds {} attempts{reads}", found.hello.attempts))
            }
            Err(KeeperError::Away(_)) if config.keeper == KeeperMode::Auto => {
                Ok("none runs; the runner starts one".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    };
    let mut line = line("keeper", "keeper", ask).await;
    let blind = keeper.connect().await.is_ok_and(|found| !found.hello.reads_addresses);
    if blind && config.record_addresses {
        let finding = addresses_unreadable();
        line.text = format!("{}; {}", line.text, finding.words());
        line.finding = Some(finding);
    }
    line
}

/// Broken is not what cannot be told: engine and database have lines of their own.
async fn leftovers(config: &RunnerConfig) -> Line {
    let found = tokio::time::timeout(WITHIN, doctor_leftovers::look(config)).await;
    let (text, warning) = match found {
        Ok(Ok(found)) => (found.text, found.is_warning),
        Ok(Err(text)) => (text, true),
        Err(_) => (format!("cannot be told: no answer within {} s", WITHIN.as_secs()), true),
    };
    Line { warning, ..Line::new("leftovers", "leftovers", true, text) }
}

/// One line for each finding, and for each thing that is as it should be; a danger that nobody accepted is broken.
async fn host(config: &RunnerConfig) -> Vec<Line> {
    let ask = async {
        let engine = Engine::connect(&config.docker).await?;
        HostFacts::gather(&engine, config.runtime.as_deref(), &config.data_dir).await
    };
    let facts = match tokio::time::timeout(WITHIN, ask).await {
        Ok(Ok(facts)) => facts,
        failed => {
            let text = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => format!("no answer within {} s", WITHIN.as_secs()),
            };
            return vec![Line::new("host", "host", false, text)];
        }
    };
    let findings = judge(&facts);
    let good = good(&facts, &findings);
    let refused: Vec<&'static str> =
        refusals(&findings, &config.accept_host).iter().map(|finding| finding.id).collect();
    let one = |finding: Finding| {
        let ok = !refused.contains(&finding.id);
        let accepted =
            if ok && finding.severity == Severity::Danger { " Accepted by the operator." } else { "" };
        let text = format!("{}{accepted}", finding.words());
        let line = Line::new("host", finding.id, ok, text);
        Line { finding: Some(finding), ..line }
    };
    let found: Vec<Line> = findings.into_iter().map(one).collect();
    let good = good.into_iter().map(|(name, text)| Line::new("host", name, true, text));
    found.into_iter().chain(good).collect()
}

/// What the eye looks for first.
fn mark(line: &Line) -> &'static str {
    match line.finding.as_ref().map(|finding| finding.severity) {
        _ if !line.ok => "BROKEN",
        _ if line.warning => "WARN  ",
        _ if line.not_configured => "note  ",
        Some(Severity::Info) => "note  ",
        Some(Severity::Warning | Severity::Danger) => "WARN  ",
        None => "ok    ",
    }
}

async fn line(kind: &'static str, name: &str, ask: impl Future<Output = Result<String, String>>) -> Line {
    let (ok, text) = match tokio::time::timeout(WITHIN, ask).await {
        Ok(Ok(text)) => (true, text),
        Ok(Err(text)) => (false, text),
        Err(_) => (false, format!("no answer within {} s", WITHIN.as_secs())),
    };
    Line::new(kind, name, ok, text)
}
