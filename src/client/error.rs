//! What can go wrong between the client and a server, as the caller must tell it apart.

/// A request that did not come to a good end. Texts are one line; the key is in none of them.
///
/// "Not found" is a refusal here, not `None`: its detail says which of task, run or repository there
/// is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server understood and said no (4xx).
    #[error("{detail} (HTTP {status})")]
    Refused { status: u16, detail: String },
    /// The server failed (5xx).
    #[error("the server failed: {detail} (HTTP {status})")]
    Failed { status: u16, detail: String },
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

    /// Whether the server says that there is no such thing.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}
