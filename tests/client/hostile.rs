//! What hostile agents write, on a terminal and in a pipe.

use std::process::{Output, Stdio};
use std::time::Duration;

use axum::http::Method;
use axum::response::IntoResponse;
use kage::domain::repository::RepositoryState;
use kage::domain::run::RunState;
use kage::domain::task::TaskStatus;
use kage::wire::task::Task;
use serde_json::Value;
use tokio::process::Command;

use crate::binary::{command, kage, repository};
use crate::samples::{Sent, TASK, complete, files, log, notice, result, run, sent, state, task};
use crate::server::{End, KEY, Server, json, last_event_id, problem, stream_of, stream_text};

/// Text that would retitle, overwrite, recolour and reverse.
pub const HOSTILE: &str = "\x1b]0;pwned\x07\x1b[2J\rover\u{9b}31m\u{202e}";

/// A command on a terminal of 100 columns; gives what the terminal was sent.
async fn on_terminal(url: &str, args: &str) -> (i32, String) {
    let line = format!("stty cols 100 rows 30; exec '{}' {args}", env!("CARGO_BIN_EXE_kage"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("KAGE_URL", url).env("KAGE_API_KEY", KEY);
    let Output { status, stdout, .. } =
        command.env("TERM", "xterm").stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    (status.code().unwrap(), String::from_utf8_lossy(&stdout).into_owned())
}

fn hostile_story() -> Vec<Sent> {
    let mut ended = run("shell", RunState::Succeeded);
    ended.branch = Some(format!("branch{HOSTILE}"));
    ended.error = Some(HOSTILE.to_owned());
    let mut ended = result(ended);
    ended.warnings = vec![HOSTILE.to_owned()];
    let mut bytes = log("shell", "stderr", 0, "\u{fffd}");
    bytes.base64 = Some("mzMxbQr/Cg==".to_owned());
    vec![
        sent(Some(1), "state", &state("shell", RunState::Running)),
        sent(Some(2), "log", &log("shell", "stdout", 0, &format!("{HOSTILE}\nend {HOSTILE}"))),
        sent(Some(3), "log", &bytes),
        sent(Some(4), "warning", &notice(Some("shell"), HOSTILE)),
        sent(Some(5), "error", &notice(None, HOSTILE)),
        sent(Some(6), "state", &state(HOSTILE, RunState::Running)),
        sent(Some(7), "log", &log(HOSTILE, "stdout", 0, "x\n")),
        sent(Some(8), "result", &ended),
        sent(Some(9), "task_complete", &complete(TaskStatus::Completed)),
    ]
}

fn hostile_task() -> Task {
    let mut one = run("shell", RunState::Succeeded);
    one.branch = Some(HOSTILE.to_owned());
    one.error = Some(HOSTILE.to_owned());
    let mut task = task(TaskStatus::Completed, vec![one]);
    task.description = HOSTILE.to_owned();
    task.error = Some(HOSTILE.to_owned());
    task.repository = HOSTILE.to_owned();
    task
}

/// None of the hostile sequences reached the terminal as such. What the view itself needs (cursor
/// up, clear line, colours) is no concern here.
fn assert_harmless(shown: &str) {
    assert!(shown.contains("\\x1b]0;pwned\\x07"), "{shown:?}");
    for bad in ["\x1b]", "\x07", "\x1b[2J", "\u{9b}", "\u{202e}", "\rover"] {
        assert!(!shown.contains(bad), "{bad:?} in {shown:?}");
    }
}

async fn hostile_server() -> Server {
    Server::start(|seen, before| match seen.path.as_str() {
        // Cut after the first output, and slow to come back: a live view has time to draw it.
        path if path.ends_with("/progress") && before == 0 => {
            stream_of(stream_text(&hostile_story()[..2], None), End::Clean)
        }
        path if path.ends_with("/progress") && before == 1 => {
            std::thread::sleep(Duration::from_millis(600));
            stream_of(stream_text(&hostile_story(), last_event_id(seen)), End::Silent)
        }
        path if path.ends_with("/progress") => {
            stream_of(stream_text(&hostile_story(), last_event_id(seen)), End::Silent)
        }
        path if path.ends_with("/log") || path.ends_with("/diff") => hostile_bytes().into_response(),
        path if path.ends_with("/files") => json(200, &files("shell")),
        path if path.ends_with("/repositories") => {
            json(200, &serde_json::json!({"repositories": [repository(RepositoryState::Failed)]}))
        }
        path if path.contains("?page") => {
            json(200, &serde_json::json!({"tasks": [hostile_task()], "total": 1, "page": 1, "page_size": 20}))
        }
        path if path.ends_with("/tasks") => json(201, &hostile_task()),
        _ => match seen.method {
            Method::DELETE => problem(409, HOSTILE),
            _ => json(200, &hostile_task()),
        },
    })
    .await
}

fn hostile_bytes() -> Vec<u8> {
    [HOSTILE.as_bytes(), b"\nraw \xff\x9b31m\x00\n+", HOSTILE.as_bytes()].concat()
}

#[tokio::test]
async fn nothing_hostile_reaches_a_terminal() {
    let server = hostile_server().await;
    for (args, code) in [
        ("run --cli shell 'do what is to be done'", 0),
        (&format!("logs {TASK}"), 0),
        (&format!("logs -f {TASK}"), 0),
        (&format!("diff {TASK}"), 0),
        (&format!("task {TASK}"), 0),
        ("tasks", 0),
        ("repo list", 0),
        (&format!("cancel {TASK}"), 3),
    ] {
        let (exit, shown) = on_terminal(&server.url, args).await;
        assert_eq!(exit, code, "{args}: {shown}");
        if args != "tasks" && args != "repo list" {
            assert_harmless(&shown);
        }
        assert!(
            !shown.contains("\x1b]0") && !shown.contains('\u{9b}') && !shown.contains('\u{202e}'),
            "{args}: {shown:?}"
        );
    }
    let (exit, stdout, stderr) = kage(&server.url, &["run", "--cli", "shell", "do what is to be done"]).await;
    assert_eq!(exit, 0);
    assert_harmless(&stdout);
    assert_harmless(&stderr);
}

#[tokio::test]
async fn piped_logs_and_patches_are_the_bytes() {
    let server = hostile_server().await;
    for args in [vec!["logs"], vec!["diff"], vec!["logs", "--run", "shell"], vec!["diff", "--run=shell"]] {
        let id = TASK.to_string();
        let output = command(&server.url, &[&args[..], &[&id]].concat()).output().await.unwrap();
        assert_eq!((output.status.code(), output.stdout), (Some(0), hostile_bytes()), "{args:?}");
        assert!(output.stderr.is_empty());
    }
    // Followed, a single run's bytes come as they were written, also those that are not UTF-8.
    let output = command(&server.url, &["logs", "-f", &TASK.to_string()]).output().await.unwrap();
    let expected = [format!("{HOSTILE}\nend {HOSTILE}").as_bytes(), b"\x9b31m\n\xff\n", b"x\n"].concat();
    assert_eq!((output.status.code(), output.stdout), (Some(0), expected));
}

#[tokio::test]
async fn logs_as_json_carry_every_byte() {
    use base64::Engine;
    let server = hostile_server().await;
    let (exit, stdout, _) = kage(&server.url, &["logs", "--json", &TASK.to_string()]).await;
    assert_eq!(exit, 0);
    let mut bytes = Vec::new();
    for line in stdout.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["offset"], bytes.len());
        match line["base64"].as_str() {
            Some(text) => bytes.extend(base64::engine::general_purpose::STANDARD.decode(text).unwrap()),
            None => bytes.extend_from_slice(line["text"].as_str().unwrap().as_bytes()),
        }
    }
    assert_eq!(bytes, hostile_bytes());
}
