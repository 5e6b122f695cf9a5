//! Requests that no client of ours sends, byte by byte: each is refused for what it is, and none is a fault of the server.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::TestKage;

/// A request as it is, which no client of ours would send; the answer's status and all of it.
async fn raw(kage: &TestKage, head: &[u8], body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(kage.address()).await.expect("it listens");
    let key = format!("Host: kage\r\nConnection: close\r\nX-API-Key: {}\r\n", kage.key);
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    // Line, fixed headers, further headers, body: `head` is the line and what comes after it.
    let at = head.windows(2).position(|two| two == b"\r\n").map_or(head.len(), |at| at + 2);
    let (line, further) = head.split_at(at);
    let request = [line, key.as_bytes(), length.as_bytes(), further, b"\r\n", body].concat();
    stream.write_all(&request).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer and its end");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer to {:?}", String::from_utf8_lossy(head))), answer)
}

async fn expect(kage: &TestKage, expected: u16, line: &[u8], headers: &[u8], body: &[u8]) {
    let head = [line, b" HTTP/1.1\r\n", headers].concat();
    let (status, answer) = raw(kage, &head, body).await;
    let what = format!("{}{}", String::from_utf8_lossy(&head), String::from_utf8_lossy(body));
    assert_eq!(status, expected, "{what:.300}: {answer}");
    assert!(status != 405 || answer.to_lowercase().contains("\r\nallow: "), "{what}: {answer}");
}

/// Numbers and times beyond all bounds, parameters twice, what is no text.
async fn paths_and_queries(kage: &TestKage) {
    for (expected, path) in [
        // Years that Postgres has not, and that RFC 3339 cannot write.
        (422, "/api/v1/audit?since=-4714-01-01T00:00:00Z"),
        (422, "/api/v1/audit?until=-262143-01-01T00:00:00Z"),
        (422, "/api/v1/audit/export?since=%2B262142-12-31T23:59:59Z"),
        (200, "/api/v1/audit?since=0000-01-01T00:00:00Z&until=9999-12-31T23:59:59Z"),
        (422, "/api/v1/audit?cursor=9223372036854775808"),
        (422, "/api/v1/security-events?since=-4714-01-01T00:00:00Z"),
        (422, "/api/v1/security-events?cursor=9223372036854775808"),
        (422, "/api/v1/audit?cursor=18446744073709551616"),
        (404, "/api/v1/audit/18446744073709551615/proof"),
        (422, "/api/v1/tasks?page=18446744073709551616"),
        (422, "/api/v1/tasks?page=1e3"),
        // Said twice, unknown, without a value, not UTF-8.
        (422, "/api/v1/tasks?page=1&page=2"),
        (422, "/api/v1/audit?action=a&action=b"),
        (422, "/api/v1/tasks?page=1&pages=1"),
        (422, "/api/v1/tasks?page"),
        (400, "/api/v1/audit?action=%FF"),
        (400, "/api/v1/audit?object=%ED%A0%80"),
        (200, "/api/v1/audit?action=%F0%9F%98%80"),
        (400, "/api/v1/audit?action=%00"),
        (400, "/api/v1/tasks/00000000-0000-4000-8000-000000000000/progress?run=%00"),
        (404, "/api/v1/keys/%FF%FE"),
        (404, "/api/v1/keys/a%2500"),
        (404, "/api/v1/../v1/tasks"),
        (404, "//api/v1/tasks"),
        (404, "/api/v1/tasks/"),
    ] {
        expect(kage, expected, format!("GET {path}").as_bytes(), b"", b"").await;
    }
}

/// Of a path that there is; with `Allow`.
async fn methods(kage: &TestKage) {
    for method in ["TRACE", "CONNECT", "OPTIONS", "PATCH", "PUT", "get", "PROPFIND"] {
        expect(kage, 405, format!("{method} /api/v1/tasks").as_bytes(), b"", b"").await;
        expect(kage, 405, format!("{method} /health").as_bytes(), b"", b"").await;
    }
}

/// Of what is a key, nearly.
async fn bodies(kage: &TestKage) {
    let json = b"Content-Type: application/json\r\n";
    for (expected, body) in [
        (400, &b"{"[..]),
        (400, b"{\"name\":\"\xff\",\"scopes\":[\"admin\"]}"),
        (400, br#"{"name":"\ud800","scopes":["admin"]}"#),
        (400, br#"{"name":"a","scopes":["admin"]} {}"#),
        (400, b"\xef\xbb\xbf{}"),
        (400, br#"{"name":"a","scopes":["admin"],"usd_a_day":1e400}"#),
        (422, br#"{"name":"a","name":"b","scopes":["admin"]}"#),
        (422, br#"{"name":"a\u0000","scopes":["admin"]}"#),
        (422, br#"{"name":"a","scopes":["admin"],"is_admin":true}"#),
        (422, br#"{"name":"a","scopes":["admin"],"runs_a_day":4294967296}"#),
        (422, br#"{"name":"a","scopes":["admin"],"repositories":["a\u0000"]}"#),
        (422, br#"{"name":"a","scopes":["admin"],"expires_at":"+10000-01-01T00:00:00Z"}"#),
        // Fields by place instead of by name.
        (422, br#"["a",["tasks:read"],null,null,null,null,null,null]"#),
        (422, b"null"),
        (422, b"[]"),
    ] {
        expect(kage, expected, b"POST /api/v1/keys", json, body).await;
    }
    let deep = format!("{{\"name\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    expect(kage, 422, b"POST /api/v1/keys", json, deep.as_bytes()).await;
}

/// Of a task that would be taken.
async fn headers(kage: &TestKage) {
    let task = br#"{"description":"0123456789","cli_assignments":[{"cli_name":"shell"}]}"#;
    for (expected, headers) in [
        (415, &b"Content-Type: text/plain\r\n"[..]),
        (415, b"Content-Type: \r\n"),
        (415, b""),
        (400, b"Content-Type: application/json\r\nContent-Length: 99\r\n"),
        (400, b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"),
        (401, b"Content-Type: application/json\r\nX-API-Key: second\r\n"),
        (422, b"Content-Type: application/json\r\nIdempotency-Key: \xff\r\n"),
        (422, b"Content-Type: application/json\r\nX-Request-Id: \xff\r\nAccept: \xff\r\n"),
    ] {
        expect(kage, expected, b"POST /api/v1/tasks", headers, task).await;
    }
}

#[tokio::test]
async fn odd_requests_are_refused_and_break_nothing() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    paths_and_queries(&kage).await;
    methods(&kage).await;
    bodies(&kage).await;
    headers(&kage).await;
    let log = kage.process(0).log();
    assert!(!["internal_error", "panicked"].iter().any(|text| log.contains(text)), "{log}");
    assert_eq!(kage.get("/api/v1/keys").await.json()["keys"].as_array().map(Vec::len), Some(1));
}
