//! Watching a task over connections that break: every event, in order, once.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use kage::client::Patience;
use kage::client::error::ClientError;
use kage::client::event::Payload;
use kage::client::follow::{Follow, Update};
use kage::domain::task::TaskStatus;

use uuid::Uuid;

use crate::samples::{TASK, complete, log, sent, start, story};
use crate::server::{End, Server, client, last_event_id, problem, quick, stream_of, stream_text};
use serde_json::json;

/// Watches to the end: ids of the events, and how often the connection was lost.
async fn watch(mut follow: Follow) -> Result<(Vec<u64>, usize), ClientError> {
    let (mut ids, mut losses) = (Vec::new(), 0);
    while let Some(update) = follow.next().await? {
        match update {
            Update::Event(event) => ids.push(event.id),
            Update::Reconnecting { .. } => losses += 1,
            Update::Gap(gap) => panic!("a gap that is none: {gap:?}"),
            Update::LetGo(gone) => panic!("nothing was let go: {gone:?}"),
            Update::Connected(connected) => assert_eq!(connected.timestamp, start()),
        }
    }
    assert_eq!(follow.next().await?, None, "the end stays the end");
    Ok((ids, losses))
}

fn ids() -> Vec<u64> {
    story(TaskStatus::Completed).iter().filter_map(|sent| sent.id).collect()
}

#[tokio::test]
async fn a_cut_at_any_byte_loses_nothing_and_doubles_nothing() {
    let story = story(TaskStatus::Completed);
    let whole = stream_text(&story, None);
    for end in [End::Clean, End::Broken] {
        // The task's id says where its first stream is cut.
        let (sent, bytes) = (story.clone(), whole.clone().into_bytes());
        let server = Server::start(move |seen, before| match before {
            0 => {
                let id: Uuid = seen.path.split('/').nth(4).unwrap().parse().unwrap();
                stream_of(bytes[..usize::try_from(id.as_u128()).unwrap()].to_vec(), end)
            }
            _ => stream_of(stream_text(&sent, last_event_id(seen)), End::Silent),
        })
        .await;
        let client = server.client();
        // How a connection ends makes no difference to the reader's place in a frame.
        let step = if end == End::Clean { 1 } else { 13 };
        let cuts: Vec<usize> = (0..whole.len()).step_by(step).collect();
        for &cut in &cuts {
            let (got, losses) = watch(client.follow(Uuid::from_u128(cut as u128), None)).await.unwrap();
            assert_eq!(got, ids(), "{end:?} at {cut}");
            assert_eq!(losses, 1, "{end:?} at {cut}");
        }

        // What it asks for is what comes after the last frame that was whole.
        let seen = server.seen();
        assert_eq!(seen.len(), 2 * cuts.len());
        for (&cut, pair) in cuts.iter().zip(seen.chunks(2)) {
            assert_eq!(last_event_id(&pair[0]), None);
            let ends = story.iter().scan(stream_text(&[], None).len(), |at, sent| {
                *at += sent.text.len();
                Some((*at, sent.id))
            });
            let last = ends.take_while(|(at, _)| *at <= cut).filter_map(|(_, id)| id).last();
            if end == End::Clean {
                assert_eq!(last_event_id(&pair[1]), last, "at {cut}");
            } else {
                // A connection that breaks may take bytes with it that were on their way.
                assert!(last_event_id(&pair[1]) <= last, "at {cut}");
            }
        }
    }
}

#[tokio::test]
async fn events_that_come_again_are_dropped() {
    let story = story(TaskStatus::Completed);
    let server = Server::start(move |_, before| {
        // It ignores Last-Event-ID, and gets one event further each time.
        let whole = stream_text(&story[..=before.min(story.len() - 1)], None);
        stream_of(whole, End::Clean)
    })
    .await;
    let (got, losses) = watch(server.client().follow(TASK, None)).await.unwrap();
    assert_eq!(got, ids());
    assert_eq!(losses, ids().len() - 1);
}

#[tokio::test]
async fn ids_that_do_not_rise_are_dropped_within_a_stream_too() {
    let mut story = story(TaskStatus::Completed);
    story.insert(4, story[2].clone());
    story.insert(6, story[5].clone());
    let server = Server::start(move |_, _| stream_of(stream_text(&story, None), End::Silent)).await;
    let (got, losses) = watch(server.client().follow(TASK, None)).await.unwrap();
    assert_eq!((got, losses), (ids(), 0));
}

#[tokio::test]
async fn garbage_is_survived_once_and_refused_when_it_stays() {
    let good = story(TaskStatus::Completed);
    let garbage: [&[u8]; 6] = [
        b"id: 14\nevent: log\ndata: {\"run\":1}\n\n",
        b"id: 14\nevent: log\ndata: not json\n\n",
        b"id: fourteen\nevent: state\ndata: {}\n\n",
        b"id: 14\nevent: state\ndata: \xff\xfe\n\n",
        b"event: log\ndata: {}\n\n",
        b"id: 14\nevent: log\ndata: {\"run\":\"a\",\"attempt\":1,\"stream\":\"stdout\",\"offset\":0,\"text\":\"\",\"base64\":\"!\"}\n\n",
    ];
    for bad in garbage {
        for stays in [false, true] {
            let good = good.clone();
            let server = Server::start(move |seen, before| {
                let mut bytes = if before == 0 {
                    stream_text(&good[..3], None).into_bytes()
                } else {
                    stream_text(&[], None).into_bytes()
                };
                if before == 0 || stays {
                    bytes.extend_from_slice(bad);
                }
                bytes.extend_from_slice(stream_text(&good, last_event_id(seen)).as_bytes());
                stream_of(bytes, End::Silent)
            })
            .await;
            let result = watch(server.client().follow(TASK, None)).await;
            let shown = String::from_utf8_lossy(bad);
            if stays {
                assert!(matches!(result, Err(ClientError::Protocol { .. })), "{shown}: {result:?}");
                assert_eq!(server.seen().len(), 3, "{shown}");
            } else {
                assert_eq!(result.unwrap(), (ids(), 1), "{shown}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_an_event_stream_is_refused() {
    let page = |_: &crate::server::Seen, _| {
        ([(header::CONTENT_TYPE, "text/html")], "<h1>Log in to the hotel</h1>").into_response()
    };
    let server = Server::start(page).await;
    let result = watch(server.client().follow(TASK, None)).await;
    assert!(matches!(result, Err(ClientError::Protocol { .. })), "{result:?}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn silence_is_a_broken_connection() {
    let story = story(TaskStatus::Completed);
    let server = Server::start(move |seen, before| {
        let sent = if before < 2 { &story[..4 * before] } else { &story[..] };
        stream_of(stream_text(sent, last_event_id(seen)), End::Silent)
    })
    .await;
    let patience = Patience { idle: Duration::from_millis(200), ..quick() };
    let (got, losses) = watch(client(&server.url, patience).follow(TASK, None)).await.unwrap();
    assert_eq!((got, losses), (ids(), 2));
}

#[tokio::test]
async fn an_error_without_id_means_come_again() {
    let story = story(TaskStatus::Completed);
    let server = Server::start(move |seen, before| {
        let mut text = stream_text(&story[..story.len().min(3 + before * 3)], last_event_id(seen));
        text.push_str("event: error\ndata: {\"message\":\"the database is gone\"}\n\n");
        stream_of(text, End::Silent)
    })
    .await;
    let (got, losses) = watch(server.client().follow(TASK, None)).await.unwrap();
    assert_eq!((got, losses), (ids(), 3));
}

#[tokio::test]
async fn failures_of_the_server_are_waited_out_and_refusals_are_not() {
    let good = story(TaskStatus::Completed);
    for status in [429, 500, 502, 503] {
        let good = good.clone();
        let server = Server::start(move |seen, before| match before {
            0 => stream_of(stream_text(&good[..2], None), End::Clean),
            1..5 => problem(status, "not now"),
            _ => stream_of(stream_text(&good, last_event_id(seen)), End::Silent),
        })
        .await;
        assert_eq!(watch(server.client().follow(TASK, None)).await.unwrap(), (ids(), 5), "{status}");
    }
    for status in [401, 403, 404, 410] {
        let good = good.clone();
        let server = Server::start(move |_, before| match before {
            0 => stream_of(stream_text(&good[..2], None), End::Clean),
            _ => problem(status, "never"),
        })
        .await;
        let error = watch(server.client().follow(TASK, None)).await.unwrap_err();
        assert_eq!(error, ClientError::Refused { status, detail: "never".to_owned(), retry_after: None });
        assert_eq!(server.seen().len(), 2);
    }
}

#[tokio::test]
async fn a_server_that_never_comes_back_is_given_up() {
    let server = Server::start(|_, _| stream_of(stream_text(&[], None), End::Clean)).await;
    let patience = Patience {
        reconnect_for: Duration::from_millis(100),
        first_delay: Duration::from_millis(5),
        most_delay: Duration::from_millis(20),
        ..quick()
    };
    let error = watch(client(&server.url, patience).follow(TASK, None)).await.unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
    assert!(server.seen().len() > 2);
}

#[tokio::test]
async fn a_server_that_was_never_there_is_said_at_once() {
    let error = watch(client(&closed_port(), quick()).follow(TASK, None)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}

/// An address where nothing listens.
pub fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn one_run_is_asked_for_by_name() {
    let story = story(TaskStatus::Completed);
    let server = Server::start(move |seen, before| match before {
        0 => stream_of(stream_text(&story[..5], None), End::Broken),
        _ => stream_of(stream_text(&story, last_event_id(seen)), End::Silent),
    })
    .await;
    let run = Some("shell-2".parse().unwrap());
    assert_eq!(watch(server.client().follow(TASK, run)).await.unwrap().0, ids());
    for seen in server.seen() {
        assert_eq!(seen.path, format!("/api/v1/tasks/{TASK}/progress?run=shell-2"));
        assert_eq!(seen.header("x-api-key"), Some(crate::server::KEY));
    }
}

#[tokio::test]
async fn a_hole_in_the_output_is_told_before_what_follows_it() {
    let story = [
        sent(Some(1), "log", &log("shell", "stdout", 0, "12345")),
        sent(Some(2), "log", &log("shell", "stdout", 9, "later")),
        sent(None, "let_go", &json!({ "task_id": TASK, "what": "log", "rule": "size", "at": start() })),
        sent(Some(3), "task_complete", &complete(TaskStatus::Failed)),
    ];
    let server = Server::start(move |_, _| stream_of(stream_text(&story, None), End::Silent)).await;
    let mut follow = server.client().follow(TASK, None);
    let mut updates = Vec::new();
    while let Some(update) = follow.next().await.unwrap() {
        updates.push(match update {
            Update::Connected(_) => "connected".to_owned(),
            Update::Gap(gap) => format!("{} bytes missing", gap.missing),
            Update::LetGo(gone) => gone.words(),
            Update::Event(event) => match event.payload {
                Payload::Log(log) => log.text,
                _ => event.name,
            },
            Update::Reconnecting { cause, .. } => cause.to_string(),
        });
    }
    let [first @ .., gone, last] = &updates[..] else { panic!("{updates:?}") };
    assert_eq!(first, ["connected", "12345", "4 bytes missing", "later"]);
    assert!(gone.starts_with("the output was let go on 20") && gone.ends_with("to make room"), "{gone}");
    assert_eq!(last, "task_complete");
}

#[tokio::test]
async fn a_status_without_content_is_not_a_stream() {
    let server = Server::start(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    let result = watch(server.client().follow(TASK, None)).await;
    assert!(matches!(result, Err(ClientError::Protocol { .. })), "{result:?}");
}
