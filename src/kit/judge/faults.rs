//! What the CLI makes of a model API that says no, or breaks.

use kage_model_server::fault::Fault;
use kage_model_server::server::Fixed;

use crate::dialect::answer::{Refusal, RefusalKind, answer};
use crate::domain::model::Dialect;
use crate::image::manifest::Manifest;
use crate::kit::observed::{Ended, Observed};
use crate::kit::report::{Item, Need};

/// A fault to try.
pub struct Trial {
    pub id: &'static str,
    pub title: &'static str,
    pub fault: &'static str,
    /// What the gateway says to the CLI in this case.
    pub refusal: Option<Refusal>,
    pub expected: Expected,
    pub need: Need,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It ends soon, and does not call it a success.
    Stops,
    /// It tries again, and does its work.
    Recovers,
    /// Either; it is reported how long it goes on.
    Whatever,
}

/// After so long a CLI that should stop is taken not to.
pub const STOPS_WITHIN_SECS: u64 = 30;
/// A fault that passes is to be over by then.
pub const RECOVERS_WITHIN_SECS: u64 = 60;
/// How long a CLI is watched that may go on for hours.
pub const WATCHED_SECS: u64 = 15;

pub fn trials() -> Vec<Trial> {
    let refusal = |kind, message: &str| Some(Refusal::new(kind, message));
    let trial =
        |id, title, fault, refusal, expected, need| Trial { id, title, fault, refusal, expected, need };
    let (must, should, note) = (Need::Must, Need::Should, Need::Note);
    vec![
        trial(
            "budget-stop",
            "stops when its budget is spent",
            "fixed@2",
            refusal(RefusalKind::BudgetExhausted, "the budget of this run is spent"),
            Expected::Stops,
            must,
        ),
        trial(
            "model-refused",
            "stops when its model is not allowed",
            "fixed",
            refusal(RefusalKind::ModelNotAllowed, "this model is not allowed"),
            Expected::Stops,
            should,
        ),
        trial(
            "error-401",
            "stops when the gateway's credential is refused (401 upstream)",
            "fixed",
            refusal(RefusalKind::UpstreamAuth, "the provider refused the gateway's credential"),
            Expected::Stops,
            should,
        ),
        trial(
            "error-429-once",
            "gets over one 429",
            "fixed@1x1",
            refusal(RefusalKind::RateLimited { retry_after_secs: 1 }, "too many requests"),
            Expected::Recovers,
            should,
        ),
        trial(
            "error-500-once",
            "gets over one 500",
            "fixed@1x1",
            refusal(RefusalKind::UpstreamUnavailable, "the provider is not there"),
            Expected::Recovers,
            should,
        ),
        trial(
            "cut-once",
            "gets over one answer that breaks off",
            "cut@1x1",
            None,
            Expected::Recovers,
            should,
        ),
        trial("error-429", "with 429 for ever", "429:retry-after=1", None, Expected::Whatever, note),
        trial("error-500", "with 500 for ever", "500", None, Expected::Whatever, note),
        trial("cut", "with answers that always break off", "cut", None, Expected::Whatever, note),
    ]
}

impl Trial {
    pub fn within_secs(&self) -> u64 {
        match self.expected {
            Expected::Stops => STOPS_WITHIN_SECS,
            Expected::Recovers => RECOVERS_WITHIN_SECS,
            Expected::Whatever => WATCHED_SECS,
        }
    }

    /// # Panics
    /// Never: the faults above are read in a test.
    pub fn faults(&self) -> Vec<Fault> {
        vec![self.fault.parse().expect("a fault of the table above")]
    }

    /// The gateway's own words, in the dialect that it would use.
    pub fn fixed(&self, dialect: Dialect) -> Option<Fixed> {
        let answer = answer(dialect, self.refusal.as_ref()?);
        let headers = answer.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Some(Fixed { status: answer.status, headers, body: answer.body })
    }

    pub fn item(&self, observed: &Observed, manifest: &Manifest) -> Item {
        let (regarded, detail) = (observed.regarded(manifest), observed.account(manifest));
        let seen = match (self.expected, &regarded) {
            _ if !observed.met_fault() => {
                Err(format!("it never asked for the answer that had the fault; {detail}"))
            }
            (Expected::Stops, Err(_)) if observed.ended == Ended::ByItself => Ok(detail),
            // The runner has the gateway's record as well, and is not deceived.
            (Expected::Stops, Ok(())) if observed.ended == Ended::ByItself => Ok(detail),
            (Expected::Recovers, Ok(())) | (Expected::Whatever, _) => Ok(detail),
            _ => Err(detail),
        };
        observed.item(self.id, self.need, self.title, seen)
    }
}

/// Whether errors that end the work are told, in all the attempts that met one.
pub fn told_item(stopped: &[(&'static str, Result<(), String>)]) -> Item {
    let silent: Vec<&str> =
        stopped.iter().filter(|(_, regarded)| regarded.is_ok()).map(|(id, _)| *id).collect();
    let title = "tells of an error that ends its work (exit status, final event or error event)";
    if stopped.is_empty() {
        return Item::not_measured("errors-told", Need::Should, title, "the CLI met none");
    }
    let seen = if silent.is_empty() {
        Ok(String::new())
    } else {
        Err(format!("not of {}; only the gateway's record shows it", silent.join(", ")))
    };
    Item::new("errors-told", Need::Should, title, seen)
}

/// SIGTERM while the model is silent.
pub fn sigterm_item(observed: &Observed) -> Item {
    let title = "ends on SIGTERM, without SIGKILL";
    let seen = match (observed.ended, observed.exited.signal) {
        (Ended::AsPlanned, Some(9)) => Err("it had to be killed after the grace time".to_owned()),
        (Ended::AsPlanned, _) => {
            let took = observed.stopping.unwrap_or_default().as_secs_f64();
            Ok(format!("after {took:.1} s"))
        }
        _ => Err(format!("it was over before: {}", observed.ending())),
    };
    observed.item("sigterm", Need::Should, title, seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_one() {
        for trial in trials() {
            assert_eq!(trial.faults().len(), 1);
            assert_eq!(trial.fixed(Dialect::Chat).is_some(), trial.fault.starts_with("fixed"));
        }
    }

    #[test]
    fn the_budget_stop_is_the_gateways_own() {
        let trials = trials();
        let fixed = trials[0].fixed(Dialect::Anthropic).expect("a refusal");
        assert_eq!(fixed.status, 402);
    }
}
