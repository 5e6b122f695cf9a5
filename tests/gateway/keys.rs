//! What a key may spend in a day, beside what its tasks and runs may.

use futures::future::join_all;
use kage::db;
use kage::domain::model::Dialect;
use serde_json::json;
use uuid::Uuid;

use crate::support::runs::{NONE, Run};
use crate::support::{World, request, script};

impl World {
    /// A key that may spend so much a day.
    async fn key(&self, id: &str, micros_a_day: i64) {
        sqlx::query(
            "INSERT INTO api_keys (id, name, secret_sha256, scopes, micros_a_day, charged)
             VALUES ($1, 'x', decode(repeat('00', 32), 'hex'), '{admin}', $2, ARRAY[$1])",
        )
        .bind(id)
        .bind(micros_a_day)
        .execute(self.pool())
        .await
        .expect("a key");
    }

    /// A run of a task of its own that counts against keys, with an open socket.
    async fn charged_to(&self, keys: &[&str]) -> Run {
        let task = self.task(NONE).await;
        let run = self.run_of(task, NONE).await;
        sqlx::query("UPDATE runs SET charged = $2 WHERE id = $1")
            .bind(run.id)
            .bind(keys)
            .execute(self.pool())
            .await
            .expect("charged");
        self.want(&run, "cli", "anthropic", None).await;
        let grant = self.answered(&run).await;
        assert!(grant.is_open(), "{grant:?}");
        run
    }

    /// What a key has reserved and spent, day by day.
    async fn days(&self, key: &str) -> Vec<(i64, i64)> {
        sqlx::query_as("SELECT reserved_micros, spent_micros FROM key_days WHERE key_id = $1 ORDER BY day")
            .bind(key)
            .fetch_all(self.pool())
            .await
            .expect("rows")
    }

    async fn stop_reason(&self, run: Uuid) -> Option<String> {
        db::grants::find(self.pool(), run).await.expect("a row").expect("a grant").stop_reason
    }
}

#[tokio::test]
async fn a_keys_day_is_shared_by_its_runs_and_ends_them_when_it_is_spent() {
    let world = World::new().await;
    world.key("mine", 12_000).await;
    world.key("other", 1_000_000).await;
    let (first, second) = (world.charged_to(&["mine"]).await, world.charged_to(&["mine"]).await);
    let (free, others) = (world.charged_to(&[]).await, world.charged_to(&["other"]).await);
    let usage = json!([{ "text": "x", "usage": { "input": 1000, "output": 1000 } }]);
    let body = request(Dialect::Anthropic, &script(&usage), false);
    assert_eq!(world.call(first.id, Dialect::Anthropic, &body).await.status, 200);
    assert_eq!(world.days("mine").await, [(0, 11_000)]);
    let refused = world.call(second.id, Dialect::Anthropic, &body).await;
    assert_eq!(refused.status, 402, "{refused:?}");
    let words = "the API key mine, today (UTC), has spent 0.0110 of 0.0120 USD";
    assert!(refused.text.contains(words), "{refused:?}");
    assert_eq!(world.stop_reason(second.id).await.as_deref(), Some("budget_exhausted"));
    assert!(world.warnings(&second).await.last().expect("it is told").contains(words));
    // Others' runs go on, and the next day is another.
    for run in [&free, &others] {
        assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
    }
    assert_eq!((world.days("other").await, world.days("mine").await), (vec![(0, 11_000)], vec![(0, 11_000)]));
    sqlx::query("UPDATE key_days SET day = day - 1").execute(world.pool()).await.expect("a day later");
    assert_eq!(world.call(first.id, Dialect::Anthropic, &body).await.status, 200);
    assert_eq!(world.days("mine").await, [(0, 11_000), (0, 11_000)]);
}

#[tokio::test]
async fn many_at_once_never_spend_more_than_a_keys_day() {
    let world =
        World::with("[cli.cli]\nrequests_per_minute = 1000\n", &[("KAGE_GATEWAY_CALLS", "100")]).await;
    // Each holds some 10,100 micro-USD at most and costs 1500. The child counts against both.
    world.key("parent", 25_000).await;
    world.key("child", 1_000_000).await;
    let runs = [world.charged_to(&["child", "parent"]).await, world.charged_to(&["parent"]).await];
    let slow = script(&json!([{ "text": "x", "fault": "delay:ms=300" }]));
    let body = request(Dialect::Anthropic, &slow, false);
    let calls = (0..40).map(|number| world.call(runs[number % 2].id, Dialect::Anthropic, &body));
    let answers = join_all(calls).await;
    let good = answers.iter().filter(|answer| answer.status == 200).count();
    let later = answers.iter().filter(|answer| answer.status == 429).count();
    assert!((2..=3).contains(&good), "{good}: {answers:?}");
    assert_eq!(good + later, 40, "{answers:?}");
    for run in &runs {
        world.calls(run).await;
        assert_eq!(world.stop_reason(run.id).await, None, "it is not spent");
    }
    assert_eq!(world.days("parent").await, [(0, good as i64 * 1500)]);
}

/// A call that began before midnight counts against the day on which it began, and gives back what it held there.
#[tokio::test]
async fn a_call_over_midnight_is_settled_on_its_own_day() {
    let world = World::new().await;
    world.key("mine", 100_000).await;
    let run = world.charged_to(&["mine"]).await;
    let slow = script(&json!([{ "text": "x", "fault": "delay:ms=2000" }]));
    let body = request(Dialect::Anthropic, &slow, false);
    let midnight = async {
        world
            .until(
                "it is under way",
                "SELECT count(*) = 1 FROM model_calls WHERE run_id = $1 AND outcome = 'open'",
                run.id,
            )
            .await;
        for statement in
            ["UPDATE key_days SET day = day - 1", "UPDATE model_calls SET charged_day = charged_day - 1"]
        {
            sqlx::query(statement).execute(world.pool()).await.expect("a day later");
        }
    };
    let (answer, ()) = tokio::join!(world.call(run.id, Dialect::Anthropic, &body), midnight);
    assert_eq!(answer.status, 200, "{answer:?}");
    world.calls(&run).await;
    assert_eq!(world.days("mine").await, [(0, 1500)], "nothing on the new day, nothing held on the old");
}
