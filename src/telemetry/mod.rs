//! Logs: one JSON object a line on standard error where it is not a terminal, else text.
//! `KAGE_LOG` is a filter (default `info`), `KAGE_LOG_FORMAT` is `json` or `text`.
//!
//! Spans that carry ids (of a request, of a run) are of the level `error`: whatever the filter leaves of the lines, the ids are on
//! them. Spans for a collector are made beside, and no filter of the log concerns them.

mod flat;
mod lines;

use std::io::{self, IsTerminal};

use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, registry};
use url::Url;

use crate::telemetry::flat::Flat;
use crate::telemetry::lines::Lines;
use crate::traces;
use crate::traces::export::{Exporting, SetupError};

/// Logs alone.
pub fn init() {
    install(None);
}

/// As [`init`]; with an endpoint, spans are sent there in this role's name.
///
/// # Errors
/// [`SetupError`].
pub fn start(role: &str, endpoint: Option<&Url>) -> Result<Option<Exporting>, SetupError> {
    let exporting = endpoint.map(|endpoint| Exporting::start(role, endpoint)).transpose()?;
    install(exporting.as_ref());
    Ok(exporting)
}

fn install(exporting: Option<&Exporting>) {
    let filter =
        EnvFilter::try_from_env("KAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,hyper=warn"));
    let json = match std::env::var("KAGE_LOG_FORMAT").as_deref() {
        Ok("json") => true,
        Ok("text") => false,
        _ => !io::stderr().is_terminal(),
    };
    // Whatever the log's filter is, a trace is whole.
    let filter = match format!("{}=error", traces::TARGET).parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let logs = fmt::layer().with_ansi(false).with_writer(Lines { json });
    let logs =
        if json { logs.fmt_fields(JsonFields::new()).event_format(Flat).boxed() } else { logs.boxed() };
    // One filter for both: see `traces::export::layer`.
    registry().with(filter).with(logs).with(exporting.map(traces::export::layer)).init();
    // A panic's own words may be somebody else's, too.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
}
