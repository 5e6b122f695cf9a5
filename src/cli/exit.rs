//! How the program ends: one exit code for each kind of end, and the one line that says why.

use std::io;
use std::process::ExitCode;

use crate::cli::output;
use crate::client::error::ClientError;
use crate::config::client_error::ClientConfigError;
use crate::config::error::ConfigError;

/// For `--help`: the exit codes.
pub const HELP: &str = "\
Exit codes:
    0  the task completed (or the command did what it was asked)
    1  the task failed
    2  wrong usage or configuration
    3  refused by the server (also: key unknown, no such task)
    4  the server could not be reached, or broke
    5  the task was cancelled
  130  interrupted; the task goes on";

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Success = 0,
    Failed = 1,
    Usage = 2,
    Refused = 3,
    Unavailable = 4,
    Cancelled = 5,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ClientConfigError),
    /// A setting of the server's is wrong.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// A command on the server's side failed.
    #[error("{0:#}")]
    Host(anyhow::Error),
}

impl CliError {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Config(_) | Self::Setting(_) => Exit::Usage,
            Self::Client(error) => match error {
                ClientError::Refused { .. } => Exit::Refused,
                ClientError::BadKey => Exit::Usage,
                ClientError::Failed { .. }
                | ClientError::Unreachable { .. }
                | ClientError::Lost { .. }
                | ClientError::Protocol { .. }
                | ClientError::Setup(_) => Exit::Unavailable,
            },
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Interrupted,
            Self::Output(_) | Self::Host(_) => Exit::Failed,
        }
    }

    /// Says on standard error what went wrong and what to do; nothing where the reader has left.
    pub fn report(&self) {
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        output::note(&format!("kage: {self}"));
        if let Self::Client(error) = self
            && let Some(hint) = hint(error)
        {
            output::note(&format!("kage: {hint}"));
        }
    }
}

/// What to look at first.
fn hint(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Unreachable { cause, .. } | ClientError::Lost { cause, .. } => {
            // The words of rustls and hyper, which tell these ends apart by nothing else.
            if cause.contains("UnknownIssuer") {
                Some(
                    "nobody whom this system trusts signed its certificate: KAGE_CA_FILE names the PEM file of who did",
                )
            } else if cause.contains("CertificateRequired") {
                Some("it wants a client's certificate: set KAGE_CLIENT_CERT_FILE and KAGE_CLIENT_KEY_FILE")
            } else if cause.contains("invalid HTTP version") {
                Some("does it speak TLS? Then KAGE_URL begins with https://")
            } else if matches!(error, ClientError::Unreachable { .. }) {
                Some("is it running (kage serve), and is KAGE_URL its address?")
            } else {
                None
            }
        }
        ClientError::Refused { status: 401, .. } => Some("is KAGE_API_KEY this server's?"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_code() {
        let code = |error: ClientError| CliError::Client(error).exit() as u8;
        assert_eq!(code(ClientError::Refused { status: 404, detail: String::new(), retry_after: None }), 3);
        assert_eq!(code(ClientError::Failed { status: 500, detail: String::new(), retry_after: None }), 4);
        assert_eq!(code(ClientError::Unreachable { server: String::new(), cause: String::new() }), 4);
        assert_eq!(CliError::Usage(String::new()).exit() as u8, 2);
        assert_eq!(CliError::Output(io::ErrorKind::BrokenPipe.into()).exit() as u8, 130);
    }
}
