//! What a hostile CLI can do to the gateway and to other runs: little.

use std::time::Duration;

use futures::future::join_all;
use kage::domain::model::Dialect;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::runs::NONE;
use crate::support::{World, eventually, fault, request, script};

#[tokio::test]
async fn refusals_cannot_flood_the_event_stream() {
    let world = World::with("", &[("KAGE_GATEWAY_REQUESTS_PER_MINUTE", "100000")]).await;
    let run = world.open("chat", NONE, NONE).await;
    for _ in 0..100 {
        assert_eq!(world.post(run.id, "/v1/files", &json!({})).await.status, 404);
    }
    world.close(&run).await;
    let warning = world.warned(&run, "more refusals were not told").await;
    assert!(warning.contains("90 more"), "{warning}");
    assert_eq!(world.warnings(&run).await.len(), 11);
    let audit = world.audit(&run, "model.refuse").await;
    assert_eq!(audit.len(), 11);
    assert!(audit.iter().any(|(_, details)| details["untold"] == 90), "{audit:?}");
}

#[tokio::test]
async fn a_minute_holds_so_many_requests() {
    let world = World::with("[cli.cli]\nrequests_per_minute = 3\n", &[]).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let body = request(Dialect::Anthropic, "hello", false);
    for _ in 0..3 {
        assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
    }
    let answer = world.call(run.id, Dialect::Anthropic, &body).await;
    assert_eq!(answer.status, 429, "{answer:?}");
    let secs: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&secs), "{secs}");
    // Another run has a minute of its own.
    let other = world.open("anthropic", NONE, NONE).await;
    assert_eq!(world.call(other.id, Dialect::Anthropic, &body).await.status, 200);
}

#[tokio::test]
async fn a_run_has_so_many_calls_at_once() {
    let world = World::with("", &[("KAGE_GATEWAY_CALLS", "2")]).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let body =
        request(Dialect::Anthropic, &script(&json!([{ "text": "x", "fault": "delay:ms=500" }])), false);
    let answers = join_all((0..5).map(|_| world.call(run.id, Dialect::Anthropic, &body))).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429, 429, 429]);
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
}

#[tokio::test]
async fn bodies_are_bounded_in_size_and_time() {
    let settings = [
        ("KAGE_GATEWAY_BODY_BYTES", "100000"),
        ("KAGE_GATEWAY_BODY_SECS", "1"),
        ("KAGE_GATEWAY_HEAD_SECS", "1"),
    ];
    let world = World::with("", &settings).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let answer = world
        .call(run.id, Dialect::Anthropic, &request(Dialect::Anthropic, &"x".repeat(200_000), false))
        .await;
    assert_eq!(answer.status, 413, "{answer:?}");
    // Without a length it is seen as it comes.
    let stream = futures::stream::iter((0..300).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1000])));
    let sent = world
        .client(run.id)
        .post("http://any/v1/messages")
        .body(reqwest::Body::wrap_stream(stream))
        .send()
        .await;
    // It may hang up before all is sent.
    assert!(sent.is_err() || sent.is_ok_and(|answer| answer.status() == 413));
    for text in
        ["POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", "POST /v1/mess", ""]
    {
        let mut stream = UnixStream::connect(world.socket(run.id)).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await;
        read.expect("it is not kept for ever").unwrap();
        assert!(answer.is_empty() || answer.contains("in time"), "{answer}");
    }
    let body = request(Dialect::Anthropic, "hello", false);
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
}

#[tokio::test]
async fn who_holds_all_of_his_connections_keeps_nobody_else_out() {
    let world = World::with("", &[("KAGE_GATEWAY_CONNECTIONS", "4"), ("KAGE_GATEWAY_HEAD_SECS", "2")]).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let other = world.open("anthropic", NONE, NONE).await;
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(UnixStream::connect(world.socket(run.id)).await.unwrap());
    }
    let body = request(Dialect::Anthropic, "hello", false);
    let answer =
        tokio::time::timeout(Duration::from_secs(20), world.call(other.id, Dialect::Anthropic, &body)).await;
    assert_eq!(answer.expect("another run's socket is free").status, 200);
    // And his own comes free when the heads do not come.
    drop(held.split_off(4));
    assert_eq!(world.call(run.id, Dialect::Anthropic, &body).await.status, 200);
}

#[tokio::test]
async fn a_cli_that_does_not_read_holds_the_provider_back() {
    let world = World::with("", &[("KAGE_GATEWAY_ANSWER_BYTES", "1073741824")]).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let body = request(Dialect::Anthropic, &fault("endless"), true).to_string();
    let mut stream = UnixStream::connect(world.socket(run.id)).await.unwrap();
    let head = format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut first = [0; 64];
    stream.read_exact(&mut first).await.unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200"));
    let before = resident();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // The provider of this test lives in the same process: neither piles up what nobody takes.
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");
    drop(stream);
    assert_eq!(world.calls(&run).await[0].outcome, "client_gone");
}

/// Attack: many runs, each within its own limits.
#[tokio::test]
async fn the_requests_of_all_runs_share_one_memory() {
    // For one request of up to 128 KiB at a time.
    let settings = [("KAGE_GATEWAY_BODY_BYTES", "131072"), ("KAGE_GATEWAY_MEMORY_BYTES", "524288")];
    let world = World::with("", &settings).await;
    let first = world.open("anthropic", NONE, NONE).await;
    let second = world.open("chat", NONE, NONE).await;
    let mut held = UnixStream::connect(world.socket(first.id)).await.unwrap();
    let head = "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 131072\r\n\r\n{";
    held.write_all(head.as_bytes()).await.unwrap();
    let large = request(Dialect::Chat, &"x".repeat(100_000), false);
    let refused = eventually("the memory is taken", async || {
        let answer = world.call(second.id, Dialect::Chat, &large).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.text.contains("no memory left"), "{refused:?}");
    assert!(!refused.headers.contains_key("x-should-retry"), "{refused:?}");
    drop(held);
    eventually("it is free again", async || {
        (world.call(second.id, Dialect::Chat, &large).await.status == 200).then_some(())
    })
    .await;
    // Without a length it counts as it comes.
    let stream = futures::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1000])));
    let sent = world.client(second.id).post("http://any/v1/chat/completions");
    let sent = sent.body(reqwest::Body::wrap_stream(stream)).send().await.unwrap();
    assert_eq!(sent.status(), 400);
}

/// Attack: ask, and never read. The call's own time is looked at only while somebody reads.
#[tokio::test]
async fn a_cli_that_never_reads_does_not_hold_a_call_for_ever() {
    let settings = [
        ("KAGE_GATEWAY_ANSWER_BYTES", "1073741824"),
        ("KAGE_GATEWAY_CALL_SECS", "1"),
        ("KAGE_GATEWAY_BODY_SECS", "1"),
    ];
    let world = World::with("", &settings).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let body = request(Dialect::Anthropic, &fault("endless"), true).to_string();
    let mut stream = UnixStream::connect(world.socket(run.id)).await.unwrap();
    let head = format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut first = [0; 64];
    stream.read_exact(&mut first).await.unwrap();
    // Settled while the connection is still held.
    let calls = world.calls(&run).await;
    assert_eq!((calls.len(), calls[0].estimated), (1, true), "{calls:?}");
    let (_, of_run) = world.budgets(&run).await;
    assert_eq!(of_run.reserved_micros, 0);
    drop(stream);
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
