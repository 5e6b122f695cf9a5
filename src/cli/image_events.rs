//! `kage image events`: what a manifest's filter makes of a CLI's output, to write the filter by.

use std::io::{BufRead, Read as _, stdin};
use std::path::PathBuf;

use crate::cli::exit::{CliError, Exit};
use crate::cli::image_folder;
use crate::cli::output;
use crate::image::manifest::{FILE_NAME, Manifest};
use crate::image::mapped::MappedEvent;
use crate::image::mapping::{MAX_LINE, Mapping};

#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    #[arg(value_name = "IMAGE", help = image_folder::HELP)]
    image: PathBuf,
}

/// # Errors
/// [`CliError::Host`] for a folder without a good manifest, [`CliError::Usage`] for one without a filter.
pub fn run(args: &EventsArgs) -> Result<Exit, CliError> {
    let folder = image_folder::require(&args.image).map_err(CliError::Host)?;
    let manifest = Manifest::read(&folder).map_err(|error| CliError::Host(error.into()))?;
    let Some(mapping) = manifest.mapping() else {
        let path = folder.join(FILE_NAME);
        return Err(CliError::Usage(format!("{}: it has no `events` filter", path.display())));
    };
    let told = each_event(&mapping, stdin().lock(), |event| output::json(&event.to_json()));
    for (line, ignored) in told? {
        output::note(&format!(
            "line {line}: {ignored} of the filter's outputs no event (or the filter failed)"
        ));
    }
    Ok(Exit::Success)
}

/// Line by line, as a runner does. Gives the numbers of the lines with outputs that are no event, and how many.
fn each_event(
    mapping: &Mapping,
    mut input: impl BufRead,
    mut tell: impl FnMut(&MappedEvent) -> std::io::Result<()>,
) -> std::io::Result<Vec<(usize, u32)>> {
    let (mut ignored, mut line) = (Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        // One byte more than is looked at, and the newline.
        let most = MAX_LINE as u64 + 2;
        if input.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 == most {
            input.skip_until(b'\n')?;
        }
        let mapped = mapping.map_line(&line);
        mapped.events.iter().try_for_each(&mut tell)?;
        if mapped.ignored > 0 {
            ignored.push((number, mapped.ignored));
        }
    }
    Ok(ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_goes_through_the_filter_and_the_last_needs_no_newline() {
        let filter = r#"fromjson? | if .text then {kind: "assistant", message: .text} else 7 end"#;
        let mapping = Mapping::compile(filter).expect("compiles");
        let long = "x".repeat(MAX_LINE + 10);
        let input = format!("{{\"text\":\"a\"}}\nnot JSON\n\n{{}}\n{long}\n{{\"text\":\"b\"}}");
        let mut said = Vec::new();
        let ignored = each_event(&mapping, input.as_bytes(), |event| {
            said.push(event.to_json().to_string());
            Ok(())
        });
        assert_eq!(
            ignored.expect("reads"),
            [(4, 1), (5, 1)],
            "an output that is none, a line that is too long"
        );
        assert_eq!(said, [r#"{"kind":"assistant","message":"a"}"#, r#"{"kind":"assistant","message":"b"}"#]);
    }
}
