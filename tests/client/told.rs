//! What a person is told of a run beside its patch, and how often.

use axum::response::IntoResponse;
use kage::domain::repository::RepositoryState;
use kage::domain::run::RunState;
use kage::domain::task::TaskStatus;
use kage::wire::run::{Flagged, FlaggedKind, Rejected};

use crate::binary::{kage, repository, server_of};
use crate::samples::{TASK, complete, files, notice, result, run, run_in_full, sent, task};
use crate::server::{End, Server, json};

/// What held it, what it did not see, what was refused, left out and held back, and what wants a look.
#[tokio::test]
async fn a_task_and_a_diff_tell_what_the_patch_does_not_show() {
    let ended = task(TaskStatus::Completed, vec![run_in_full()]);
    let mut found = files("shell");
    let rejected = |path: &str, kind: &str, reason: &str| Rejected {
        path: path.to_owned(),
        kind: kind.to_owned(),
        reason: reason.to_owned(),
    };
    found.rejected = vec![
        rejected("pipe\u{200b}", "special_file", "it is a FIFO (a named pipe)"),
        rejected(".claude", "held", "the base's stays"),
    ];
    found.flagged = vec![
        Flagged { path: ".mcp.json".to_owned(), kind: FlaggedKind::Configuration },
        Flagged { path: "package.json".to_owned(), kind: FlaggedKind::Review },
    ];
    let server = Server::start(move |seen, _| match seen.path.as_str() {
        path if path.ends_with("/files") => json(200, &found),
        path if path.ends_with("/diff") => "the patch".into_response(),
        _ => json(200, &ended),
    })
    .await;
    let id = TASK.to_string();
    let (exit, stdout, stderr) = kage(&server.url, &["task", &id]).await;
    assert_eq!((exit, stderr.as_str()), (0, ""));
    let of_the_patch = [
        "[shell] contained: proved in part before it began (1 of 2 checks in full, 3.2 ms)\n",
        "[shell] not seen from inside: limits: this kernel does not show them\n",
        "[shell] hidden from it: \".claude \", .gemini (cannot be approved: it holds a link)",
        "[shell] left out: pipe\\u{200b}: it is a FIFO (a named pipe)",
        "[shell] held back: .claude: the base's stays",
        "[shell] read before you merge (a CLI obeys it before its first prompt): .mcp.json",
        "[shell] read before you merge (programs obey it without being asked): package.json",
    ];
    let of_the_run = [
        "[shell] sandbox: runsc, worktree: overlay",
        "[shell] hard limits: memory 2 GiB",
        "[shell] soft limits (looked at every few seconds): worktree 1 MiB",
        "[shell] refused calls: interrupted: the keeper has ended",
    ];
    for part in of_the_patch.iter().chain(&of_the_run) {
        assert!(stdout.contains(part), "{part:?} in {stdout}");
    }
    let (exit, stdout, stderr) = kage(&server.url, &["diff", &id]).await;
    assert_eq!((exit, stdout.as_str()), (0, "the patch"));
    for part in of_the_patch {
        assert!(stderr.contains(part), "{part:?} in {stderr}");
    }
}

/// A failure in the words of the server: once where it happens, and not again in the result and in the summary.
#[tokio::test]
async fn an_error_and_a_warning_are_told_once() {
    let mut failed = run("shell", RunState::Failed);
    failed.error = Some("it fell over".to_owned());
    let mut ended = task(TaskStatus::Failed, vec![failed.clone()]);
    ended.error = Some("shell: it fell over".to_owned());
    let mut last = result(failed);
    last.warnings = vec!["mind the gap".to_owned()];
    let story = vec![
        sent(Some(1), "warning", &notice(Some("shell"), "mind the gap")),
        sent(Some(2), "error", &notice(Some("shell"), "it fell over")),
        sent(Some(3), "result", &last),
        sent(Some(4), "task_complete", &complete(TaskStatus::Failed)),
    ];
    let server = server_of(ended, story, End::Silent).await;
    let (exit, _, stderr) = kage(&server.url, &["run", "--cli", "shell", "do what is to be done"]).await;
    assert_eq!(exit, 1, "{stderr}");
    for words in ["mind the gap", "it fell over"] {
        assert_eq!(stderr.matches(words).count(), 1, "{words}: {stderr}");
    }
}

#[tokio::test]
async fn a_repository_that_failed_shows_its_source_and_why() {
    let mut failed = repository(RepositoryState::Failed);
    (failed.source, failed.error) = ("/srv/x".to_owned(), Some("git fetch failed: no such thing".to_owned()));
    let server = Server::start(move |_, _| json(200, &serde_json::json!({ "repositories": [failed] }))).await;
    let (exit, stdout, _) = kage(&server.url, &["repo", "list"]).await;
    assert_eq!(exit, 0);
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[1].ends_with("/srv/x"), "{stdout}");
    assert_eq!(lines[2], "demo could not be fetched: git fetch failed: no such thing");
}
