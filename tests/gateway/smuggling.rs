//! What comes through a run's socket byte for byte: nothing that can be read in two ways gets to a provider.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::World;
use crate::support::runs::{NONE, Run};

/// Sends bytes and reads what comes back, to the end.
async fn raw(world: &World, run: &Run, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(world.socket(run.id)).await.expect("the socket is there");
    // It may hang up before all is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

const BODY: &str = r#"{"model":"m-1","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;

#[tokio::test]
async fn ambiguous_framing_is_refused_and_nothing_is_sent_on() {
    let world = World::with("", &[("KAGE_GATEWAY_REQUESTS_PER_MINUTE", "1000")]).await;
    let run = world.open("anthropic", NONE, NONE).await;
    let length = BODY.len();
    let chunked = format!("{length:x}\r\n{BODY}\r\n0\r\n\r\n");
    let heads: Vec<(String, &str)> = vec![
        (format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"), &chunked),
        (format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"), &chunked),
        (format!("Content-Length: {length}\r\nContent-Length: {length}"), BODY),
        (format!("Content-Length: {length}\r\nContent-Length: 0"), BODY),
        (format!("Content-Length: {length}, {length}"), BODY),
        (format!("Content-Length: +{length}"), BODY),
        ("Content-Length: 0x4c".to_owned(), BODY),
        (format!("Content-Length : {length}"), BODY),
        (format!("Content_Length: 3\r\nContent-Length: {length}"), BODY),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(), &chunked),
        ("Transfer-Encoding: identity, chunked".to_owned(), &chunked),
        ("Transfer-Encoding: xchunked".to_owned(), &chunked),
        ("Transfer-Encoding:\u{b}chunked".to_owned(), &chunked),
        ("Transfer-Encoding: chunked\r\n X: folded".to_owned(), &chunked),
        (format!("X: a\nContent-Length: {length}"), BODY),
        (format!("X: a\rContent-Length: {length}"), BODY),
        (format!("X: a\0\r\nContent-Length: {length}"), BODY),
        (format!("Host: other\r\nContent-Length: {length}"), BODY),
        (format!("Expect: 100-continue\r\nContent-Length: {length}"), BODY),
        ("Upgrade: websocket\r\nConnection: Upgrade".to_owned(), ""),
        (format!("Upgrade: h2c\r\nContent-Length: {length}"), BODY),
        ("Content-Length: 99999999999999999999".to_owned(), BODY),
    ];
    for (head, body) in heads {
        let text = format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{body}");
        let answer = raw(&world, &run, text.as_bytes()).await;
        let status: u16 = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        assert!((400..=501).contains(&status), "{head:?}: {answer:?}");
        assert!(
            answer.contains("\"type\":\"error\"") && answer.contains("connection: close"),
            "{head:?}: {answer:?}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head:?}: {answer:?}");
    }
    assert!(world.provider.requests().is_empty(), "{:?}", world.provider.requests());
    // One that is too large is booked as refused; none is a call.
    assert!(world.calls(&run).await.iter().all(|call| call.outcome == "refused"));
}

#[tokio::test]
async fn other_requests_than_a_dialects_own_are_refused() {
    let world = World::with("", &[("KAGE_GATEWAY_REQUESTS_PER_MINUTE", "1000")]).await;
    let run = world.open("anthropic", NONE, NONE).await;
    for line in [
        "CONNECT 127.0.0.1:5432 HTTP/1.1",
        "TRACE /v1/messages HTTP/1.1",
        "OPTIONS /v1/messages HTTP/1.1",
        "DELETE /v1/messages HTTP/1.1",
        "GET /v1/messages HTTP/1.1",
        "POST http://127.0.0.1/v1/messages HTTP/1.1",
        "POST //127.0.0.1/v1/messages HTTP/1.1",
        "POST /v1/../v1/messages HTTP/1.1",
        "POST /v1/messages/ HTTP/1.1",
        "POST /v1//messages HTTP/1.1",
        "POST /V1/messages HTTP/1.1",
        "POST /v1/%6dessages HTTP/1.1",
        "POST /v1/messages%2f..%2ffiles HTTP/1.1",
        "POST /v1/messages;a=b HTTP/1.1",
        "POST /v1\\messages HTTP/1.1",
        "POST /v1/messages#x HTTP/1.1",
        "POST /v1/messages?beta=true&key=x HTTP/1.1",
        "POST /v1/messages?key=x HTTP/1.1",
        "POST /v1/files HTTP/1.1",
        "POST /v1/messages/batches HTTP/1.1",
        "POST /v1/complete HTTP/1.1",
        "GET /v1/organizations HTTP/1.1",
        "POST /v1/responses HTTP/1.1",
        "POST /v1beta/models/m-1:generateContent HTTP/1.1",
        "POST /api/chat HTTP/1.1",
        "GET /api/tags HTTP/1.1",
        "GET / HTTP/1.1",
        "POST /v1/messages HTTP/1.0",
        "PRI * HTTP/2.0",
        "nonsense",
    ] {
        let text = format!("{line}\r\nHost: x\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
        let answer = raw(&world, &run, text.as_bytes()).await;
        let status: u16 = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        assert!((400..=501).contains(&status), "{line}: {answer:?}");
        assert!(answer.contains("error"), "{line}: {answer:?}");
    }
    assert!(world.provider.requests().is_empty(), "{:?}", world.provider.requests());
}

#[tokio::test]
async fn a_connection_holds_one_request() {
    let world = World::new().await;
    let run = world.open("anthropic", NONE, NONE).await;
    let one =
        format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
    let answer = raw(&world, &run, format!("{one}{one}{one}").as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(world.provider.requests().len(), 1);
    // Chunks with extensions and trailers are read, and sent on as what they hold.
    let text = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x};a=b\r\n{BODY}\r\n0\r\nX-Api-Key: y\r\n\r\n",
        BODY.len()
    );
    let answer = raw(&world, &run, text.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let sent = world.provider.requests().pop().unwrap();
    assert_ne!(sent.header("x-api-key"), Some("y"));
    assert!(
        sent.header("transfer-encoding").is_none() && sent.header("content-length").is_some(),
        "{sent:?}"
    );
}

#[tokio::test]
async fn broken_chunks_never_get_to_a_provider() {
    let world = World::new().await;
    let run = world.open("anthropic", NONE, NONE).await;
    for body in [
        format!("{:x}\n{BODY}\n0\n\n", BODY.len()),
        format!("-{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len()),
        format!("ffffffffffffffff1\r\n{BODY}\r\n0\r\n\r\n"),
        format!("{:x}\r\n{BODY}0\r\n\r\n", BODY.len()),
        format!(" {:x} zz\r\n{BODY}\r\n0\r\n\r\n", BODY.len()),
    ] {
        let text =
            format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let answer = raw(&world, &run, text.as_bytes()).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{body:?}: {answer}");
    }
    assert!(world.provider.requests().is_empty(), "{:?}", world.provider.requests());
}
