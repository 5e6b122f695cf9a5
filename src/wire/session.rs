//! Sessions of people who signed in through an OpenID provider. The cookie is in no body.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::wire::key::Used;

/// A session: of whom, what it may do, and until when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    pub id: String,
    /// The OpenID provider.
    pub issuer: String,
    /// The provider's word for the person.
    pub subject: String,
    /// As the provider calls the person.
    pub name: String,
    pub scopes: Vec<String>,
    pub repositories: Option<Vec<String>>,
    pub clis: Option<Vec<String>>,
    pub runs_at_once: Option<u32>,
    pub runs_a_day: Option<u32>,
    pub usd_a_day: Option<f64>,
    pub created_at: DateTime<Utc>,
    /// To the minute.
    pub last_used_at: DateTime<Utc>,
    /// Seconds without use after which it ends.
    pub idle_secs: u32,
    /// When it ends in any case.
    pub expires_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sessions {
    pub sessions: Vec<Session>,
}

/// The caller's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OwnSession {
    #[serde(flatten)]
    pub session: Session,
    /// What every write of this session shows in `X-CSRF-Token`.
    pub csrf_token: String,
    /// Where there are quotas.
    pub used: Option<Used>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SignedOut {
    /// Where the provider ends its own session, if it does.
    pub end_session_url: Option<String>,
}
