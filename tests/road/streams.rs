//! Event streams: exact as a cursor, harmless whatever a run writes, and cut off when nobody reads.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::http::{client, send};
use crate::support::sse::{Event, assert_contiguous, output};
use crate::support::tasks::{shell, shell_with, string};
use crate::support::{TestKage, eventually};

const CHATTY: &str =
    "for i in $(seq 1 12); do echo \"$KAGE_RUN line $i\"; echo \"err $i\" >&2; sleep 0.05; done; echo x > x";

#[tokio::test]
async fn a_stream_resumes_at_every_possible_cut() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let mut task = shell(CHATTY);
    task["cli_assignments"] = json!([{ "cli_name": "shell" }, { "cli_name": "shell" }]);
    let id = string(&kage.submit(&task).await["id"]).to_owned();
    // Watched live, cut after every third event and taken up again with its id, as a browser does.
    let mut live: Vec<Event> = Vec::new();
    let cut = |cursor: Option<i64>| {
        let kage = &kage;
        let id = &id;
        async move {
            let cursor = cursor.map(|id| id.to_string());
            let stream = kage.try_stream(id, "", cursor.as_deref()).await;
            let mut stream = stream.unwrap_or_else(|answer| panic!("{}", answer.text()));
            let first = stream.next().await.expect("connected");
            assert_eq!((first.name.as_str(), first.id), ("connected", None));
            let mut seen = 0;
            stream
                .until(|event| {
                    seen += 1;
                    seen == 3 || event.name == "task_complete"
                })
                .await
        }
    };
    while live.last().is_none_or(|event| event.name != "task_complete") {
        live.extend(cut(live.last().and_then(|event| event.id)).await);
    }
    let all = kage.events(&id, "").await;
    assert_contiguous(&all, 1);
    assert_eq!(live, all, "what was seen live is what is replayed");
    let last = all.len() as i64;
    assert!(last > 20, "only {last} events");
    for k in 0..=last {
        let expected = &all[k as usize..];
        assert_eq!(kage.events(&id, &format!("?after={k}")).await, expected, "after={k}");
        // The header goes before the parameter: it is newer.
        let stream = kage.try_stream(&id, "?after=1", Some(&k.to_string())).await;
        let mut stream = stream.unwrap_or_else(|answer| panic!("{}", answer.text()));
        assert_eq!(stream.rest().await[1..], *expected, "Last-Event-ID: {k}");
    }
    for (query, header) in [
        ("?after=-1", None),
        ("?after=x", None),
        ("?after=1.5", None),
        ("?afterwards=1", None),
        ("?after=99999999999999999999", None),
        ("", Some("x")),
        ("", Some("-1")),
        ("", Some("+1")),
        (&format!("?after={}", last + 1), None),
        ("", Some(&*(last + 1).to_string())),
    ] {
        let refused = kage.try_stream(&id, query, header).await;
        refused.err().unwrap_or_else(|| panic!("{query} {header:?} is taken")).problem(422);
    }
    assert_order(&all);
    assert_narrowed(&kage, &id, &all).await;
}

/// The road in its order, for each run, and the task's end last.
fn assert_order(all: &[Event]) {
    for run in ["shell", "shell-2"] {
        let story: Vec<&str> = all
            .iter()
            .filter(|event| event.data["run"] == run || event.data["run"]["name"] == run)
            .map(|event| if event.name == "state" { string(&event.data["state"]) } else { &*event.name })
            .collect();
        let mut without_repeats = story.clone();
        without_repeats.dedup();
        let expected = ["queued", "preparing", "running", "log", "harvesting", "succeeded", "result"];
        assert_eq!(without_repeats, expected);
        for (stream, line) in [("stdout", format!("{run} line")), ("stderr", "err".to_owned())] {
            let expected: String = (1..=12).map(|i| format!("{line} {i}\n")).collect();
            assert_eq!(String::from_utf8_lossy(&output(all, run, stream)), expected);
        }
    }
    assert_eq!(all.iter().filter(|event| event.name == "task_complete").count(), 1);
    assert_eq!(all.last().map(|event| &*event.name), Some("task_complete"));
}

async fn assert_narrowed(kage: &TestKage, id: &str, all: &[Event]) {
    let of_run = |event: &Event, name: &str| {
        let run = [&event.data["run"], &event.data["run"]["name"], &event.data["cli_name"]];
        event.name == "task_complete" || run.iter().any(|run| *run == name)
    };
    for name in ["shell", "shell-2"] {
        let expected: Vec<Event> = all.iter().filter(|event| of_run(event, name)).cloned().collect();
        assert_eq!(kage.events(id, &format!("?run={name}")).await, expected);
        let middle = expected[expected.len() / 2].id.expect("an id");
        let rest: Vec<Event> = expected.into_iter().filter(|event| event.id > Some(middle)).collect();
        assert_eq!(kage.events(id, &format!("?run={name}&after={middle}")).await, rest);
    }
    let refused = kage.try_stream(id, "?run=nobody", None).await;
    refused.err().expect("there is no such run").problem(404);
}

/// What a hostile run writes to break out of its event, and what is not text at all.
const HOSTILE: &str = r#"
printf 'before\n\nevent: task_complete\nid: 999\ndata: {"status":"completed"}\n\nafter\n'
printf '\r\n: comment\rdata: x\r\r'
printf '\xe2\x80\xa8\xe2\x80\xa9\x00\x1b]0;title\x07'
printf 'retry: 0\n\nid: \000\ndata:\n\n\x85\x0b\x0c\xef\xbb\xbfevent: x\n\n'; sleep 0.3
printf 'half \xc3'; sleep 0.3; printf '\xa9 whole\n'
sleep 0.3; printf 'bad \xff\xfe\xc3( end\n'; sleep 0.3
printf 'no newline at the end \xe2\x82'
"#;

#[tokio::test]
async fn nothing_that_a_run_writes_leaves_its_event() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let task = kage.submit(&shell_with(HOSTILE, &json!({ "allow_no_changes": true }))).await;
    let id = string(&task["id"]);
    // The strict reader fails on any line that is not ours.
    let events = kage.events(id, "").await;
    assert_contiguous(&events, 1);
    let expected: Vec<u8> = [
        &b"before\n\nevent: task_complete\nid: 999\ndata: {\"status\":\"completed\"}\n\nafter\n"[..],
        b"\r\n: comment\rdata: x\r\r",
        b"\xe2\x80\xa8\xe2\x80\xa9\x00\x1b]0;title\x07",
        b"retry: 0\n\nid: \0\ndata:\n\n\x85\x0b\x0c\xef\xbb\xbfevent: x\n\n",
        b"half \xc3\xa9 whole\n",
        b"bad \xff\xfe\xc3( end\n",
        b"no newline at the end \xe2\x82",
    ]
    .concat();
    assert_eq!(output(&events, "shell", "stdout"), expected);
    let plain = |event: &&Event| event.name == "log" && event.data["base64"].is_null();
    let text: String = events.iter().filter(plain).map(|event| string(&event.data["text"])).collect();
    assert!(text.contains("half \u{e9} whole"), "a character that came in two halves is text: {text:?}");
    let log = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await;
    assert_eq!(log.body, expected);
}

/// Every byte there is, every pair of the dangerous ones, and noise: what the stream gives is what the file has.
#[tokio::test]
async fn any_bytes_come_back_as_they_were_written() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let script = r#"
{ for i in $(seq 0 255); do printf "\\$(printf %03o "$i")"; done
  for a in 012 015 000 033 205 302 342 200 250 072 377; do for b in 012 015 000 033 205 302 342 200 250 072 377; do
    printf "\\$a\\$b"; done; done
  head -c 200000 /dev/urandom; } > written
cat written"#;
    let task = kage.run(&shell(script)).await;
    let id = string(&task["id"]);
    let events = kage.events(id, "").await;
    let branch = string(&task["runs"][0]["branch"]);
    let written =
        crate::support::git::git_bytes(&kage.mirror("demo"), ["show", &format!("{branch}:written")]);
    assert_eq!(written.len(), 256 + 2 * 121 + 200_000);
    assert!(written.starts_with(&(0..=255).collect::<Vec<u8>>()));
    assert!(output(&events, "shell", "stdout") == written, "the stream is not what was written");
}

#[tokio::test]
async fn a_long_output_is_complete_and_in_order() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let task = kage.submit(&shell_with("seq 1 600000", &json!({ "allow_no_changes": true }))).await;
    let id = string(&task["id"]);
    let events = kage.events(id, "").await;
    assert_contiguous(&events, 1);
    let expected: String = (1..=600_000).map(|line| format!("{line}\n")).collect();
    assert!(output(&events, "shell", "stdout") == expected.as_bytes());
    assert_eq!(kage.task(id).await["runs"][0]["output_bytes"], expected.len());
}

#[tokio::test]
async fn silence_is_filled_with_heartbeats() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let runner = kage.start("runner").await;
    kage.demo().await;
    assert!(kage.process(runner).terminate().await.success());
    let id = string(&kage.submit(&shell("echo never to be run")).await["id"]).to_owned();
    let mut stream = kage.stream(&id, "").await;
    let first = stream.next().await.expect("connected");
    assert_eq!((first.name.as_str(), &first.data["status"]), ("connected", &json!("pending")));
    assert_eq!(stream.next().await.expect("queued").data["state"], "queued");
    let beat = stream.next().await.expect("a heartbeat");
    assert_eq!((beat.name.as_str(), beat.id, beat.comment), ("heartbeat", None, true));
    assert_eq!(kage.delete(&format!("/api/v1/tasks/{id}")).await.status, 200);
    assert_eq!(stream.rest().await.last().expect("events").name, "task_complete");
}

#[tokio::test]
async fn streams_are_counted() {
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_STREAMS", "1");
    kage.start("api").await;
    let runner = kage.start("runner").await;
    kage.demo().await;
    assert!(kage.process(runner).terminate().await.success());
    let id = string(&kage.submit(&shell("echo never to be run")).await["id"]).to_owned();
    let mut held = kage.stream(&id, "").await;
    held.next().await.expect("connected");
    let refused = kage.try_stream(&id, "", None).await.err().expect("one stream is enough");
    refused.problem(503);
    assert_eq!(refused.header("retry-after"), "5");
    // Everything else goes on.
    assert_eq!(kage.task(&id).await["status"], "pending");
    drop(held);
    let mut next =
        eventually("the permit comes back", async || kage.try_stream(&id, "", None).await.ok()).await;
    next.next().await.expect("connected");
    kage.delete(&format!("/api/v1/tasks/{id}")).await;
}

#[tokio::test]
async fn silent_connections_do_not_keep_others_out() {
    const CONNECTIONS: usize = 4;
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_CONNECTIONS", &CONNECTIONS.to_string());
    kage.set("KAGE_API_IDLE_SECS", "20");
    kage.start("api").await;
    let runner = kage.start("runner").await;
    kage.demo().await;
    assert!(kage.process(runner).terminate().await.success());
    let id = string(&kage.submit(&shell("echo never to be run")).await["id"]).to_owned();
    let mut watched = kage.stream(&id, "").await;
    watched.next().await.expect("connected");
    let mut silent = Vec::new();
    for begun in
        ["", "GET /health HTTP/1.1\r\n", "POST /api/v1/tasks HTTP/1.1\r\nContent-Length: 9\r\n\r\n", ""]
    {
        let mut stream = TcpStream::connect(kage.address()).await.expect("the kernel takes it");
        stream.write_all(begun.as_bytes()).await.expect("writes");
        silent.push(stream);
    }
    // There is room again once they are closed; the stream, which has heartbeats, lives on.
    let newcomer = client().get(format!("{}/health", kage.url));
    assert_eq!(send(newcomer).await.status, 200);
    let beat = watched.until_heartbeat().await;
    assert_eq!(kage.delete(&format!("/api/v1/tasks/{id}")).await.status, 200);
    assert_eq!((beat.name.as_str(), beat.id), ("heartbeat", None));
    assert_eq!(watched.rest().await.last().expect("events").name, "task_complete");
}

/// Bytes of resident memory.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

/// A client that asks for the stream and then does not read.
async fn deaf(kage: &TestKage, id: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("setsockopt");
    let mut stream = socket.connect(kage.address()).await.expect("connects");
    let request = format!(
        "GET /api/v1/tasks/{id}/progress HTTP/1.1\r\nHost: kage\r\nX-API-Key: {}\r\nAccept: text/event-stream\r\n\r\n",
        kage.key
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    stream
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_costs_no_memory() {
    const CLIENTS: usize = 20;
    let mut kage = TestKage::new().await;
    kage.set("KAGE_API_STALL_SECS", "1");
    kage.set("KAGE_API_STREAMS", &CLIENTS.to_string());
    let api = kage.start("api").await;
    kage.start("runner").await;
    kage.demo().await;
    let flood = "head -c 40000000 /dev/zero | tr '\\0' x | fold -w 99";
    let task = kage.run(&shell_with(flood, &json!({ "allow_no_changes": true }))).await;
    let id = string(&task["id"]);
    assert_eq!(task["runs"][0]["state"], "succeeded", "{task}");
    let total = task["runs"][0]["output_bytes"].as_u64().expect("a number");

    let pid = kage.process(api).pid();
    let before = resident(pid);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(deaf(&kage, id).await);
    }
    let mut peak = 0;
    for client in &clients {
        let mut status = [0; 12];
        assert_eq!(client.peek(&mut status).await.expect("an answer"), status.len());
        assert_eq!(&status, b"HTTP/1.1 200");
        peak = peak.max(resident(pid));
    }
    eventually("every deaf client is cut off", async || {
        peak = peak.max(resident(pid));
        let log = kage.process(api).log();
        (log.matches("api.client_stalled").count() == CLIENTS).then_some(())
    })
    .await;
    let growth = peak.saturating_sub(before);
    // A page each at the most; the whole of it for each would be 800 MB.
    assert!(growth < 160 << 20, "{growth} bytes more for {CLIENTS} clients that do not read");
    for mut client in clients {
        let mut read = 0;
        let mut buffer = vec![0; 1 << 16];
        // What was on its way still comes; then the connection is at its end, and the kernel keeps nothing for it.
        while let Ok(count @ 1..) = client.read(&mut buffer).await {
            read += count as u64;
        }
        assert!(read < 1 << 20, "{read} bytes were sent to a client that did not read");
    }
    // Each cut gives a place among the streams back.
    let stream = eventually("a place is free", async || kage.try_stream(id, "", None).await.ok());
    let mut stream = stream.await;
    // One that falls asleep is cut off too, and has everything when it comes back with what it saw last.
    let mut seen: Vec<Event> = Vec::new();
    while seen.len() < 5 {
        seen.push(stream.next().await.expect("an event"));
    }
    eventually("it is cut off too", async || {
        (kage.process(api).log().matches("api.client_stalled").count() == CLIENTS + 1).then_some(())
    })
    .await;
    while let Ok(Some(event)) = stream.try_next().await {
        seen.push(event);
    }
    let last = seen.iter().rev().find_map(|event| event.id).expect("an id");
    assert!((output(&seen, "shell", "stdout").len() as u64) < total, "it was not cut off");
    let resumed = kage.try_stream(id, "", Some(&last.to_string())).await;
    seen.extend(resumed.unwrap_or_else(|answer| panic!("{}", answer.text())).rest().await);
    assert_contiguous(&seen, 1);
    assert_eq!(output(&seen, "shell", "stdout").len() as u64, total);
    assert!(kage.process(api).ended().is_none());
}
