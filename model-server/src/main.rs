//! The scripted model server as a program.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kage_model_server::fault::Fault;
use kage_model_server::scenario;
use kage_model_server::script::Script;
use kage_model_server::server::{Listen, Options, Server};
use tokio::signal::unix::{SignalKind, signal};

/// Plays a script instead of asking a model; speaks Anthropic Messages, OpenAI Responses and Chat Completions,
/// Gemini and Ollama at once
#[derive(Debug, Parser)]
#[command(version, after_help = scenarios())]
struct Args {
    /// HOST:PORT (port 0: any that is free) or unix:PATH
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Mode of the Unix socket, octal
    #[arg(long, default_value = "600", value_parser = mode)]
    socket_mode: u32,
    /// Allow an address that other machines reach
    #[arg(long)]
    listen_any: bool,
    /// Script to play (TOML); a `KAGE-SCRIPT:` line in a prompt goes first
    #[arg(long, value_name = "FILE", conflicts_with = "scenario")]
    script: Option<PathBuf>,
    /// Built-in script to play
    #[arg(long, default_value = "write-hello")]
    scenario: String,
    /// KIND[:NAME=N,…][@TURN][xTIMES], for instance 429:retry-after=1@1x2; may be repeated
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,
    /// Append every request to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Refuse requests without this key
    #[arg(long, value_name = "KEY")]
    require_key: Option<String>,
    /// Name for the model list; may be repeated
    #[arg(long = "model", default_value = "kage-scripted")]
    models: Vec<String>,
    /// Print the port as the only line of standard output
    #[arg(long)]
    print_port: bool,
}

fn scenarios() -> String {
    let lines = scenario::NAMES.iter().map(|(name, what)| format!("  {name:<12} {what}\n"));
    format!("Scenarios:\n{}", lines.collect::<String>())
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|error| error.to_string())?;
    if mode > 0o777 { Err("not a mode".to_owned()) } else { Ok(mode) }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kage-model-server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> io::Result<()> {
    let script = script(&args)?;
    let listen = listen(&args)?;
    let options = Options {
        faults: args.fault,
        record: args.record,
        require_key: args.require_key,
        models: args.models,
        ..Options::new(script)
    };
    let server = Server::bind(listen, options).await?;
    match server.address() {
        Some(address) if args.print_port => {
            let mut out = io::stdout().lock();
            writeln!(out, "{}", address.port())?;
            out.flush()?;
        }
        Some(address) => eprintln!("kage-model-server: http://{address}"),
        None => eprintln!("kage-model-server: {}", args.listen),
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server.serve(stop).await
}

fn script(args: &Args) -> io::Result<Script> {
    match &args.script {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
            Script::from_toml(&text).map_err(io::Error::other)
        }
        None => scenario::find(&args.scenario)
            .ok_or_else(|| io::Error::other(format!("no scenario {:?}\n{}", args.scenario, scenarios()))),
    }
}

/// Requests are recorded with whatever key they carry: nobody else is to reach this server by accident.
fn listen(args: &Args) -> io::Result<Listen> {
    if let Some(path) = args.listen.strip_prefix("unix:") {
        return Ok(Listen::Unix(PathBuf::from(path), args.socket_mode));
    }
    let address: SocketAddr =
        args.listen.parse().map_err(|_| io::Error::other("--listen takes IP:PORT or unix:PATH"))?;
    if !address.ip().is_loopback() && !args.listen_any {
        return Err(io::Error::other(format!("{address} is no loopback address; --listen-any allows it")));
    }
    Ok(Listen::Tcp(address))
}
