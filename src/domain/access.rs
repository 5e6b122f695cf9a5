//! What a caller may do: scopes, limits to repositories and CLIs, quotas. Nobody hands on more than he has.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::domain::name::Name;

/// A kind of act. [`Scope::Admin`] stands for all of them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
pub enum Scope {
    #[serde(rename = "tasks:read")]
    TasksRead,
    #[serde(rename = "tasks:write")]
    TasksWrite,
    #[serde(rename = "results:merge")]
    ResultsMerge,
    #[serde(rename = "repos:write")]
    ReposWrite,
    #[serde(rename = "audit:read")]
    AuditRead,
    #[serde(rename = "keys:admin")]
    KeysAdmin,
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    pub const ALL: [Self; 7] = [
        Self::TasksRead,
        Self::TasksWrite,
        Self::ResultsMerge,
        Self::ReposWrite,
        Self::AuditRead,
        Self::KeysAdmin,
        Self::Admin,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TasksRead => "tasks:read",
            Self::TasksWrite => "tasks:write",
            Self::ResultsMerge => "results:merge",
            Self::ReposWrite => "repos:write",
            Self::AuditRead => "audit:read",
            Self::KeysAdmin => "keys:admin",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no scope; there are tasks:read, tasks:write, results:merge, repos:write, audit:read, keys:admin and admin"
)]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let known = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        known.ok_or_else(|| UnknownScope(text.chars().take(40).collect()))
    }
}

/// How much a key may use. Days are of UTC; `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Runs that work at once; others wait.
    pub runs_at_once: Option<u32>,
    /// Runs submitted in a day.
    pub runs_a_day: Option<u32>,
    /// Micro-USD spent on models in a day.
    pub micros_a_day: Option<i64>,
}

impl Quotas {
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// Everything that a caller may do. `None` in a limit: all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    pub scopes: BTreeSet<Scope>,
    pub repositories: Option<BTreeSet<Name>>,
    pub clis: Option<BTreeSet<Name>>,
    pub quotas: Quotas,
    pub expires_at: Option<DateTime<Utc>>,
}

/// Says in what one set of rights exceeds another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Exceeds(String);

impl Rights {
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether something is out of sight for it.
    pub fn is_limited(&self) -> bool {
        self.repositories.is_some() || self.clis.is_some()
    }

    pub fn sees_cli(&self, name: &str) -> bool {
        self.clis.as_ref().is_none_or(|names| names.iter().any(|known| known.as_str() == name))
    }

    /// Whether nothing of `other` goes beyond these rights.
    ///
    /// # Errors
    /// [`Exceeds`] names the first part that does.
    pub fn cover(&self, other: &Self) -> Result<(), Exceeds> {
        let exceeds = |text: String| Err(Exceeds(text));
        if let Some(scope) = other.scopes.iter().find(|scope| !self.has(**scope)) {
            return exceeds(format!("scope {scope}"));
        }
        for (what, own, asked) in
            [("repositories", &self.repositories, &other.repositories), ("clis", &self.clis, &other.clis)]
        {
            match (own, asked) {
                (None, _) => {}
                (Some(_), None) => return exceeds(format!("{what}: all of them")),
                (Some(own), Some(asked)) => {
                    if let Some(name) = asked.difference(own).next() {
                        return exceeds(format!("{what}: {name}"));
                    }
                }
            }
        }
        let (own, asked) = (self.quotas, other.quotas);
        for (what, fits) in [
            ("runs_at_once", at_most(asked.runs_at_once, own.runs_at_once)),
            ("runs_a_day", at_most(asked.runs_a_day, own.runs_a_day)),
            ("usd_a_day", at_most(asked.micros_a_day, own.micros_a_day)),
            ("expires_at", at_most(other.expires_at, self.expires_at)),
        ] {
            if !fits {
                return exceeds(what.to_owned());
            }
        }
        Ok(())
    }
}

/// Without a limit of one's own, everything fits; with one, a limit no higher.
fn at_most<T: PartialOrd>(asked: Option<T>, own: Option<T>) -> bool {
    match (asked, own) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(asked), Some(own)) => asked <= own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights() -> Rights {
        Rights {
            scopes: [Scope::TasksRead, Scope::KeysAdmin].into(),
            repositories: Some(["a", "b"].map(|name| name.parse().expect("a name")).into()),
            clis: Some(["shell".parse().expect("a name")].into()),
            quotas: Quotas { runs_at_once: Some(2), runs_a_day: Some(5), micros_a_day: Some(100) },
            expires_at: Some(DateTime::UNIX_EPOCH),
        }
    }

    #[test]
    fn each_part_that_exceeds_is_found() {
        let own = rights();
        assert_eq!(own.cover(&own), Ok(()));
        let all = Rights {
            scopes: [Scope::Admin].into(),
            repositories: None,
            clis: None,
            quotas: Quotas::default(),
            expires_at: None,
        };
        assert_eq!(all.cover(&own), Ok(()));
        assert!(own.cover(&all).is_err());
        let with = |change: &dyn Fn(&mut Rights)| {
            let mut other = rights();
            change(&mut other);
            own.cover(&other).expect_err("it exceeds").to_string()
        };
        assert_eq!(with(&|r| r.scopes = [Scope::TasksWrite].into()), "scope tasks:write");
        assert_eq!(with(&|r| r.scopes = [Scope::Admin].into()), "scope admin");
        assert_eq!(with(&|r| r.repositories = None), "repositories: all of them");
        assert_eq!(
            with(&|r| r.repositories = Some(["c".parse().expect("a name")].into())),
            "repositories: c"
        );
        assert_eq!(with(&|r| r.clis = None), "clis: all of them");
        assert_eq!(with(&|r| r.quotas.runs_at_once = None), "runs_at_once");
        assert_eq!(with(&|r| r.quotas.runs_at_once = Some(3)), "runs_at_once");
        assert_eq!(with(&|r| r.quotas.runs_a_day = None), "runs_a_day");
        assert_eq!(with(&|r| r.quotas.micros_a_day = Some(101)), "usd_a_day");
        assert_eq!(with(&|r| r.expires_at = None), "expires_at");
        let mut less = rights();
        less.repositories = Some(BTreeSet::new());
        less.quotas.runs_a_day = Some(0);
        assert_eq!(own.cover(&less), Ok(()));
        assert!(own.sees_cli("shell") && !own.sees_cli("codex") && all.sees_cli("codex"));
    }

    #[test]
    fn scopes_are_spelled_as_they_are_written() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(scope));
            assert_eq!(serde_json::to_value(scope).expect("a string"), scope.as_str());
        }
        assert!("tasks:*".parse::<Scope>().is_err());
    }
}
