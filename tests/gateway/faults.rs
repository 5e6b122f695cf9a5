//! What goes wrong at a provider reaches the CLI in its dialect's own words, and ends.

use std::time::Duration;

use kage::domain::model::Dialect;
use kage_model_server::server::Fixed;
use serde_json::json;

use crate::support::provider::Scripted;
use crate::support::runs::{NONE, Run};
use crate::support::{World, eventually, fault, path, request};

#[tokio::test]
async fn statuses_are_passed_on_in_the_dialects_words() {
    let world = World::new().await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for (kind, status) in [("400", 400), ("429:retry-after=7", 429), ("500", 500), ("529", 529)] {
            let answer = world.call(run.id, dialect, &request(dialect, &fault(kind), true)).await;
            assert_eq!(answer.status, status, "{dialect} {kind}: {answer:?}");
            assert!(answer.json().get("error").is_some(), "{dialect} {kind}: {answer:?}");
            if status == 429 {
                assert_eq!(answer.headers["retry-after"], "7");
            }
        }
        let calls = world.calls(&run).await;
        let statuses: Vec<_> = calls.iter().map(|call| call.status.unwrap()).collect();
        assert_eq!(statuses, [400, 429, 500, 529]);
        assert!(calls.iter().all(|call| call.outcome == "upstream_error"), "{calls:?}");
        world.warned(&run, "HTTP 529").await;
    }
}

#[tokio::test]
async fn the_operators_trouble_with_a_provider_stays_his() {
    let world = World::new().await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for kind in ["401", "402", "403"] {
            let answer = world.call(run.id, dialect, &request(dialect, &fault(kind), true)).await;
            assert!(answer.status == 403 || answer.status == 400, "{dialect} {kind}: {answer:?}");
            assert!(answer.text.contains("the operator's credential or account"), "{answer:?}");
            assert_eq!(answer.headers["x-should-retry"], "false");
        }
        assert!(
            world
                .calls(&run)
                .await
                .iter()
                .all(|call| call.outcome == "upstream_auth" && call.cost_micros == 0)
        );
        world.warned(&run, "HTTP 401").await;
        let audit = world.audit(&run, "model.refuse").await;
        assert!(audit.iter().any(|(_, details)| details["kind"] == "upstream_auth"), "{audit:?}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_the_dialects_error() {
    let settings = [("KAGE_GATEWAY_IDLE_SECS", "1"), ("KAGE_GATEWAY_ANSWER_BYTES", "100000")];
    let world = World::with("", &settings).await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for (kind, outcome) in [
            ("cut", "broken"),
            ("garbage", "broken"),
            ("stall", "timeout"),
            ("endless", "broken"),
            ("huge:bytes=300000", "broken"),
        ] {
            let answer = world.call(run.id, dialect, &request(dialect, &fault(kind), true)).await;
            assert_eq!(answer.status, 200, "{dialect} {kind}");
            assert!(answer.text.len() < 150_000, "{dialect} {kind}: {}", answer.text.len());
            // Ollama's clients would take a clean end for a short answer.
            assert_eq!(answer.broken, dialect == Dialect::Ollama, "{dialect} {kind}");
            let tail =
                &answer.text[answer.text.floor_char_boundary(answer.text.len().saturating_sub(1500))..];
            assert!(tail.contains("Kage gateway"), "{dialect} {kind}: {tail}");
            let last = answer.text.trim_end().lines().last().unwrap();
            let json = last.strip_prefix("data: ").unwrap_or(last);
            assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{dialect} {kind}: {last}");
            let calls = world.calls(&run).await;
            assert_eq!(calls.last().unwrap().outcome, outcome, "{dialect} {kind}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_gives_no_answer_is_an_error_of_its_dialect() {
    let world = World::with("", &[("KAGE_GATEWAY_IDLE_SECS", "1")]).await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        for (kind, status, outcome) in [
            ("reset", 502, "broken"),
            ("silent", 504, "timeout"),
            ("redirect", 502, "upstream_error"),
            ("cut", 502, "broken"),
            ("garbage", 502, "broken"),
        ] {
            let answer = world.call(run.id, dialect, &request(dialect, &fault(kind), false)).await;
            assert_eq!(answer.status, status, "{dialect} {kind}: {answer:?}");
            assert!(answer.json().get("error").is_some(), "{answer:?}");
            let calls = world.calls(&run).await;
            assert_eq!(calls.last().unwrap().outcome, outcome, "{dialect} {kind}");
        }
        // Nothing is sent twice, and no redirect is followed.
        let sent = world.provider.requests().iter().filter(|sent| sent.dialect.is_some()).count();
        assert_eq!(sent % 5, 0, "{sent}");
    }
}

#[tokio::test]
async fn a_slow_drip_ends_with_the_calls_time() {
    let world = World::with("", &[("KAGE_GATEWAY_CALL_SECS", "1")]).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let body = request(Dialect::Anthropic, &fault("drip:bytes=4,ms=50"), true);
    let answer = world.call(run.id, Dialect::Anthropic, &body).await;
    assert!(answer.text.contains("too long"), "{answer:?}");
    assert_eq!(world.calls(&run).await[0].outcome, "timeout");
}

#[tokio::test]
async fn only_where_nothing_was_sent_it_is_tried_again() {
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = away.local_addr().unwrap().port();
    drop(away);
    let more = format!(
        "[[provider]]\nname = \"away\"\ndialect = \"chat\"\nbase_url = \"http://127.0.0.1:{port}\"\nfree = true\nallow = [\"*\"]\n[cli.away]\nprovider = \"away\"\n"
    );
    let world = World::with(&more, &[]).await;
    let run = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&run, "away", "chat", None).await;
    assert!(world.answered(&run).await.is_open());
    let body = request(Dialect::Chat, "hello", true);
    let answer = world.call(run.id, Dialect::Chat, &body).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(!answer.text.contains("127.0.0.1"), "{answer:?}");
    let calls = world.calls(&run).await;
    assert_eq!((calls[0].outcome.as_str(), calls[0].cost_micros), ("unreachable", 0));
    // Somebody comes to listen while it is tried.
    let (client, url) = (world.client(run.id), "http://any/v1/chat/completions");
    let call = tokio::spawn(client.post(url).json(&body).send());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    drop(stream);
    assert!(call.await.unwrap().unwrap().status().as_u16() >= 500);
}

#[tokio::test]
async fn who_hangs_up_pays_and_the_provider_is_let_go() {
    let world = World::new().await;
    for dialect in Dialect::ALL {
        let run = world.open(dialect.as_str(), NONE, NONE).await;
        let body = request(dialect, &fault("stall"), true);
        let mut answer = world
            .client(run.id)
            .post(format!("http://any{}", path(dialect, true)))
            .json(&body)
            .send()
            .await
            .unwrap();
        assert!(answer.chunk().await.unwrap().is_some());
        drop(answer);
        let calls = world.calls(&run).await;
        assert_eq!((calls[0].outcome.as_str(), calls[0].estimated), ("client_gone", true), "{dialect}");
        // No less than was held, and no less than the provider has counted by then.
        assert!(calls[0].cost_micros >= calls[0].reserved_micros, "{:?}", calls[0]);
    }
}

#[tokio::test]
async fn an_answer_that_is_none_is_not_passed_on() {
    let secret = "sk-echoed-by-the-provider-7731";
    for (name, fixed, status) in [
        ("html", fixed(200, "text/html", "<script>"), 502),
        (
            "gzip",
            Fixed {
                headers: vec![("content-encoding".to_owned(), "gzip".to_owned())],
                ..fixed(200, "application/json", "{}")
            },
            502,
        ),
        (
            "headers",
            Fixed {
                headers: (0..10_000).map(|n| (format!("x-more-{n}"), "y".to_owned())).collect(),
                ..fixed(200, "application/json", "{}")
            },
            502,
        ),
        ("page", fixed(503, "text/html", "<html>secret internals</html>"), 503),
        (
            "echo",
            fixed(400, "application/json", &format!(r#"{{"error":{{"message":"bad key {secret}"}}}}"#)),
            400,
        ),
        ("large", fixed(400, "application/json", &format!(r#"{{"error":"{}"}}"#, "x".repeat(100_000))), 400),
    ] {
        let provider = Scripted::with(None, Some(fixed)).await;
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, secret).unwrap();
        let more = format!(
            "[[provider]]\nname = \"odd\"\ndialect = \"chat\"\nbase_url = \"{}\"\ncredential = \"file:{}\"\nfree = true\nallow = [\"*\"]\n[cli.odd]\nprovider = \"odd\"\n",
            provider.url(),
            key.display()
        );
        let world = World::with(&more, &[]).await;
        let run = world.run_of(world.task(NONE).await, NONE).await;
        world.want(&run, "odd", "chat", None).await;
        assert!(world.answered(&run).await.is_open());
        let answer = world.call(run.id, Dialect::Chat, &request(Dialect::Chat, &fault("fixed"), false)).await;
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        assert!(answer.text.contains("Kage gateway") && answer.text.len() < 2000, "{name}: {answer:?}");
        assert!(!answer.text.contains(secret) && !answer.text.contains("internals"), "{name}: {answer:?}");
    }
}

/// A run that is served by a provider which always answers so.
async fn answering(
    dialect: Dialect,
    fixed: Fixed,
    secret: &str,
) -> (World, Scripted, Run, tempfile::TempDir) {
    let provider = Scripted::with(None, Some(fixed)).await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, secret).unwrap();
    let more = format!(
        "[[provider]]\nname = \"odd\"\ndialect = \"{dialect}\"\nbase_url = \"{}\"\ncredential = \"file:{}\"\nfree = true\nallow = [\"*\"]\n[cli.odd]\nprovider = \"odd\"\n",
        provider.url(),
        key.display()
    );
    let world = World::with(&more, &[]).await;
    let run = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&run, "odd", dialect.as_str(), None).await;
    assert!(world.answered(&run).await.is_open());
    (world, provider, run, folder)
}

/// Attack: an error event, or any other, that says which key was wrong.
#[tokio::test]
async fn a_provider_that_repeats_our_key_in_a_stream_is_cut_off() {
    let secret = "sk-echoed-by-the-provider-7731";
    let words = format!("Incorrect API key provided: {secret}");
    let error = json!({ "type": "error", "message": words, "error": { "message": words } });
    for (dialect, kind, body) in [
        (Dialect::Chat, "text/event-stream", format!("data: {error}\n\n")),
        (Dialect::Anthropic, "text/event-stream", format!("event: error\ndata: {error}\n\n")),
        (Dialect::Responses, "text/event-stream", format!("event: error\ndata: {error}\n\n")),
        (Dialect::Gemini, "text/event-stream", error.to_string()),
        (Dialect::Ollama, "application/x-ndjson", format!("{}\n", json!({ "error": words }))),
        (Dialect::Chat, "application/json", error.to_string()),
    ] {
        let (world, _provider, run, _folder) = answering(dialect, fixed(200, kind, &body), secret).await;
        let stream = kind != "application/json";
        let answer = world.call(run.id, dialect, &request(dialect, &fault("fixed"), stream)).await;
        assert!(!answer.text.contains(secret), "{dialect} {kind}: {answer:?}");
        assert!(answer.text.contains("repeats the operator's credential"), "{dialect} {kind}: {answer:?}");
        assert_eq!(world.calls(&run).await[0].outcome, "broken", "{dialect} {kind}");
        let stored = crate::support::database::stored(world.pool()).await;
        assert!(!stored.contains(secret), "{dialect} {kind}");
    }
}

#[tokio::test]
async fn googles_answer_to_a_wrong_key_is_the_operators_trouble() {
    let error = |reason: &str| {
        json!({ "error": { "code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": [
            { "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com" } ] } })
    };
    for (reason, status, outcome) in
        [("API_KEY_INVALID", 403, "upstream_auth"), ("FIELD_INVALID", 400, "upstream_error")]
    {
        let fixed = fixed(400, "application/json", &error(reason).to_string());
        let (world, _provider, run, _folder) = answering(Dialect::Gemini, fixed, "a-wrong-key").await;
        let answer =
            world.call(run.id, Dialect::Gemini, &request(Dialect::Gemini, &fault("fixed"), true)).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.text.contains("the operator's credential or account"), status == 403, "{answer:?}");
        assert_eq!(world.calls(&run).await[0].outcome, outcome);
    }
}

fn fixed(status: u16, kind: &str, body: &str) -> Fixed {
    Fixed {
        status,
        headers: vec![("content-type".to_owned(), kind.to_owned())],
        body: body.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn a_database_that_is_away_refuses_calls_and_loses_none() {
    let world = World::with("", &[("KAGE_DATABASE_ACQUIRE_SECS", "1")]).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let body = request(Dialect::Anthropic, "hello", false);
    // Whoever books waits for this lock, as for a database that hangs.
    let mut lock = world.pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE model_calls IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let call = world.call(run.id, Dialect::Anthropic, &body);
    tokio::pin!(call);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut call).await.is_err());
    assert!(world.provider.requests().is_empty(), "sent before it was booked");
    lock.commit().await.unwrap();
    assert_eq!(call.await.status, 200);
    // The roles lose their rights: nothing can be booked, so nothing is sent.
    sqlx::query("REVOKE INSERT ON model_calls FROM kage_gateway").execute(world.pool()).await.unwrap();
    let before = world.provider.requests().len();
    let answer = world.call(run.id, Dialect::Anthropic, &body).await;
    assert_eq!(answer.status, 529, "{answer:?}");
    assert_eq!(world.provider.requests().len(), before);
    sqlx::query("GRANT INSERT ON model_calls TO kage_gateway").execute(world.pool()).await.unwrap();
    // A settlement that fails is made later.
    sqlx::query("REVOKE UPDATE ON model_calls FROM kage_gateway").execute(world.pool()).await.unwrap();
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
    sqlx::query("GRANT UPDATE ON model_calls TO kage_gateway").execute(world.pool()).await.unwrap();
    let calls = world.calls(&run).await;
    assert!(calls.iter().all(|call| call.outcome == "ok"), "{calls:?}");
    let settled = eventually("nothing is held", async || {
        let (_, of_run) = world.budgets(&run).await;
        (of_run.reserved_micros == 0).then_some(of_run)
    });
    assert_eq!(settled.await.spent_micros, 2 * 1500);
}
