//! Money and tokens: held before, charged after, and an end when they are spent.

use futures::future::join_all;
use kage::db;
use kage::db::budgets::Limits;
use kage::domain::model::Dialect;
use serde_json::json;
use sqlx::postgres::PgListener;

use crate::support::runs::{NONE, micros, tokens};
use crate::support::{World, fault, request, script};

/// 1000 in, 50 out: 1000 + 500 micro-USD, where the script does not say otherwise.
const USUAL_COST: i64 = 1500;

#[tokio::test]
async fn a_spent_budget_ends_the_run_at_once_in_every_dialect() {
    let world = World::new().await;
    let mut listener = PgListener::connect_with(world.pool()).await.unwrap();
    listener.listen(db::notify::CANCEL).await.unwrap();
    for (dialect, status) in [
        (Dialect::Anthropic, 402),
        (Dialect::Responses, 429),
        (Dialect::Chat, 402),
        (Dialect::Gemini, 402),
        (Dialect::Ollama, 402),
    ] {
        // Enough for one answer of 1000 tokens.
        let run = world.open(dialect.as_str(), NONE, micros(12_000)).await;
        let usage = json!([{ "text": "x", "usage": { "input": 1000, "output": 1000 } }]);
        let body = request(dialect, &script(&usage), true);
        assert_eq!(world.call(run.id, dialect, &body).await.status, 200);
        let refused = world.call(run.id, dialect, &body).await;
        assert_eq!(refused.status, status, "{dialect}: {refused:?}");
        assert_eq!(refused.headers["x-should-retry"], "false");
        assert!(refused.text.contains("budget is exhausted"), "{refused:?}");
        // All of it is committed before the CLI has its answer.
        let grant = db::grants::find(world.pool(), run.id).await.unwrap().unwrap();
        assert_eq!(grant.stop_reason.as_deref(), Some("budget_exhausted"));
        let warnings = world.warnings(&run).await;
        assert!(warnings.last().unwrap().contains("0.0110 of 0.0120 USD"), "{warnings:?}");
        let audit = world.audit(&run, "model.stop").await;
        assert_eq!((audit.len(), audit[0].0.as_str()), (1, "done"));
        assert_eq!(listener.recv().await.unwrap().payload(), run.task.to_string());
        // From now on for every call, without another word.
        for _ in 0..3 {
            assert_eq!(world.call(run.id, dialect, &body).await.status, status);
        }
        assert_eq!(world.warnings(&run).await, warnings);
        assert_eq!(world.calls(&run).await.len(), 1);
    }
}

#[tokio::test]
async fn many_at_once_never_spend_more_than_there_is() {
    let world =
        World::with("[cli.cli]\nrequests_per_minute = 1000\n", &[("KAGE_GATEWAY_CALLS", "100")]).await;
    // Each holds some 10,100 micro-USD at most and costs 1500.
    let limit = 25_000;
    let run = world.open("anthropic", NONE, micros(limit)).await;
    let slow = script(&json!([{ "text": "x", "fault": "delay:ms=300" }]));
    let body = request(Dialect::Anthropic, &slow, false);
    let answers = join_all((0..50).map(|_| world.call(run.id, Dialect::Anthropic, &body))).await;
    let good = answers.iter().filter(|answer| answer.status == 200).count();
    let later = answers.iter().filter(|answer| answer.status == 429).count();
    assert!((2..=3).contains(&good), "{good}");
    // The budget is not spent: the others may come again, and the run goes on.
    assert_eq!(good + later, 50, "{answers:?}");
    assert!(answers.iter().any(|answer| answer.headers.contains_key("retry-after")));
    let (task, of_run) = world.budgets(&run).await;
    assert_eq!(of_run.spent_micros, good as i64 * USUAL_COST);
    assert_eq!((of_run.reserved_micros, of_run.reserved_tokens, task.reserved_micros), (0, 0, 0));
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
    assert!(db::grants::find(world.pool(), run.id).await.unwrap().unwrap().stop_reason.is_none());
}

#[tokio::test]
async fn runs_of_a_task_share_its_budget() {
    let world = World::new().await;
    let task = world.task(tokens(2_500)).await;
    let first = world.open_in(task, "chat", NONE).await;
    let second = world.open_in(task, "chat", NONE).await;
    let body = request(
        Dialect::Chat,
        &script(&json!([{ "text": "x", "usage": { "input": 1000, "output": 800 } }])),
        false,
    );
    assert_eq!(world.call(first.id, Dialect::Chat, &body).await.status, 200);
    // 700 are left, and the answer is made that much shorter.
    assert_eq!(world.call(second.id, Dialect::Chat, &body).await.status, 200);
    let sent: Vec<u64> = world
        .provider
        .requests()
        .iter()
        .map(|sent| {
            let json = sent.json.clone().unwrap();
            json["max_completion_tokens"].as_u64().or(json["max_tokens"].as_u64()).unwrap()
        })
        .collect();
    assert_eq!(sent[0], 1000);
    assert!(sent[1] < 700 && sent[1] >= 256, "{sent:?}");
    // The provider said more than was asked for: it is charged all the same, and then nothing is left.
    let refused = world.call(first.id, Dialect::Chat, &body).await;
    assert_eq!(refused.status, 402, "{refused:?}");
    assert!(refused.text.contains("the task has used 3600 of 2500 tokens"), "{refused:?}");
    let (task, of_second) = world.budgets(&second).await;
    assert_eq!((task.spent_tokens, of_second.spent_tokens), (3600, 1800));
}

#[tokio::test]
async fn an_operators_limit_holds_where_the_task_has_a_wider_one() {
    let world = World::with("[cli.cli]\nbudget_usd = 0.001\n", &[]).await;
    for limits in [NONE, micros(1_000_000)] {
        let run = world.open("chat", NONE, limits).await;
        let (_, of_run) = world.budgets(&run).await;
        assert_eq!(of_run.limit_micros, Some(1000));
    }
    let run = world.open("chat", NONE, Limits { micros: Some(10), tokens: Some(5) }).await;
    let (_, of_run) = world.budgets(&run).await;
    assert_eq!((of_run.limit_micros, of_run.limit_tokens), (Some(10), Some(5)));
    assert_eq!(world.call(run.id, Dialect::Chat, &request(Dialect::Chat, "hi", false)).await.status, 402);
    assert!(world.provider.requests().is_empty());
}

#[tokio::test]
async fn warnings_come_at_80_and_95_percent_once() {
    let world = World::new().await;
    let run = world.open("anthropic", NONE, tokens(10_000)).await;
    let spend = |input: u64| script(&json!([{ "text": "x", "usage": { "input": input, "output": 0 } }]));
    for (input, warnings) in [(7_900, 0), (200, 1), (500, 1), (900, 2), (100, 2)] {
        let body = request(Dialect::Anthropic, &spend(input), true);
        let answer = world.call(run.id, Dialect::Anthropic, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(world.warnings(&run).await.len(), warnings, "after {input}");
    }
    let warnings = world.warnings(&run).await;
    assert!(warnings[0].contains("81 % of the run's budget"), "{warnings:?}");
    assert!(warnings[1].contains("95 % of the run's budget"), "{warnings:?}");
}

#[tokio::test]
async fn what_breaks_or_is_not_told_is_charged_as_held_or_as_counted() {
    let world = World::new().await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for kind in ["cut", "no-usage", "garbage"] {
            world.call(run.id, dialect, &request(dialect, &fault(kind), true)).await;
        }
        for (call, kind) in world.calls(&run).await.iter().zip(["cut", "no-usage", "garbage"]) {
            assert!(call.estimated, "{dialect} {kind}: {call:?}");
            if matches!(dialect, Dialect::Anthropic | Dialect::Gemini) && kind != "no-usage" {
                // They count the input in their first event, and that is more than was held for it.
                assert_eq!(call.input_tokens, 1000, "{kind}: {call:?}");
                assert!(call.cost_micros > call.reserved_micros, "{kind}: {call:?}");
            } else {
                assert_eq!(call.cost_micros, call.reserved_micros, "{dialect} {kind}: {call:?}");
            }
            assert_eq!(call.output_tokens, 1000, "{dialect} {kind}: {call:?}");
            assert_eq!(
                call.outcome,
                if kind == "no-usage" { "ok" } else { "broken" },
                "{dialect} {kind}: {call:?}"
            );
        }
        // What never began costs nothing.
        for kind in ["500", "429:retry-after=1", "400"] {
            world.call(run.id, dialect, &request(dialect, &fault(kind), true)).await;
        }
        let calls = world.calls(&run).await;
        assert!(calls[3..].iter().all(|call| call.cost_micros == 0 && !call.estimated), "{calls:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_died_is_charged_for_as_held() {
    let mut world = World::new().await;
    let run = world.open("anthropic", NONE, NONE).await;
    // As a killed gateway leaves it: an amount held, a call open, the socket's file in place.
    let stall = request(Dialect::Anthropic, &fault("stall"), true);
    let client = world.client(run.id);
    let sent = client.post("http://any/v1/messages").json(&stall).send().await.unwrap();
    let (task, held) = world.budgets(&run).await;
    assert!(held.reserved_micros > 10_000 && task.reserved_micros == held.reserved_micros);
    let copy: (uuid::Uuid, i64, i64) =
        sqlx::query_as("SELECT id, reserved_micros, reserved_tokens FROM model_calls WHERE run_id = $1")
            .bind(run.id)
            .fetch_one(world.pool())
            .await
            .unwrap();
    drop(sent);
    world.calls(&run).await;
    world.stop().await;
    sqlx::query("UPDATE model_calls SET outcome = 'open', estimated = false, cost_micros = 0 WHERE id = $1")
        .bind(copy.0)
        .execute(world.pool())
        .await
        .unwrap();
    sqlx::query("UPDATE model_budgets SET reserved_micros = $2, reserved_tokens = $3, spent_micros = 0, spent_tokens = 0 WHERE task_id = $1")
        .bind(run.task)
        .bind(copy.1)
        .bind(copy.2)
        .execute(world.pool())
        .await
        .unwrap();
    std::os::unix::net::UnixListener::bind(world.socket(run.id)).map(drop).unwrap();
    world.start().await;
    let calls = world.calls(&run).await;
    assert_eq!((calls[0].outcome.as_str(), calls[0].estimated, calls[0].cost_micros), ("lost", true, copy.1));
    let (task, of_run) = world.budgets(&run).await;
    for level in [task, of_run] {
        assert_eq!((level.reserved_micros, level.spent_micros), (0, copy.1));
        assert_eq!((level.reserved_tokens, level.spent_tokens), (0, copy.2));
    }
    assert_eq!(world.audit(&run, "model.charge_lost").await.len(), 1);
    // And the run is served on.
    crate::support::eventually("the socket answers again", async || {
        tokio::net::UnixStream::connect(world.socket(run.id)).await.ok()
    })
    .await;
    let body = request(Dialect::Anthropic, "hello", false);
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
}

#[tokio::test]
async fn a_reservation_that_the_database_lost_is_charged_all_the_same() {
    let world = World::new().await;
    let run = world.open("anthropic", NONE, NONE).await;
    let slow = script(&json!([{ "text": "x", "fault": "delay:ms=1500" }]));
    let body = request(Dialect::Anthropic, &slow, false);
    let lose = async {
        crate::support::eventually("the call is open", async || {
            let gone =
                sqlx::query("DELETE FROM model_calls WHERE run_id = $1").bind(run.id).execute(world.pool());
            (gone.await.unwrap().rows_affected() == 1).then_some(())
        })
        .await;
        sqlx::query("UPDATE model_budgets SET reserved_micros = 0, reserved_tokens = 0 WHERE task_id = $1")
            .bind(run.task)
            .execute(world.pool())
            .await
            .unwrap();
    };
    let (answer, ()) = tokio::join!(world.call(run.id, Dialect::Anthropic, &body), lose);
    assert_eq!(answer.status, 200, "{answer:?}");
    let (task, of_run) = world.budgets(&run).await;
    assert_eq!((task.spent_micros, of_run.spent_micros), (USUAL_COST, USUAL_COST));
    assert_eq!((task.reserved_micros, of_run.reserved_micros), (0, 0));
}

/// Attack: hang up while the reservation is being committed. Nobody would then know what is held.
#[tokio::test]
async fn who_hangs_up_while_it_is_booked_leaves_nothing_held() {
    let world = World::new().await;
    let run = world.open("anthropic", NONE, NONE).await;
    // A commit that takes its time.
    sqlx::raw_sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON model_calls DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .execute(world.pool())
    .await
    .unwrap();
    let body = request(Dialect::Anthropic, "hello", false);
    let call = world.call(run.id, Dialect::Anthropic, &body);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(500), call).await.is_err());
    crate::support::eventually("it is in the books", async || {
        (world.calls(&run).await.len() == 1).then_some(())
    })
    .await;
    let calls = world.calls(&run).await;
    assert_eq!((calls[0].outcome.as_str(), calls[0].cost_micros), ("client_gone", 0), "{calls:?}");
    let (task, of_run) = world.budgets(&run).await;
    assert_eq!((task.reserved_micros, of_run.reserved_micros, of_run.reserved_tokens), (0, 0, 0));
    assert!(world.provider.requests().is_empty(), "sent for nobody");
}
