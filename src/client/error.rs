//! What can go wrong between the client and a server, as the caller must tell it apart.

use std::time::Duration;

/// When the server said to come back.
fn later(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| format!("; come back in {} s", after.as_secs()))
}

/// A server that is full has not failed: it says when there may be room.
const fn failed(status: u16, after: Option<Duration>) -> &'static str {
    if status == 503 && after.is_some() { "the server takes no more now" } else { "the server failed" }
}

/// A request that did not come to a good end. Texts are one line; the key is in none of them.
///
/// "Not found" is a refusal here, not `None`: its detail says which of task, run or repository there
/// is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server understood and said no (4xx).
    #[error("{detail} (HTTP {status}){}", later(*.retry_after))]
    Refused { status: u16, detail: String, retry_after: Option<Duration> },
    /// The server failed (5xx).
    #[error("{}: {detail} (HTTP {status}){}", failed(*.status, *.retry_after), later(*.retry_after))]
    Failed { status: u16, detail: String, retry_after: Option<Duration> },
    /// No connection could be made: the request was never sent.
    #[error("cannot reach {server}: {cause}")]
    Unreachable { server: String, cause: String },
    /// The connection broke, or nothing came for too long: what became of the request is unknown.
    #[error("lost the connection to {server}: {cause}")]
    Lost { server: String, cause: String },
    /// What came is not what a server of ours says.
    #[error("{server} gave an answer that this client does not understand: {what}")]
    Protocol { server: String, what: String },
    /// The key cannot be sent at all.
    #[error("the API key has characters that a header cannot carry")]
    BadKey,
    /// The HTTP client could not be made.
    #[error("cannot set up the connection: {0}")]
    Setup(String),
}

impl ClientError {
    /// Whether the same request may come to a better end when it is repeated.
    pub fn is_transient(&self) -> bool {
        match self {
            // In the words of rustls and hyper: the setting is wrong, not the network.
            Self::Lost { cause, .. } => {
                !cause.contains("CertificateRequired") && !cause.contains("invalid HTTP version")
            }
            Self::Unreachable { .. } => true,
            Self::Failed { status, .. } => matches!(status, 502..=504),
            Self::Refused { .. } | Self::Protocol { .. } | Self::BadKey | Self::Setup(_) => false,
        }
    }

    /// How long the server asks to be left alone.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } | Self::Failed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the server says that there is no such thing.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_server_has_not_failed_and_says_when_to_come_back() {
        let told = |status, seconds: Option<u64>| {
            let retry_after = seconds.map(Duration::from_secs);
            ClientError::Failed { status, detail: "why".to_owned(), retry_after }.to_string()
        };
        assert_eq!(told(503, Some(30)), "the server takes no more now: why (HTTP 503); come back in 30 s");
        assert_eq!(told(503, None), "the server failed: why (HTTP 503)");
        assert_eq!(told(500, None), "the server failed: why (HTTP 500)");
        let retry_after = Some(Duration::from_secs(5));
        let refused = ClientError::Refused { status: 429, detail: "why".to_owned(), retry_after };
        assert_eq!(refused.to_string(), "why (HTTP 429); come back in 5 s");
    }
}
