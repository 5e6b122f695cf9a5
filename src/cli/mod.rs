//! The command line: one file per command. Only this room knows every role.

pub mod approve;
pub mod audit;
pub mod audit_cosign;
pub mod audit_export;
pub mod audit_show;
pub mod audit_source;
pub mod audit_tiles;
pub mod audit_verify;
pub mod backup;
pub mod backup_prune;
mod cancel;
pub mod config;
pub mod connect;
pub mod diff;
pub mod doctor;
mod doctor_leftovers;
mod duration;
pub mod escape;
pub mod events;
pub mod exit;
pub mod figures;
mod findings;
pub mod host;
pub mod image;
pub mod image_build_log;
pub mod image_check;
pub mod image_events;
pub mod image_folder;
pub mod keeper;
pub mod key;
pub mod lines;
pub mod logs;
pub mod migrate;
pub mod output;
pub mod repo;
pub mod restore;
pub mod role_trail;
pub mod run;
pub mod schema_watch;
pub mod secrets;
pub mod sequencer_key;
pub mod serve;
pub mod summary;
pub mod task;
pub mod tasks;
pub mod view;
pub mod watch;
pub mod webhook;

use crate::cli::exit::{CliError, Exit};
use crate::cli::output::Globals;

/// Hands coding tasks to AI command-line agents without trusting them
#[derive(Debug, clap::Parser)]
#[command(name = "kage", version, after_help = exit::HELP)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(run::Args),
    Tasks(tasks::Args),
    Task(task::Args),
    Logs(logs::Args),
    Diff(diff::Args),
    Cancel(cancel::Args),
    Repo(repo::Args),
    Serve(serve::ServeArgs),
    Api(serve::ApiArgs),
    Runner(serve::RunnerArgs),
    Gateway(serve::GatewayArgs),
    Keeper(keeper::Args),
    Sequencer(serve::SequencerArgs),
    Notifier(serve::NotifierArgs),
    Retention(serve::RetentionArgs),
    Audit(audit::Args),
    Events(events::Args),
    Webhook(webhook::Args),
    Doctor(doctor::Args),
    Migrate(migrate::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Config(config::Args),
    Key(key::Args),
    Image(image::Args),
}

/// Runs the command.
///
/// # Errors
/// [`CliError`].
pub async fn execute(cli: Cli) -> Result<Exit, CliError> {
    let globals = &cli.globals;
    match cli.command {
        Command::Run(args) => run::run(args, globals).await,
        Command::Tasks(args) => tasks::run(args, globals).await,
        Command::Task(args) => task::run(args, globals).await,
        Command::Logs(args) => logs::run(args, globals).await,
        Command::Diff(args) => diff::run(args, globals).await,
        Command::Cancel(args) => cancel::run(args, globals).await,
        Command::Repo(args) => repo::run(args, globals).await,
        Command::Serve(args) => serve::serve(args).await,
        Command::Api(args) => serve::api(args).await,
        Command::Runner(args) => serve::runner(args).await,
        Command::Gateway(args) => serve::gateway(args).await,
        Command::Keeper(args) => keeper::run(args).await,
        Command::Sequencer(args) => serve::sequencer(args).await,
        Command::Notifier(args) => serve::notifier(args).await,
        Command::Retention(args) => serve::retention(args).await,
        Command::Audit(args) => audit::run(args, globals).await,
        Command::Events(args) => events::run(args, globals).await,
        Command::Webhook(args) => webhook::run(args, globals).await,
        Command::Doctor(args) => doctor::run(args, globals).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Backup(args) => backup::run(args, globals).await,
        Command::Restore(args) => restore::run(args, globals).await,
        Command::Config(args) => config::run(args, globals).await,
        Command::Key(args) => key::run(args, globals).await,
        Command::Image(args) => image::run(args, globals).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
