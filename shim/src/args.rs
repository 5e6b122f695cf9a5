//! The command line: where the runner's socket is, and how long to wait for it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use kage_shim::protocol;

const DEFAULT_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    pub socket: PathBuf,
    /// How long the shim lives without a job.
    pub wait: Duration,
}

/// Parses the arguments after the program's name.
///
/// # Errors
/// A sentence that names the argument at fault.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, String> {
    let mut parsed = Args { socket: PathBuf::from(protocol::SOCKET_PATH), wait: DEFAULT_WAIT };
    let mut args = args.into_iter();
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{} needs a value", name.display()));
        match name.to_str() {
            Some("--socket") => parsed.socket = PathBuf::from(value()?),
            Some("--wait-secs") => {
                let text = value()?;
                let seconds = text.to_str().and_then(|text| text.parse().ok());
                let seconds = seconds.ok_or_else(|| "--wait-secs needs a number of seconds".to_owned())?;
                parsed.wait = Duration::from_secs(seconds);
            }
            _ => return Err(format!("unknown argument {}", name.display())),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(args: &[&str]) -> Result<Args, String> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn defaults_hold_without_arguments() {
        assert_eq!(
            parse_all(&[]),
            Ok(Args { socket: PathBuf::from(protocol::SOCKET_PATH), wait: Duration::from_secs(60) })
        );
    }

    #[test]
    fn both_arguments_are_taken() {
        assert_eq!(
            parse_all(&["--wait-secs", "3600", "--socket", "/x/y"]),
            Ok(Args { socket: PathBuf::from("/x/y"), wait: Duration::from_secs(3600) })
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for args in [&["--socket"][..], &["--wait-secs", "-1"], &["--wait-secs", "soon"], &["bash"], &["-h"]]
        {
            assert!(parse_all(args).is_err(), "{args:?}");
        }
    }
}
