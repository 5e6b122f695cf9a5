//! Single requests: what is sent, what comes of bad answers, and what never leaves.

use std::collections::HashSet;
use std::time::Duration;

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kage::client::Patience;
use kage::client::artifacts::LogDownload;
use kage::client::error::ClientError;
use kage::domain::run::RunState;
use kage::domain::task::{MergeStrategy, TaskStatus};
use kage::wire::task::{NewTask, Task, TaskFilter};

use crate::samples::{TASK, run, task};
use crate::server::{End, KEY, Seen, Server, client, json, problem, quick, stream_of};
use crate::streams::closed_port;

fn new_task() -> NewTask {
    NewTask {
        description: "do what is to be done".to_owned(),
        repository: Some("demo".to_owned()),
        base_revision: None,
        cli_assignments: Vec::new(),
        max_retries: 3,
        retry_delay: 5,
        merge_strategy: MergeStrategy::Theirs,
        budget: None,
        created_by: None,
    }
}

/// The task is there, and half of the answer that says so.
fn half(whole: &Task) -> Response {
    let body = serde_json::to_string(whole).unwrap();
    let mut response = stream_of(body[..body.len() / 2].to_owned(), End::Broken);
    *response.status_mut() = StatusCode::CREATED;
    response
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let server = Server::start(|_, before| match before {
        0 => half(&task(TaskStatus::Pending, vec![])),
        1 => stream_of("", End::Broken),
        2 => problem(503, "starting"),
        _ => json(201, &task(TaskStatus::Pending, vec![])),
    })
    .await;
    let client = server.client();
    assert_eq!(client.submit(&new_task()).await.unwrap().id, TASK);
    let first: HashSet<String> =
        server.seen().iter().map(|seen| seen.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!((server.seen().len(), first.len()), (4, 1));
    for seen in server.seen() {
        assert_eq!((seen.method.clone(), seen.path.as_str()), (Method::POST, "/api/v1/tasks"));
        assert_eq!(serde_json::from_slice::<NewTask>(&seen.body).unwrap(), new_task());
        assert_eq!(seen.header("x-api-key"), Some(KEY));
    }

    // Another submission is another task.
    client.submit(&new_task()).await.unwrap();
    let key = server.seen()[4].header("idempotency-key").unwrap().to_owned();
    assert!(!first.contains(&key));
    assert!(key.parse::<uuid::Uuid>().is_ok());
}

#[tokio::test]
async fn a_refusal_shows_the_problem_in_one_line_and_is_not_repeated() {
    let server = Server::start(|_, _| problem(422, "the description\nis too\tshort")).await;
    let error = server.client().submit(&new_task()).await.unwrap_err();
    assert_eq!(error.to_string(), "the description is too short (HTTP 422)");
    assert_eq!(server.seen().len(), 1);

    let missing = Server::start(|_, _| problem(404, "there is no such task")).await;
    assert!(missing.client().task(TASK).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn the_key_is_in_no_message_whoever_echoes_it() {
    let server = Server::start(|_, _| problem(401, &format!("unknown key {KEY}!"))).await;
    let client = server.client();
    let error = client.task(TASK).await.unwrap_err();
    assert_eq!(error.to_string(), "unknown key [key]! (HTTP 401)");
    assert!(!format!("{client:?} {error:?}").contains(KEY));
}

#[tokio::test]
async fn a_redirect_does_not_carry_the_key_away() {
    let other = Server::start(|_, _| json(200, &task(TaskStatus::Pending, vec![]))).await;
    let target = other.url.clone();
    let server = Server::start(move |seen, _| {
        let to = format!("{target}{}", seen.path);
        (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
    })
    .await;
    let error = server.client().task(TASK).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn answers_that_make_no_sense_are_named_as_such() {
    type Answer = fn(&Seen, usize) -> Response;
    let answers: [Answer; 3] = [
        |_, _| (StatusCode::OK, "<html>").into_response(),
        |_, _| json(200, &serde_json::json!({"id": 1})),
        |_, _| (StatusCode::OK, vec![0xff, 0x00]).into_response(),
    ];
    for answer in answers {
        let server = Server::start(answer).await;
        let error = server.client().task(TASK).await.unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    }
    let server =
        Server::start(|_, _| (StatusCode::INTERNAL_SERVER_ERROR, "secret trace").into_response()).await;
    let error = server.client().task(TASK).await.unwrap_err();
    assert_eq!(error.to_string(), "the server failed: Internal Server Error (HTTP 500)");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let server = Server::start(|_, _| {
        let block = axum::body::Bytes::from(vec![b' '; 1 << 20]);
        let endless = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(block.clone()));
        axum::body::Body::from_stream(endless).into_response()
    })
    .await;
    let error = server.client().task(TASK).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let patience =
        Patience { idle: Duration::from_millis(100), repeat_for: Duration::from_millis(150), ..quick() };
    let error = client(&url, patience).task(TASK).await.unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
    drop(listener);

    let error = client(&closed_port(), quick()).task(TASK).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_filter_becomes_the_query() {
    let page = serde_json::json!({"tasks": [], "total": 0, "page": 2, "page_size": 50});
    let server = Server::start(move |_, _| json(200, &page)).await;
    let filter = TaskFilter { status: Some(TaskStatus::Failed), page: Some(2), page_size: None };
    server.client().tasks(&filter).await.unwrap();
    server.client().tasks(&TaskFilter::default()).await.unwrap();
    let paths: Vec<String> = server.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, ["/api/v1/tasks?status=failed&page=2", "/api/v1/tasks"]);
}

#[tokio::test]
async fn not_ready_is_an_answer_too() {
    let ready =
        serde_json::json!({"ready": false, "dependencies": {"database": {"ok": false, "detail": "gone"}}});
    let server = Server::start(move |_, _| json(503, &ready)).await;
    let ready = server.client().ready().await.unwrap();
    assert!(!ready.ready && !ready.dependencies["database"].ok);
    assert_eq!(server.seen()[0].path, "/ready");
}

const OUTPUT: &[u8] = b"raw \xff\x00\x1b[31m bytes\r\nof a run, long enough to be cut";

async fn download(mut download: LogDownload) -> Result<Vec<u8>, ClientError> {
    let mut all = Vec::new();
    while let Some(bytes) = download.chunk().await? {
        all.extend_from_slice(&bytes);
        assert_eq!(download.offset(), all.len() as u64);
    }
    Ok(all)
}

fn range_start(seen: &Seen) -> usize {
    seen.header("range").map_or(0, |range| {
        range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse().unwrap()
    })
}

#[tokio::test]
async fn a_log_is_taken_up_where_it_broke_off() {
    let shell = "shell".parse().unwrap();
    for honours_range in [true, false] {
        for cut in 0..=OUTPUT.len() {
            let server = Server::start(move |seen, before| {
                let from = range_start(seen);
                if honours_range && from == OUTPUT.len() {
                    return problem(416, "there is no more");
                }
                let start = if honours_range { from } else { 0 };
                let (upto, end) = if before == 0 { (cut, End::Broken) } else { (OUTPUT.len(), End::Clean) };
                let mut response = stream_of(&OUTPUT[start..upto], end);
                if honours_range && from > 0 {
                    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                }
                response
            })
            .await;
            let bytes = download(server.client().log(TASK, &shell, 0)).await.unwrap();
            assert_eq!(bytes, OUTPUT, "cut at {cut}, range {honours_range}");
            assert_eq!(server.seen().len(), 2);
            assert_eq!(server.seen()[0].path, format!("/api/v1/tasks/{TASK}/runs/shell/log"));
        }
    }
}

#[tokio::test]
async fn a_log_that_breaks_for_ever_is_an_error() {
    let server = Server::start(|_, _| stream_of("", End::Broken)).await;
    let error = download(server.client().log(TASK, &"shell".parse().unwrap(), 0)).await.unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn the_form_of_a_patch_is_asked_for() {
    let diff = serde_json::json!({
        "run": "shell", "branch": null, "base_commit": null, "commit_hash": null,
        "files": [], "patch": "p", "truncated": false
    });
    let server = Server::start(move |seen, _| match seen.header("accept") {
        Some("application/json") => json(200, &diff),
        Some("text/x-diff") => ([(header::CONTENT_TYPE, "text/x-diff")], "patch").into_response(),
        _ => problem(406, "ask for something"),
    })
    .await;
    let shell = "shell".parse().unwrap();
    assert_eq!(server.client().diff(TASK, &shell).await.unwrap().patch, "p");
    let mut patch = server.client().patch(TASK, &shell).await.unwrap();
    assert_eq!(patch.chunk().await.unwrap().unwrap(), "patch");
    assert_eq!(patch.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn a_cancellation_is_sent_once() {
    let server = Server::start(|_, _| problem(409, "it has ended")).await;
    let error = server.client().cancel(TASK).await.unwrap_err();
    assert_eq!(
        error,
        ClientError::Refused { status: 409, detail: "it has ended".to_owned(), retry_after: None }
    );
    assert_eq!(server.seen()[0].method, Method::DELETE);

    let server = Server::start(|_, _| problem(503, "not now")).await;
    server.client().cancel(TASK).await.unwrap_err();
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_task_is_read_whole() {
    let whole = task(TaskStatus::Completed, vec![run("shell", RunState::Succeeded)]);
    let sent = whole.clone();
    let server = Server::start(move |_, _| json(200, &sent)).await;
    assert_eq!(server.client().task(TASK).await.unwrap(), whole);
}
