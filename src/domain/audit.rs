//! Audit entries: security-relevant facts, kept for ever.

use std::borrow::Cow;
use std::net::IpAddr;

use serde_json::Value;

use crate::domain::person::Identity;

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Actor {
    /// An API key, by its public id.
    Key(String),
    /// Somebody who has signed in.
    Person(Identity),
    /// Somebody without a valid key, by address.
    Anonymous,
    /// A runner, by its id.
    Runner(String),
    /// The model gateway.
    Gateway,
    /// What gives entries their place, and signs.
    Sequencer,
    /// A person or program on the host, through the `kage` command.
    Host,
}

impl Actor {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Person(_) => "person",
            Self::Anonymous => "anonymous",
            Self::Runner(_) => "runner",
            Self::Gateway => "gateway",
            Self::Sequencer => "sequencer",
            Self::Host => "host",
        }
    }

    pub fn id(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Key(id) | Self::Runner(id) => Some(Cow::Borrowed(id)),
            Self::Person(identity) => Some(Cow::Owned(identity.to_string())),
            Self::Anonymous | Self::Gateway | Self::Sequencer | Self::Host => None,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Refused,
    Failed,
}

impl Outcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// One entry. `details` holds identifiers, digests, sizes and limits; never a prompt, a secret or output.
#[derive(Debug, Clone)]
pub struct Entry {
    pub actor: Actor,
    /// Dotted verb: `task.submit`, `run.state`, `key.create`.
    pub action: &'static str,
    /// Kind and id of what it was done to, such as `task:0190…`.
    pub object: String,
    pub outcome: Outcome,
    pub details: Value,
}

/// The request that an act came of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// As in the answer's `X-Request-Id`.
    pub id: String,
    /// The client's, through trusted proxies.
    pub address: Option<IpAddr>,
    /// Method and path of the route: `POST /api/v1/tasks`.
    pub route: Option<String>,
}

/// An entry of an act that a request asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub entry: Entry,
    pub request: Request,
}

/// What can be appended to the trail.
pub trait Record {
    fn entry(&self) -> &Entry;

    /// None: no request asked for it.
    fn request(&self) -> Option<&Request> {
        None
    }
}

impl Record for Entry {
    fn entry(&self) -> &Entry {
        self
    }
}

impl Record for Asked {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    fn request(&self) -> Option<&Request> {
        Some(&self.request)
    }
}
