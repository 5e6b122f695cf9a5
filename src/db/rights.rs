//! What a row says that its holder may do.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::db::error::DbError;
use crate::domain::access::{Quotas, Rights, UnknownScope};
use crate::domain::name::{InvalidName, Name};

pub(super) struct RightsColumns<'a> {
    pub scopes: &'a [String],
    pub repositories: Option<&'a [String]>,
    pub clis: Option<&'a [String]>,
    pub runs_at_once: Option<i32>,
    pub runs_a_day: Option<i32>,
    pub micros_a_day: Option<i64>,
    pub expires_at: Option<DateTime<Utc>>,
}

impl RightsColumns<'_> {
    /// # Errors
    /// [`DbError::Inconsistent`]: then its holder can do nothing.
    pub fn read(&self, table: &'static str, id: &str) -> Result<Rights, DbError> {
        let broken = |column, problem: String| DbError::inconsistent(table, column, id, problem);
        let names = |column, limit: Option<&[String]>| -> Result<Option<BTreeSet<Name>>, DbError> {
            let Some(limit) = limit else { return Ok(None) };
            let parsed: Result<_, InvalidName> = limit.iter().map(|name| name.parse()).collect();
            parsed.map(Some).map_err(|problem| broken(column, problem.to_string()))
        };
        let scopes: Result<_, UnknownScope> = self.scopes.iter().map(|scope| scope.parse()).collect();
        Ok(Rights {
            scopes: scopes.map_err(|problem| broken("scopes", problem.to_string()))?,
            repositories: names("repositories", self.repositories)?,
            clis: names("clis", self.clis)?,
            quotas: Quotas {
                runs_at_once: self.runs_at_once.map(i32::unsigned_abs),
                runs_a_day: self.runs_a_day.map(i32::unsigned_abs),
                micros_a_day: self.micros_a_day,
            },
            expires_at: self.expires_at,
        })
    }
}

/// A limit as it is stored.
pub(super) fn names(limit: Option<&BTreeSet<Name>>) -> Option<Vec<String>> {
    limit.map(|names| names.iter().map(|name| name.as_str().to_owned()).collect())
}

/// A quota as it is stored.
pub(super) fn quota(number: Option<u32>) -> Option<i32> {
    number.map(|number| i32::try_from(number).unwrap_or(i32::MAX))
}
