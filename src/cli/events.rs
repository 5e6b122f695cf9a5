//! `kage events`: what somebody should hear of.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::cli::connect;
use crate::cli::duration::Span;
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::domain::security_event::{SecurityEventKind, Severity};
use crate::wire::security_event::{Delivery, DeliveryState, ListedSecurityEvent, SecurityEventFilter};

/// List security events and who was told of them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The latest first
    Security(SecurityArgs),
}

#[derive(Debug, clap::Args)]
struct SecurityArgs {
    /// Only of this kind, such as sandbox.flood
    #[arg(long)]
    kind: Option<SecurityEventKind>,
    /// low, medium, high or critical: only these and worse ones
    #[arg(long)]
    severity: Option<Severity>,
    /// Only from this time on (RFC 3339), or so long ago: 24h
    #[arg(long, value_parser = since)]
    since: Option<DateTime<Utc>>,
    /// Only of this task and its runs
    #[arg(long, value_name = "ID")]
    task: Option<Uuid>,
    /// Only before the event with this number: `next` of the page before
    #[arg(long, value_name = "N")]
    cursor: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
}

fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(span) = text.parse::<Span>() {
        return Ok(Utc::now() - TimeDelta::seconds(i64::from(span.secs)));
    }
    text.parse().map_err(|_| "it is a time such as 2026-01-31T12:00:00Z, or a span such as 24h".to_owned())
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let Command::Security(args) = args.command;
    let filter = SecurityEventFilter {
        kind: args.kind,
        severity: args.severity,
        since: args.since,
        task: args.task,
        cursor: args.cursor,
        limit: Some(args.limit),
    };
    let page = connect::client()?.security_events(&filter).await?;
    if globals.json {
        output::json(&page)?;
        return Ok(Exit::Success);
    }
    let rows: Vec<Vec<String>> = page.events.iter().map(row).collect();
    let header = ["AT", "SEVERITY", "KIND", "SUBJECT", "TOLD", "DETAILS"];
    output::line(output::table(&header, &rows, output::width()).trim_end())?;
    if let Some(next) = page.next {
        output::note(&format!("there are more: --cursor {next}"));
    }
    Ok(Exit::Success)
}

fn row(listed: &ListedSecurityEvent) -> Vec<String> {
    let event = &listed.event;
    vec![
        output::time(event.at),
        event.severity.to_string(),
        event.kind.to_string(),
        event.subject.clone(),
        told(&listed.deliveries),
        event.details.to_string(),
    ]
}

fn told(deliveries: &[Delivery]) -> String {
    let one = |delivery: &Delivery| match delivery.state {
        DeliveryState::Delivered => delivery.hook.clone(),
        DeliveryState::Pending => format!("{} ({} tries)", delivery.hook, delivery.attempts),
        DeliveryState::GivenUp => format!("{} (given up)", delivery.hook),
    };
    if deliveries.is_empty() {
        return "-".to_owned();
    }
    deliveries.iter().map(one).collect::<Vec<_>>().join(", ")
}
