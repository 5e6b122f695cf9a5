//! `kage webhook`: tries a receiver, and makes secrets.

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host;
use crate::cli::output::{self, Globals};
use crate::config::settings::InForce;
use crate::config::webhooks::PREFIX;
use crate::notifier::message::Message;
use crate::notifier::sender::{Answer, Sender};

/// Try receivers of security events, and make their secrets
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Send a test event, once, and print the answer
    Test {
        /// The hook's name in the file of KAGE_WEBHOOKS_FILE
        name: String,
    },
    /// Print a new secret
    Keygen,
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    match args.command {
        Command::Test { name } => test(&name, globals).await,
        Command::Keygen => {
            let key: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
            let text = Zeroizing::new(format!("{PREFIX}{}", STANDARD.encode(key.as_slice())));
            if globals.json {
                output::json(&json!({ "secret": text.as_str() }))?;
            } else {
                output::line(&text)?;
            }
            Ok(Exit::Success)
        }
    }
}

async fn test(name: &str, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = host::load()?;
    let config = &configuration.webhooks;
    let set = |one: &InForce| one.name == "KAGE_WEBHOOKS_FILE" && !one.value.is_empty();
    let file_is_set = configuration.settings.in_force().iter().any(set);
    let hook = config.hooks.iter().find(|hook| hook.name == name).ok_or_else(|| {
        if !file_is_set {
            let unset = "KAGE_WEBHOOKS_FILE is not set, so there is no hook to test";
            return CliError::Usage(unset.to_owned());
        }
        let known: Vec<&str> = config.hooks.iter().map(|hook| hook.name.as_str()).collect();
        CliError::Usage(format!("KAGE_WEBHOOKS_FILE has no hook {name:?}; it has: {}", known.join(", ")))
    })?;
    let sender = Sender::new(hook.clone(), config.within).context("webhook").map_err(CliError::Host)?;
    let message = Message::test(name);
    let told = |problem: String| CliError::Host(anyhow!("webhook {name}: {problem}"));
    let Answer { status, body, .. } = sender.send(&message).await.map_err(told)?;
    let text = String::from_utf8_lossy(&body);
    if globals.json {
        output::json(&json!({ "hook": name, "webhook_id": message.id, "status": status, "body": text }))?;
    } else {
        output::line(&format!("{status}  webhook-id {}", message.id))?;
        for line in text.lines() {
            output::line(&format!("  {}", escape::line(line)))?;
        }
    }
    Ok(if (200..300).contains(&status) { Exit::Success } else { Exit::Failed })
}
