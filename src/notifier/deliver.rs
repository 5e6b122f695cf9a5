//! The loop of one receiver.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::config::webhooks::WebhooksConfig;
use crate::db::error::DbError;
use crate::db::webhook_deliveries::{self, Outcome, Try};
use crate::notifier::message::Message;
use crate::notifier::schedule;
use crate::notifier::sender::{Answer, Sender};
use crate::wire::security_event::DeliveryState;

/// Between two looks.
const POLL: Duration = Duration::from_secs(1);
/// Tries at once.
const AT_ONCE: i64 = 8;
/// Longer than a try and the record of it.
const LEASE_MORE: u64 = 5;

pub struct Receiver {
    pool: PgPool,
    sender: Arc<Sender>,
    lease_secs: u64,
    retry: Duration,
    tries: u32,
}

impl Receiver {
    pub fn new(pool: PgPool, sender: Arc<Sender>, config: &WebhooksConfig) -> Self {
        let lease_secs = config.within.as_secs() + LEASE_MORE;
        Self { pool, sender, lease_secs, retry: config.retry, tries: config.tries }
    }

    /// Until the soft token; tries that are under way then are ended, which takes no longer than one. A receiver that says
    /// that it is gone (410) hears nothing more until the next start.
    pub async fn run(&self, soft: &CancellationToken) {
        let hook = self.sender.name();
        while !soft.is_cancelled() {
            match self.round().await {
                Ok(Round { gone: true, .. }) => {
                    tracing::error!(
                        hook,
                        "webhook.gone: it answered 410, and hears nothing until the next start"
                    );
                    return soft.cancelled().await;
                }
                Ok(Round { tried: 0, .. }) => pause(soft).await,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(hook, %error, "webhook.later");
                    pause(soft).await;
                }
            }
        }
    }

    async fn round(&self) -> Result<Round, DbError> {
        let tries =
            webhook_deliveries::begin(&self.pool, self.sender.name(), AT_ONCE, self.lease_secs).await?;
        let tried = tries.len();
        let ends = join_all(tries.into_iter().map(|begun| self.attempt(begun))).await;
        let mut gone = false;
        for end in ends {
            gone |= end?;
        }
        Ok(Round { tried, gone })
    }

    /// True if the receiver says that it is gone.
    async fn attempt(&self, begun: Try) -> Result<bool, DbError> {
        let (ordinal, lease, attempts) = (begun.event.ordinal, begun.lease, begun.attempts);
        let (hook, event) = (self.sender.name(), begun.event.id);
        let answer = match begun.event.into_wire() {
            Ok(event) => self.sender.send(&Message::of_event(event)).await,
            Err(error) => Err(error.to_string()),
        };
        let outcome = self.judge(&answer, attempts);
        let (state, status, problem) = (outcome.state.as_str(), outcome.status, outcome.problem.as_deref());
        match outcome.state {
            DeliveryState::Delivered => tracing::info!(hook, %event, attempts, "webhook.delivered"),
            DeliveryState::Pending => {
                tracing::warn!(hook, %event, attempts, status, problem, "webhook.failed")
            }
            DeliveryState::GivenUp => {
                tracing::error!(hook, %event, attempts, status, problem, "webhook.given_up")
            }
        }
        if !webhook_deliveries::end(&self.pool, hook, ordinal, lease, &outcome).await? {
            tracing::warn!(hook, %event, state, "webhook.late: another try has begun");
        }
        Ok(outcome.status == Some(410))
    }

    fn judge(&self, answer: &Result<Answer, String>, attempts: u32) -> Outcome {
        let (status, problem, wished) = match answer {
            Ok(answer) if (200..300).contains(&answer.status) => {
                let state = DeliveryState::Delivered;
                return Outcome { state, status: Some(answer.status), problem: None, pause_ms: 0 };
            }
            Ok(answer) => {
                let why = match answer.status {
                    410 => "it answered 410: it is gone".to_owned(),
                    status @ 300..400 => format!("it answered {status}: redirects are not followed"),
                    status => format!("it answered {status}"),
                };
                (Some(answer.status), why, answer.wished)
            }
            Err(problem) => (None, problem.chars().take(200).collect(), None),
        };
        let over = attempts >= self.tries || status == Some(410);
        let state = if over { DeliveryState::GivenUp } else { DeliveryState::Pending };
        let pause = schedule::pause(self.retry, attempts, wished, rand::random());
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        Outcome { state, status, problem: Some(problem), pause_ms }
    }
}

/// What a round did.
struct Round {
    tried: usize,
    gone: bool,
}

async fn pause(soft: &CancellationToken) {
    let _ = soft.run_until_cancelled(tokio::time::sleep(POLL)).await;
}
