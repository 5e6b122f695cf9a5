//! The books: what a call can cost at most is held before it is sent, what it did cost is charged when it
//! has ended. A call that nobody ended is charged as held.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::db;
use crate::db::budgets::{Amount, BudgetRow};
use crate::db::error::DbError;
use crate::db::model_calls::{CallOutcome, EndedCall, NewCall};
use crate::domain::audit::Outcome;
use crate::gateway::catalog::Resolved;
use crate::gateway::environment::Environment;
use crate::gateway::notices;
use crate::gateway::served::ServedRun;

/// Output tokens below which an answer is of no use.
const LEAST_OUTPUT: u64 = 256;
/// How often a settlement is tried that the database does not take.
const TRIES: u32 = 60;

/// What a call wants to hold.
pub(super) struct Ask {
    pub model_asked: String,
    pub resolved: Resolved,
    /// Tokens, as they usually are.
    pub input: u64,
    /// Tokens, at most.
    pub most_input: u64,
    /// Tokens, at most.
    pub output: u64,
    pub streamed: bool,
}

/// An amount that is held for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub call: Uuid,
    pub amount: Amount,
    pub input: u64,
    /// What the call may produce: no more than was asked for, and than is left.
    pub output: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reservation {
    Held(Held),
    /// It does not fit beside the calls that are under way.
    Later,
    /// It does not fit into what is left, in words.
    Exhausted(String),
}

/// Holds what a call can cost on the run's and the task's budgets, and opens its row.
///
/// # Errors
/// [`DbError`]: then nothing is held, and nothing may be sent.
pub(super) async fn reserve(
    environment: &Environment,
    run: &ServedRun,
    ask: &Ask,
) -> Result<Reservation, DbError> {
    let mut transaction = db::budgets::begin_reservation(&environment.pool).await?;
    let mut levels = db::budgets::lock(&mut transaction, run.task, run.run).await?;
    if levels.len() != 2 {
        return Err(DbError::inconsistent("model_budgets", "run_id", run.run, "the run has no budget row"));
    }
    if run.is_charged {
        levels.extend(db::quotas::lock(&mut transaction, run.task, run.run).await?);
    }
    let Some(output) = allowed(&levels, ask) else {
        return Ok(match fitting(&levels, ask, ask.input, true) {
            Some(_) => Reservation::Later,
            None => Reservation::Exhausted(exhausted(&levels, ask)),
        });
    };
    let amount = worst(ask, output);
    // The CLI names what it likes.
    let names = [&ask.model_asked, &ask.resolved.model].map(|name| environment.without_secrets(name));
    let held = Held { call: Uuid::now_v7(), amount, input: ask.most_input, output };
    db::budgets::reserve(&mut transaction, run.task, run.run, amount).await?;
    db::quotas::reserve(&mut transaction, &levels, amount).await?;
    let call = NewCall {
        id: held.call,
        run: run.run,
        task: run.task,
        attempt: run.attempt,
        provider: &run.provider.name,
        dialect: run.dialect.as_str(),
        model_asked: &names[0],
        model: &names[1],
        reserved: amount,
        streamed: ask.streamed,
        price_note: ask.resolved.price_note.as_deref(),
    };
    db::model_calls::insert(&mut transaction, &call).await?;
    transaction.commit().await?;
    Ok(Reservation::Held(held))
}

fn worst(ask: &Ask, output: u64) -> Amount {
    let tokens = i64::try_from(ask.most_input.saturating_add(output)).unwrap_or(i64::MAX >> 8);
    Amount { micros: ask.resolved.price.at_most(ask.most_input, output), tokens }
}

/// The output that a call may have beside those under way.
///
/// Calls at once fit with the most that each can take, so that together they never exceed a budget. Where that is more
/// than is left, but what such a request usually takes is not, it goes alone: else a budget would end with much of it
/// unspent. So a budget is exceeded by one call at most, and by no more than that call's estimate fell short.
fn allowed(levels: &[BudgetRow], ask: &Ask) -> Option<u64> {
    let most = fitting(levels, ask, ask.most_input, false);
    most.or_else(|| {
        let alone = |level: &BudgetRow| {
            (level.reserved_micros, level.reserved_tokens) == (0, 0)
                || fitting(std::slice::from_ref(level), ask, ask.most_input, false).is_some()
        };
        fitting(levels, ask, ask.input, false).filter(|_| levels.iter().all(alone))
    })
}

/// The output that fits on every level beside so much input: all that is asked for, or less, but of some use. With
/// `released`, as if no other call were under way.
fn fitting(levels: &[BudgetRow], ask: &Ask, input: u64, released: bool) -> Option<u64> {
    let mut output = ask.output;
    for level in levels {
        let mut level = level.clone();
        if released {
            (level.reserved_micros, level.reserved_tokens) = (0, 0);
        }
        if let Some(left) = level.tokens_left() {
            output = output.min(left.unsigned_abs().saturating_sub(input));
        }
        if let Some(left) = level.micros_left() {
            // Not even the input can be paid.
            if ask.resolved.price.at_most(input, 0) > left {
                return None;
            }
            output = output.min(ask.resolved.price.output_for(left, input).unwrap_or(u64::MAX));
        }
    }
    (output >= ask.output.min(LEAST_OUTPUT) && output > 0).then_some(output)
}

fn exhausted(levels: &[BudgetRow], ask: &Ask) -> String {
    let usd = |micros: i64| micros as f64 / 1e6;
    let mut parts = Vec::new();
    for level in levels {
        let whose = level.whose();
        if let Some(limit) = level.limit_micros {
            let (spent, limit) = (usd(level.spent_micros), usd(limit));
            parts.push(format!("the {whose} has spent {spent:.4} of {limit:.4} USD"));
        }
        if let Some(limit) = level.limit_tokens {
            parts.push(format!("the {whose} has used {} of {limit} tokens", level.spent_tokens));
        }
    }
    format!(
        "the budget is exhausted: {}, and the next call needs some {} tokens of input",
        parts.join(", "),
        ask.input
    )
}

/// Charges an ended call. Tries on, in the background, where the database does not take it; waits for that no
/// longer than `patience`.
pub(super) async fn settle(
    environment: &Arc<Environment>,
    run: &Arc<ServedRun>,
    held: Held,
    mut ended: EndedCall,
    patience: Duration,
) {
    ended.error = ended.error.map(|error| environment.without_secrets(&error));
    let (done, written) = tokio::sync::oneshot::channel();
    let (this, run) = (Arc::clone(environment), Arc::clone(run));
    environment.lifecycle.spawn(async move {
        let open = Open {
            task: run.task,
            run: run.run,
            run_name: Some(&run.name),
            is_charged: run.is_charged,
            call: held.call,
            reserved: held.amount,
        };
        for attempt in 0..TRIES {
            match charge(&this, &open, &ended).await {
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(run = %run.run, call = %held.call, %error, attempt, "gateway.settlement_failed");
                    if this.lifecycle.hard().is_cancelled() && attempt >= 3 {
                        // It is charged as held when the run is next looked at.
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
        // The waiter may have lost its patience.
        let _ = done.send(());
    });
    let _ = tokio::time::timeout(patience, written).await;
}

/// A call that is not settled.
#[derive(Clone, Copy)]
struct Open<'a> {
    task: Uuid,
    run: Uuid,
    run_name: Option<&'a str>,
    /// Perhaps: then its run is looked at.
    is_charged: bool,
    call: Uuid,
    reserved: Amount,
}

/// One transaction: the call's row, both budgets, warnings that are due, the run's cost. True if it was open.
async fn charge(environment: &Environment, open: &Open<'_>, ended: &EndedCall) -> Result<bool, DbError> {
    let Open { task, run, run_name, call, mut reserved, .. } = *open;
    let mut transaction = environment.pool.begin().await?;
    if !db::model_calls::finish(&mut transaction, call, ended).await? {
        if db::model_calls::exists(&mut transaction, call).await? {
            return Ok(false);
        }
        // The database crashed and has lost the reservation, the held amounts with it.
        tracing::error!(%run, %call, "gateway.reservation_lost");
        reserved = Amount::default();
    }
    let tokens = ended.input_tokens.saturating_add(ended.output_tokens);
    let spent = Amount { micros: ended.cost_micros, tokens };
    let levels = db::budgets::settle(&mut transaction, task, run, reserved, spent).await?;
    if open.is_charged {
        db::quotas::settle(&mut transaction, run, call, reserved, spent).await?;
    }
    let mut events = Vec::new();
    for level in &levels {
        let percent = level.percent_spent();
        let due = [95, 80].into_iter().find(|due| percent >= i64::from(*due) && level.warned < *due);
        let Some(due) = due else { continue };
        db::budgets::set_warned(&mut transaction, task, level.run_id, due).await?;
        let whose = level.whose();
        let message = format!("model gateway: {percent} % of the {whose}'s budget is spent");
        events.push(notices::warning(task, run_name, message));
    }
    if !events.is_empty() {
        db::events::append(&mut transaction, task, Some(run), &events).await?;
    }
    if let Some(level) = levels.iter().find(|level| level.run_id == Some(run)) {
        db::budgets::write_cost(&mut transaction, run, level.spent_micros).await?;
    }
    transaction.commit().await?;
    if !events.is_empty() {
        db::notify::send_events(&environment.pool, &[task]).await?;
    }
    Ok(true)
}

/// Charges, as held, the calls of a run that a gateway left open when it died.
///
/// # Errors
/// [`DbError`].
pub(super) async fn settle_lost(environment: &Environment, run: Uuid) -> Result<(), DbError> {
    for open in db::model_calls::open_of_run(&environment.pool, run).await? {
        let age = (chrono::Utc::now() - open.started_at).num_milliseconds().clamp(0, i64::from(i32::MAX));
        let amount = Amount { micros: open.reserved_micros, tokens: open.reserved_tokens };
        let ended = EndedCall {
            outcome: CallOutcome::Lost,
            status: None,
            // Which of them were output, nobody knows.
            input_tokens: open.reserved_tokens,
            output_tokens: 0,
            cached_input_tokens: 0,
            cache_write_tokens: 0,
            cost_micros: open.reserved_micros,
            estimated: true,
            error: Some("the gateway ended in the middle of it".to_owned()),
            first_byte_ms: None,
            duration_ms: age as i32,
            content: None,
        };
        let lost = Open {
            task: open.task_id,
            run,
            run_name: None,
            is_charged: true,
            call: open.id,
            reserved: amount,
        };
        if charge(environment, &lost, &ended).await? {
            tracing::warn!(%run, call = %open.id, "gateway.lost_call_charged");
            let details = json!({ "call": open.id, "cost_micros": open.reserved_micros });
            let entry = notices::entry("model.charge_lost", run, Outcome::Done, details);
            let mut connection = environment.pool.acquire().await?;
            db::audit::append(&mut connection, &entry).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::providers::PricedModel;
    use crate::gateway::price::Price;

    fn level(run: bool, micros: Option<i64>, tokens: Option<i64>) -> BudgetRow {
        BudgetRow {
            task_id: Uuid::nil(),
            run_id: run.then(Uuid::nil),
            key_id: None,
            limit_micros: micros,
            limit_tokens: tokens,
            reserved_micros: 0,
            spent_micros: 0,
            reserved_tokens: 0,
            spent_tokens: 0,
            warned: 0,
        }
    }

    fn resolved() -> Resolved {
        let model = PricedModel {
            name: "m".to_owned(),
            input_usd_per_mtok: 1.0,
            output_usd_per_mtok: 10.0,
            cached_input_usd_per_mtok: None,
            cache_write_usd_per_mtok: Some(1.0),
            as_of: "2026-01-01".to_owned(),
        };
        Resolved { model: "m".to_owned(), price: Price::of(&model), price_note: None }
    }

    #[test]
    fn an_answer_is_made_as_long_as_can_be_paid() {
        let resolved = resolved();
        let ask = |output| Ask {
            model_asked: "m".to_owned(),
            resolved: resolved.clone(),
            input: 1000,
            most_input: 3000,
            output,
            streamed: true,
        };
        let fit = |task: BudgetRow, run: BudgetRow, output| fitting(&[task, run], &ask(output), 1000, false);
        let free = level(false, None, None);
        assert_eq!(fit(free.clone(), level(true, None, None), 32_000), Some(32_000));
        // 1000 of input, 10 for each token of output.
        assert_eq!(fit(free.clone(), level(true, Some(11_000), None), 32_000), Some(1000));
        assert_eq!(fit(level(false, Some(5000), None), level(true, Some(11_000), None), 32_000), Some(400));
        assert_eq!(fit(free.clone(), level(true, None, Some(1300)), 32_000), Some(300));
        assert_eq!(fit(free.clone(), level(true, None, Some(1100)), 32_000), None);
        assert_eq!(fit(free.clone(), level(true, Some(3000), None), 32_000), None);
        assert_eq!(fit(free.clone(), level(true, Some(999), None), 32_000), None);
        // A call that wants less than the least gets it.
        assert_eq!(fit(free.clone(), level(true, None, Some(1100)), 50), Some(50));
        let mut busy = level(true, Some(11_000), None);
        busy.reserved_micros = 10_000;
        assert_eq!(fitting(&[free.clone(), busy.clone()], &ask(32_000), 1000, false), None);
        assert_eq!(fitting(&[free, busy], &ask(32_000), 1000, true), Some(1000));
    }

    /// Rows of digits cost three times the estimate: many such calls at once must not.
    #[test]
    fn only_a_call_by_itself_goes_by_the_estimate() {
        let resolved = resolved();
        let ask = Ask {
            model_asked: "m".to_owned(),
            resolved,
            input: 1000,
            most_input: 3000,
            output: 1000,
            streamed: true,
        };
        let free = level(false, None, None);
        let with = |limit, reserved| {
            let mut run = level(true, Some(limit), None);
            run.reserved_micros = reserved;
            allowed(&[free.clone(), run], &ask)
        };
        assert_eq!(with(13_000, 0), Some(1000));
        assert_eq!(with(26_000, 13_000), Some(1000));
        // The answer is made shorter first.
        assert_eq!(with(10_000, 0), Some(700));
        // Its most does not fit: alone it goes, beside others it waits.
        assert_eq!(with(5000, 0), Some(400));
        assert_eq!(with(5001, 1), None);
        assert_eq!(with(3000, 0), None);
        // What is held on a level that has enough is no matter.
        let mut task = level(false, Some(1_000_000), None);
        task.reserved_micros = 500_000;
        assert_eq!(allowed(&[task, level(true, Some(5000), None)], &ask), Some(400));
        assert_eq!(worst(&ask, 400), Amount { micros: 7000, tokens: 3400 });
    }
}
