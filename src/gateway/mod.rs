//! `kage gateway`: the egress-facing role. It holds the model credentials and the way to the providers, and
//! neither a TCP port, the engine's socket nor a repository.
//!
//! ```text
//! grants      opens a socket for each run that wants one, closes it with the run     door   the socket itself
//! connection  one connection, one request: its head vetted (head) before HTTP reads it
//! call        ONE call, told top to bottom: route, check, model (catalog, tariff), budget (ledger), provider (upstream), relay
//! body        a request's body, in bounds
//! ledger      reserve before, settle after       booked   a call that is settled whatever becomes of it
//! refused     a call that the gateway refuses by itself, in the books
//! content     what is said in a call, where the operator wants it in the audit trail     spelled  without what its events spell
//! sieve       keeps the credential out of answers
//! notices     events and audit entries           probe    what `kage doctor` asks
//! ```

mod body;
mod booked;
mod call;
mod catalog;
mod connection;
mod content;
mod credential;
mod door;
mod environment;
mod grants;
mod head;
mod headers;
mod ledger;
mod local;
mod notices;
mod pattern;
mod price;
pub mod probe;
mod rate;
mod refused;
mod relay;
mod served;
mod sieve;
mod spelled;
mod tariff;
mod upstream;

use sqlx::PgPool;

use crate::config::gateway::GatewayConfig;
use crate::gateway::environment::Environment;
pub use crate::gateway::upstream::SetupError;
use crate::lifecycle::Lifecycle;

/// Starts the gateway; it ends with the lifecycle's tokens. With `to_the_last`, only when no run of this machine
/// needs it any more.
///
/// # Errors
/// [`SetupError`] says what keeps it from starting.
pub fn start(
    pool: PgPool,
    config: GatewayConfig,
    lifecycle: &Lifecycle,
    to_the_last: bool,
) -> Result<(), SetupError> {
    if config.audit_content_bytes > 0 {
        let bytes = config.audit_content_bytes;
        tracing::warn!(bytes, "gateway.content_audited: prompts and code go into the audit trail, for ever");
    }
    let environment = Environment::open(pool, config, lifecycle, to_the_last)?;
    // Not waited for: it ends with the process, or with the hard token.
    let hard = lifecycle.hard().clone();
    tokio::spawn(hard.run_until_cancelled_owned(credential::keep_current(environment.clone())));
    lifecycle.spawn_essential("gateway", grants::run(environment, to_the_last));
    Ok(())
}
