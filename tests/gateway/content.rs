//! What is said in a call is in the audit trail only where the operator wants it there: bounded, and without secrets.

use kage::domain::model::Dialect;
use serde_json::{Value, json};

use crate::support::database::stored;
use crate::support::runs::{NONE, Run};
use crate::support::{CREDENTIAL, World, request, script};

/// Of a vendor's form. Nobody has it.
const KEY: &str = "sk-ant-api03-Zq7Lw2Xv9Kt4Rm8Bn3Hd6Jf";

const SETTING: &str = "KAGE_GATEWAY_AUDIT_CONTENT_BYTES";

/// The content of a run's last call, and its whole entry.
async fn content(world: &World, run: &Run) -> (Value, Value) {
    world.calls(run).await;
    let (_, details) = world.audit(run, "model.call").await.pop().unwrap();
    (details["content"].clone(), details)
}

/// That no piece of a secret is anywhere in the trail. Its beginning alone tells its kind.
async fn assert_absent(world: &World, secret: &str, what: &str) {
    let trail: String =
        sqlx::query_scalar("SELECT coalesce(string_agg(e::text, ' '), '') FROM audit_entries e")
            .fetch_one(world.pool())
            .await
            .unwrap();
    for from in 0..secret.len() - 8 {
        let piece = &secret[from..from + 8];
        assert!(!trail.contains(piece), "{what}: {piece} is in {trail}");
    }
}

#[tokio::test]
async fn nothing_that_is_said_is_stored_unless_the_operator_wants_it() {
    let world = World::new().await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for stream in [true, false] {
            let prompt = script(&json!([{ "text": "an-answer-in-one-word" }]));
            let answer = world.call(run.id, dialect, &request(dialect, &prompt, stream)).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let (content, details) = content(&world, &run).await;
            assert_eq!((content, &details["outcome"]), (Value::Null, &json!("ok")), "{dialect}");
        }
    }
    let stored = stored(world.pool()).await;
    assert!(!stored.contains("an-answer-in-one-word") && !stored.contains("do as follows"), "{stored}");
}

#[tokio::test]
async fn both_sides_of_a_call_are_in_the_trail_where_they_are_wanted() {
    let world = World::with("", &[(SETTING, "65536")]).await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for stream in [true, false] {
            let prompt = script(&json!([{ "text": "an-answer" }])) + " \u{0}";
            let answer = world.call(run.id, dialect, &request(dialect, &prompt, stream)).await;
            let (content, details) = content(&world, &run).await;
            let sent = world.provider.requests().pop().unwrap();
            let request: Value = serde_json::from_str(content["request"].as_str().unwrap()).unwrap();
            assert_eq!(Some(request), sent.json, "as it was sent");
            assert_eq!(content["answer"], json!(answer.text), "{dialect}");
            assert_eq!(
                (&content["request_truncated"], &content["answer_truncated"]),
                (&json!(false), &json!(false))
            );
            assert!(!details.to_string().contains("x-api-key"), "no headers");
        }
    }
    // An error is an answer too.
    let run = world.open("anthropic", NONE, NONE).await;
    let body = request(Dialect::Anthropic, &script(&json!([{ "text": "x", "fault": "500" }])), true);
    let answer = world.call(run.id, Dialect::Anthropic, &body).await;
    assert_eq!(content(&world, &run).await.0["answer"], json!(answer.text));
}

#[tokio::test]
async fn what_is_said_is_cut_at_the_bound() {
    let world = World::with("", &[(SETTING, "64")]).await;
    let run = world.open("chat", NONE, NONE).await;
    for stream in [true, false] {
        let prompt = script(&json!([{ "text": "word ".repeat(1000) }]));
        let answer = world.call(run.id, Dialect::Chat, &request(Dialect::Chat, &prompt, stream)).await;
        assert!(answer.text.len() > 1000, "the CLI gets all of it");
        let (content, _) = content(&world, &run).await;
        for side in ["request", "answer"] {
            let text = content[side].as_str().unwrap();
            assert!(text.len() <= 64, "{side}: {text}");
            assert_eq!(content[format!("{side}_truncated")], true, "{side}");
        }
        assert!(content["request"].as_str().unwrap().len() > 50, "{content}");
    }
}

/// Attack: a key is in what the model is shown, and the model says it again; it comes in small pieces.
#[tokio::test]
async fn secrets_that_are_said_are_not_stored() {
    let world = World::with("", &[(SETTING, "65536")]).await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for (secret, stream) in [(KEY, false), (KEY, true), (CREDENTIAL, false)] {
            let turns = json!([{ "text": format!("it is {secret} ."), "fault": "drip:bytes=11,ms=2" }]);
            world.call(run.id, dialect, &request(dialect, &script(&turns), stream)).await;
            let (content, _) = content(&world, &run).await;
            assert_absent(&world, secret, &format!("{dialect} {stream}")).await;
            assert!(content["request"].as_str().unwrap().contains("*****"), "{content}");
            assert!(content["answer"].as_str().unwrap().contains("***"), "{dialect}: {content}");
        }
    }
}
