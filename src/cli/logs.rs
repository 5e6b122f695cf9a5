//! `kage logs`: what the runs wrote.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use uuid::Uuid;

use crate::cli::connect;
use crate::cli::exit::{CliError, Exit};
use crate::cli::output::{self, Globals};
use crate::cli::view::View;
use crate::cli::view::json::JsonView;
use crate::cli::view::plain::PlainView;
use crate::cli::view::raw::RawView;
use crate::cli::watch::{Interrupt, Watched, watch};
use crate::client::Client;
use crate::domain::name::Name;

/// Show the output of a task's runs
///
/// Bytes as they were written when piped; control characters spelled out on a terminal. With -f the
/// exit code is the task's, as with kage run.
#[derive(Debug, clap::Args)]
#[command(after_help = crate::cli::exit::HELP)]
pub struct Args {
    /// The task's id
    id: Uuid,
    /// Only this run
    #[arg(long, value_name = "NAME")]
    run: Option<Name>,
    /// Go on until the task ends
    #[arg(long, short)]
    follow: bool,
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let client = connect::client()?;
    let task = client.task(args.id).await?;
    let names = connect::run_names(&task, args.run.as_ref())?;
    if args.follow {
        let view: Box<dyn View> = if globals.json {
            Box::new(JsonView)
        } else if names.len() == 1 {
            Box::new(RawView::new(output::stdout_is_terminal()))
        } else {
            Box::new(PlainView::raw())
        };
        return follow(&client, args.id, args.run, view).await;
    }
    for name in &names {
        if names.len() > 1 && !globals.json {
            output::note(&format!("==> {name} <=="));
        }
        if globals.json {
            print_json(&client, args.id, name).await?;
        } else {
            print(&client, args.id, name).await?;
        }
    }
    Ok(Exit::Success)
}

async fn follow(
    client: &Client,
    id: Uuid,
    run: Option<Name>,
    mut view: Box<dyn View>,
) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let watched = watch(&mut client.follow(id, run), view.as_mut(), &mut interrupt).await?;
    if watched == Watched::Interrupted {
        output::note(&format!("still running: kage logs -f {id}, kage cancel {id}"));
    }
    Ok(watched.exit())
}

async fn print(client: &Client, id: Uuid, run: &Name) -> Result<(), CliError> {
    let mut view = RawView::new(output::stdout_is_terminal());
    let mut download = client.log(id, run, 0);
    let result = loop {
        match download.chunk().await {
            Ok(Some(bytes)) => view.write("", &bytes)?,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    // What came before it broke off is shown all the same.
    view.finish()?;
    Ok(result?)
}

/// A piece of a run's output.
#[derive(Serialize)]
struct Piece<'a> {
    run: &'a str,
    offset: u64,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

async fn print_json(client: &Client, id: Uuid, run: &Name) -> Result<(), CliError> {
    let mut download = client.log(id, run, 0);
    let mut held: Vec<u8> = Vec::new();
    let mut offset = 0;
    loop {
        let chunk = download.chunk().await?;
        let at_end = chunk.is_none();
        held.extend_from_slice(&chunk.unwrap_or_default());
        let length = if at_end { held.len() } else { held.len() - cut_character(&held) };
        if length > 0 {
            let bytes = &held[..length];
            let text = String::from_utf8_lossy(bytes);
            let base64 = std::str::from_utf8(bytes).is_err().then(|| STANDARD.encode(bytes));
            output::json(&Piece { run: run.as_str(), offset, text: &text, base64 })?;
            offset += length as u64;
            held.drain(..length);
        }
        if at_end {
            return Ok(());
        }
    }
}

/// How many bytes at the end are the beginning of a character that goes on in the next chunk.
fn cut_character(bytes: &[u8]) -> usize {
    match std::str::from_utf8(&bytes[bytes.len().saturating_sub(3)..]) {
        Ok(_) => 0,
        Err(_) => (1..=3.min(bytes.len()))
            .find(|n| {
                let tail = &bytes[bytes.len() - n..];
                tail[0] >= 0xc0 && std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none())
            })
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_character_that_a_chunk_cuts() {
        for (bytes, cut) in [
            (&b"abc"[..], 0),
            (b"", 0),
            (b"a\xc3", 1),
            (b"\xc3\xa4", 0),
            (b"\xe2\x82", 2),
            (b"ab\xf0\x9f\x98", 3),
            (b"ab\xff", 0),
            (b"\xa4\xa4", 0),
        ] {
            assert_eq!(cut_character(bytes), cut, "{bytes:x?}");
        }
    }
}
