//! A call that is booked: whatever becomes of it, it is settled, once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;

use crate::db::model_calls::{CallOutcome, EndedCall};
use crate::dialect::answer::{Refusal, RefusalKind};
use crate::dialect::usage::Reading;
use crate::domain::model::ModelUsage;
use crate::gateway::content::Content;
use crate::gateway::environment::Environment;
use crate::gateway::ledger::{self, Ask, Held, Reservation};
use crate::gateway::notices;
use crate::gateway::price::Price;
use crate::gateway::served::ServedRun;
use crate::metrics::metrics;
use crate::metrics::model::{Call, Of};

/// A call that has to wait for others of its run is to come again after so many seconds.
pub(super) const BUSY_SECS: u64 = 3;

/// How long an answer's end waits for the books.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Booked {
    pub environment: Arc<Environment>,
    pub run: Arc<ServedRun>,
    held: Held,
    price: Price,
    /// What it is counted under.
    of: Of,
    /// Of the call; it lasts as long as the answer.
    span: Span,
    started: Instant,
    first_byte: Option<Duration>,
    /// What the provider was shown, and the CLI must never see.
    pub secret: Option<SecretString>,
    /// What the CLI gets.
    pub status: Option<u16>,
    /// The provider may have begun to work on it.
    pub sent: bool,
    /// What the provider has counted so far: the least that is charged, whoever hangs up.
    pub counted: Option<ModelUsage>,
    /// What is said.
    pub content: Content,
    settled: bool,
    _call: OwnedSemaphorePermit,
}

impl Booked {
    /// Holds what the call can cost; a budget that is spent ends the run.
    ///
    /// In a task of its own, which the run's end waits for: were it dropped with a CLI that hangs up while this is being
    /// committed, an amount would stay held that nobody knows of. So it comes to its end, and who is not there any more to
    /// take it has it settled by `Booked`.
    pub async fn hold(
        environment: &Arc<Environment>,
        run: &Arc<ServedRun>,
        ask: Ask,
        started: Instant,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<Self, Refusal> {
        let (hand, held) = tokio::sync::oneshot::channel();
        let (this, served) = (Arc::clone(environment), Arc::clone(run));
        environment.lifecycle.spawn(run.connections.track_future(async move {
            let booked = match reserve(&this, &served, &ask).await {
                Ok(held) => Ok(Self::new(&this, &served, held, &ask, started, permit)),
                Err(refusal) => Err(refusal),
            };
            drop(hand.send(booked));
        }));
        held.await.unwrap_or_else(|_| Err(Refusal::new(RefusalKind::Overloaded, "the gateway is closing")))
    }

    fn new(
        environment: &Arc<Environment>,
        run: &Arc<ServedRun>,
        held: Held,
        ask: &Ask,
        started: Instant,
        call: OwnedSemaphorePermit,
    ) -> Self {
        metrics().model.began();
        let provider = &run.provider;
        let listed = provider.models.iter().map(|model| &model.name).chain(&provider.allow);
        let of = Of::new(&provider.name, &ask.resolved.model, listed.map(String::as_str));
        let span = Span::current();
        span.record("model.name", of.model());
        Self {
            of,
            span,
            content: Content::new(environment.config.audit_content_bytes),
            environment: Arc::clone(environment),
            run: Arc::clone(run),
            held,
            price: ask.resolved.price,
            started,
            first_byte: None,
            secret: None,
            status: None,
            sent: false,
            counted: None,
            settled: false,
            _call: call,
        }
    }

    /// Tokens that the answer may have.
    pub fn output(&self) -> u64 {
        self.held.output
    }

    /// Bytes of the answer have come.
    pub fn note_first_byte(&mut self) {
        self.first_byte.get_or_insert(self.started.elapsed());
    }

    /// Settles the call, before the end of its answer where the database is quick.
    pub async fn end(mut self, outcome: CallOutcome, reading: Option<&Reading>, error: Option<String>) {
        self.settled = true;
        let ended = self.ended(outcome, reading, error);
        ledger::settle(&self.environment, &self.run, self.held, ended, PATIENCE).await;
    }

    fn ended(&mut self, outcome: CallOutcome, reading: Option<&Reading>, error: Option<String>) -> EndedCall {
        let free = matches!(
            outcome,
            CallOutcome::UpstreamError | CallOutcome::UpstreamAuth | CallOutcome::Unreachable
        ) && self.status.is_none_or(|status| status >= 300);
        let told = reading.filter(|reading| reading.complete && reading.error.is_none());
        let (usage, cost, estimated) = match told.and_then(|reading| reading.usage) {
            Some(usage) => (usage, self.price.cost(usage), false),
            None if free || !self.sent => (ModelUsage::default(), 0, false),
            // Cut off, or the provider did not say: else a CLI could hang up early and pay nothing.
            None => {
                // What the provider has counted already is no longer a guess; an output goes on growing.
                let counted = self.counted.unwrap_or_default();
                let output = counted.output.max(self.held.output);
                if counted.input > 0 {
                    let usage = ModelUsage { output, ..counted };
                    (usage, self.price.cost(usage), true)
                } else {
                    let usage = ModelUsage { input: self.held.input, output, ..counted };
                    (usage, self.price.cost(usage).max(self.held.amount.micros), true)
                }
            }
        };
        let millis = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        let ended = EndedCall {
            outcome,
            status: self.status,
            input_tokens: tokens(usage.input),
            output_tokens: tokens(usage.output),
            cached_input_tokens: tokens(usage.cached_input),
            cache_write_tokens: tokens(usage.cache_write),
            cost_micros: cost,
            estimated,
            error,
            first_byte_ms: self.first_byte.map(millis),
            duration_ms: millis(self.started.elapsed()),
            content: self.content.take(|| self.environment.patterns()),
        };
        self.count(&ended);
        ended
    }

    fn count(&self, ended: &EndedCall) {
        let tokens = [
            ("input", ended.input_tokens),
            ("output", ended.output_tokens),
            ("cached_input", ended.cached_input_tokens),
            ("cache_write", ended.cache_write_tokens),
        ];
        let call = Call {
            outcome: ended.outcome.as_str(),
            tokens,
            cost_micros: ended.cost_micros,
            duration: self.started.elapsed(),
            first_byte: self.first_byte,
        };
        metrics().model.ended(&self.of, &call);
        self.span.record("model.outcome", call.outcome);
        self.span.record("model.tokens.input", ended.input_tokens);
        self.span.record("model.tokens.output", ended.output_tokens);
        self.span.record("model.cost.micros", ended.cost_micros);
    }
}

async fn reserve(environment: &Arc<Environment>, run: &Arc<ServedRun>, ask: &Ask) -> Result<Held, Refusal> {
    let unbooked = |error| {
        tracing::error!(run = %run.run, %error, "gateway.cannot_book");
        Refusal::new(RefusalKind::Overloaded, "the call cannot be booked now")
    };
    match ledger::reserve(environment, run, ask).await.map_err(unbooked)? {
        Reservation::Held(held) => Ok(held),
        Reservation::Later => {
            let kind = RefusalKind::RateLimited { retry_after_secs: BUSY_SECS };
            Err(Refusal::new(kind, "what is left of the budget is held by calls under way"))
        }
        Reservation::Exhausted(why) => {
            // Before the answer: the CLI may end at once, and its run is judged by this.
            notices::stop(environment, run, &why).await.map_err(unbooked)?;
            Err(Refusal::new(RefusalKind::BudgetExhausted, why))
        }
    }
}

/// What the table's sums can hold, whatever a provider says it has counted.
fn tokens(count: u64) -> i64 {
    i64::try_from(count.min(1 << 40)).unwrap_or(1 << 40)
}

impl Drop for Booked {
    /// Nobody waits for it any more: the CLI hung up, or the run has ended.
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let outcome =
            if self.run.end.is_cancelled() { CallOutcome::Aborted } else { CallOutcome::ClientGone };
        let ended = self.ended(outcome, None, None);
        let (environment, run, held) = (Arc::clone(&self.environment), Arc::clone(&self.run), self.held);
        let tracked = self.run.connections.clone();
        // Tracked by the run, so that its grant is closed after it.
        self.environment.lifecycle.spawn(tracked.track_future(async move {
            ledger::settle(&environment, &run, held, ended, PATIENCE).await;
        }));
    }
}
