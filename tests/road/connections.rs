//! Connections that would keep others out: as many as one address can make, and as slow as can be.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::support::TestKage;
use crate::support::http::send;

#[tokio::test]
async fn one_address_does_not_take_all_connections() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_CONNECTIONS", "160");
    kage.start("api").await;
    let crowd: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(kage.address()).expect("the kernel takes it")).collect();
    let elsewhere = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    for _ in 0..3 {
        let other = reqwest::Client::builder().local_address(elsewhere).no_proxy().build().expect("a client");
        assert_eq!(send(other.get(format!("{}/health", kage.url))).await.status, 200);
    }
    drop(crowd);
}

#[tokio::test]
async fn a_byte_now_and_then_keeps_nothing_open() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_ANSWER_SECS", "2");
    kage.start("api").await;
    for begun in
        ["GET /health HTTP/1.1\r\nX-Slow: ", "POST /api/v1/tasks HTTP/1.1\r\nContent-Length: 900000\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(kage.address()).expect("the kernel takes it");
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        stream.write_all(begun.as_bytes()).expect("writes");
        let closed = tokio::task::spawn_blocking(move || {
            (0..100).any(|_| {
                let written = stream.write_all(b"x");
                let read = stream.read(&mut [0; 1024]);
                let open = read
                    .is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
                written.is_err() || !open
            })
        });
        assert!(closed.await.expect("no panic"), "{begun}");
    }
    assert_eq!(kage.get("/health").await.status, 200);
}
