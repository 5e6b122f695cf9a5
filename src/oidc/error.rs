//! Why somebody cannot be signed in. No text of the provider's, no code and no token is in a message.

#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// At the start.
    #[error("sign-in cannot be set up: {0}")]
    Setup(String),
    /// Worth another try.
    #[error("the OpenID provider cannot be asked: {0}")]
    Unavailable(String),
    /// Its description of itself is not to be followed.
    #[error("the OpenID provider is not as it must be: {0}")]
    Provider(String),
    /// What it answered for this person is not to be believed.
    #[error("the OpenID provider's answer is refused: {0}")]
    Refused(Refusal),
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the answer names another issuer, or none where it must")]
    AnswerIssuer,
    #[error("the code is not taken")]
    Code,
    #[error("there is no ID token, or it is malformed")]
    NoToken,
    #[error("the ID token is of another issuer")]
    Issuer,
    #[error("the ID token is for somebody else")]
    Audience,
    #[error("the ID token has expired, or is of another time")]
    Time,
    #[error("the ID token is not of this sign-in")]
    Nonce,
    #[error("the ID token is not signed as it must be")]
    Algorithm,
    #[error("the ID token's signature is wrong, or of an unknown key")]
    Signature,
    #[error("the access token is not the ID token's")]
    AccessToken,
    #[error("the subject is none")]
    Subject,
    #[error("the user info is missing, malformed or of somebody else")]
    UserInfo,
    #[error("the ID token is not understood")]
    Token,
}

impl Refusal {
    /// For the trail.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::AnswerIssuer => "sign-in-answer-issuer",
            Self::Code => "sign-in-code",
            Self::NoToken => "sign-in-no-token",
            Self::Issuer => "sign-in-token-issuer",
            Self::Audience => "sign-in-token-audience",
            Self::Time => "sign-in-token-time",
            Self::Nonce => "sign-in-token-nonce",
            Self::Algorithm => "sign-in-token-algorithm",
            Self::Signature => "sign-in-token-signature",
            Self::AccessToken => "sign-in-access-token",
            Self::Subject => "sign-in-subject",
            Self::UserInfo => "sign-in-user-info",
            Self::Token => "sign-in-token",
        }
    }
}
