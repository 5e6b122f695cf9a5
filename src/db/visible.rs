//! What a caller sees. Every statement that the API makes on tasks, runs, repositories and what belongs to them takes
//! a [`Visible`] and asks the functions `sees_task` and `sees_repository` of the schema; `tests/layers.rs` looks
//! whether one forgets to.
//!
//! The first parameters of these statements are [`Visible::repositories`] and, where tasks are asked for,
//! [`Visible::clis`].

use crate::domain::access::Rights;

/// Repositories and CLIs beyond which nothing exists; `None`: all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visible {
    repositories: Option<Vec<String>>,
    clis: Option<Vec<String>>,
}

impl Visible {
    /// For the roles that work on everything. Never for a request.
    pub const EVERYTHING: Self = Self { repositories: None, clis: None };

    pub fn to(rights: &Rights) -> Self {
        let names = |limit: &std::collections::BTreeSet<crate::domain::name::Name>| {
            limit.iter().map(|name| name.as_str().to_owned()).collect()
        };
        Self { repositories: rights.repositories.as_ref().map(names), clis: rights.clis.as_ref().map(names) }
    }

    pub fn repositories(&self) -> Option<&[String]> {
        self.repositories.as_deref()
    }

    pub fn clis(&self) -> Option<&[String]> {
        self.clis.as_deref()
    }
}
