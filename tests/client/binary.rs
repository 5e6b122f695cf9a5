//! The commands as a person or a script runs them: streams, exit codes, terminal.

use std::process::Stdio;
use std::time::Duration;

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kage::domain::repository::RepositoryState;
use kage::domain::run::{ProgressStatus, RunState};
use kage::domain::task::TaskStatus;
use kage::wire::event::{Activity, Progress};
use kage::wire::repository::Repository;
use kage::wire::run::Run;
use kage::wire::task::{NewTask, Task};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use uuid::Uuid;

use crate::hostile::HOSTILE;
use crate::samples::{Sent, TASK, files, log, run, sent, start, story, task};
use crate::server::{End, KEY, Seen, Server, json, last_event_id, problem, stream_of, stream_text};
use crate::streams::closed_port;

pub fn command(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kage"));
    command.args(args).env("KAGE_URL", url).env("KAGE_API_KEY", KEY);
    command.env_remove("XDG_CONFIG_HOME").stdin(Stdio::null()).kill_on_drop(true);
    command
}

pub async fn kage(url: &str, args: &[&str]) -> (i32, String, String) {
    // Only so that a client that never ends fails its test instead of stopping all of them.
    let output = tokio::time::timeout(Duration::from_secs(180), command(url, args).output());
    let output = output.await.expect("the command does not end").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn two_runs(status: TaskStatus) -> Task {
    task(status, vec![run("shell", RunState::Succeeded), run("shell-2", RunState::Succeeded)])
}

/// A server of one task.
pub async fn server_of(task: Task, story: Vec<Sent>, end: End) -> Server {
    Server::start(move |seen, before| {
        if seen.path.contains("/progress") {
            // The first connection breaks in the middle.
            let upto = if before == 0 { story.len() / 2 } else { story.len() };
            let end = if before == 0 { End::Clean } else { end };
            return stream_of(stream_text(&story[..upto], last_event_id(seen)), end);
        }
        match seen.method {
            Method::POST => json(201, &task),
            Method::GET => json(200, &task),
            _ => problem(404, "no"),
        }
    })
    .await
}

const RUN: [&str; 5] = ["run", "--cli", "shell", "--cli=shell", "do what is to be done"];

#[tokio::test]
async fn run_shows_plain_lines_and_ends_as_the_task_ends() {
    for (status, code) in [(TaskStatus::Completed, 0), (TaskStatus::Failed, 1), (TaskStatus::Cancelled, 5)] {
        let server = server_of(two_runs(status), story(status), End::Silent).await;
        let (exit, stdout, stderr) = kage(&server.url, &RUN).await;
        assert_eq!(exit, code, "{stderr}");
        assert_eq!(stdout, "[shell] one\n[shell-2] other\n[shell] two\n[shell] last without end\n");
        for part in [
            &format!("task {TASK}\n"),
            "[shell] careful\n",
            "trying again",
            "[shell] warning: mind the gap\n",
            "[shell-2] succeeded after 4.2 s, 2 files +10 -3, branch task-",
            &format!("task {TASK} {status}\n"),
        ] {
            assert!(stderr.contains(part), "{part:?} in {stderr}");
        }
        // The server says in words what each state brings: it is not told twice.
        assert!(!stderr.contains("[shell] running\n"), "{stderr}");
        let posted: NewTask = serde_json::from_slice(&server.seen()[0].body).unwrap();
        assert_eq!(posted.description, "do what is to be done");
        let names: Vec<&str> = posted.cli_assignments.iter().map(|one| one.cli_name.as_str()).collect();
        assert_eq!(names, ["shell", "shell"]);
    }
}

fn says(id: u64, message: &str, activity: Option<Activity>) -> Sent {
    let progress = Progress {
        task_id: TASK,
        cli_name: "shell".to_owned(),
        session_id: Uuid::from_u128(7),
        status: ProgressStatus::Working,
        message: message.to_owned(),
        timestamp: start(),
        activity,
        files_modified: None,
        cost: None,
        duration: None,
    };
    sent(Some(id), "progress", &progress)
}

/// Of an agent that prints its events as JSON, one line that is none, and its words once more in the last event.
fn agents_story() -> Vec<Sent> {
    let long = format!("{{\"type\":\"result\",\"text\":\"{}\"}}\n", "x".repeat(200_000));
    let call = Activity::ToolCall { tool: "Bash".to_owned(), argument: "ls\n-la".to_owned() };
    let mut story = vec![
        sent(
            Some(1),
            "log",
            &log("shell", "stdout", 0, "{\"type\":\"init\"}\nnot logged in\nplain words\n{\"ty"),
        ),
        sent(Some(2), "log", &log("shell", "stderr", 0, "{\"on\": \"stderr\"}\n")),
        sent(Some(3), "log", &log("shell", "stdout", 52, &format!("pe\":\"text\"}}\n{long}"))),
        says(4, "plain words", Some(Activity::Assistant)),
        says(5, "I look\nat \u{1b}[2Jit.", Some(Activity::Assistant)),
        says(6, "→ Bash: ls …", Some(call)),
        says(7, "kage's own words", None),
        says(8, "the CLI says that it is done: I look\nat \u{1b}[2Jit.", Some(Activity::Final { ok: true })),
    ];
    story.extend(story_end());
    story
}

fn story_end() -> Vec<Sent> {
    story(TaskStatus::Completed)
        .into_iter()
        .filter(|sent| sent.text.contains("event: task_complete\n"))
        .collect()
}

#[tokio::test]
async fn run_shows_what_an_agent_says_in_words_and_its_json_only_when_asked() {
    let told = Run { events: true, ..run("shell", RunState::Succeeded) };
    let server = |task| server_of(task, agents_story(), End::Silent);
    let words = server(task(TaskStatus::Completed, vec![told.clone()])).await;
    let (exit, stdout, stderr) = kage(&words.url, &RUN).await;
    let in_words = "[shell] not logged in\n[shell] plain words\n[shell] I look\n[shell] at \\x1b[2Jit.\n\
                    [shell] → Bash: ls …\n[shell] the CLI says that it is done\n";
    assert_eq!((exit, stdout.as_str()), (0, in_words), "{stderr}");
    assert!(stderr.contains("[shell] kage's own words\n") && !stderr.contains("Bash"), "{stderr}");
    assert!(stderr.contains("[shell] {\"on\": \"stderr\"}\n"), "{stderr}");

    let raw = server(task(TaskStatus::Completed, vec![told])).await;
    let args: Vec<&str> = RUN.into_iter().chain(["--raw"]).collect();
    let (exit, stdout, stderr) = kage(&raw.url, &args).await;
    assert!(
        exit == 0 && stdout.starts_with("[shell] {\"type\":\"init\"}\n[shell] not logged in\n"),
        "{stderr}"
    );
    assert!(stdout.contains("\n[shell] {\"type\":\"text\"}\n") && stdout.len() > 200_000);
    assert!(!stdout.contains("Bash") && !stderr.contains("Bash"), "{stderr}");

    // A run whose image does not read its output may print JSON for a script that waits for it.
    let plain = server(task(TaskStatus::Completed, vec![run("shell", RunState::Succeeded)])).await;
    let (_, stdout, _) = kage(&plain.url, &RUN).await;
    assert!(stdout.starts_with("[shell] {\"type\":\"init\"}\n"), "{stdout}");
}

#[tokio::test]
async fn run_as_json_is_one_harmless_object_a_line() {
    let mut story = story(TaskStatus::Completed);
    story.insert(6, sent(Some(11), "log", &log("shell-2", "stdout", 6, HOSTILE)));
    story.sort_by_key(|sent| sent.id);
    let expected: Vec<u64> = story.iter().filter_map(|sent| sent.id).collect();
    let server = server_of(two_runs(TaskStatus::Completed), story, End::Silent).await;
    let args: Vec<&str> = RUN.into_iter().chain(["--json"]).collect();
    let (exit, stdout, _) = kage(&server.url, &args).await;
    assert_eq!(exit, 0);
    assert!(!stdout.chars().any(|c| c != '\n' && kage::cli::escape::is_hazard(c)), "{stdout}");
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("submitted", "summary"));
    let ids: Vec<u64> = lines.iter().filter_map(|line| line["id"].as_u64()).collect();
    assert_eq!(ids, expected);
    let hostile = lines.iter().find(|line| line["id"] == 11).unwrap();
    assert_eq!(hostile["data"]["text"], HOSTILE);
}

#[tokio::test]
async fn run_detached_prints_the_id_alone() {
    let server = server_of(two_runs(TaskStatus::Pending), Vec::new(), End::Silent).await;
    let args: Vec<&str> = RUN.into_iter().chain(["--detach"]).collect();
    let (exit, stdout, stderr) = kage(&server.url, &args).await;
    assert_eq!((exit, stdout), (0, format!("{TASK}\n")));
    assert!(stderr.contains("kage logs -f"), "{stderr}");
    let (exit, stdout, _) = kage(&server.url, &[&args[..], &["--json"]].concat()).await;
    assert_eq!((exit, serde_json::from_str::<Task>(&stdout).unwrap().id), (0, TASK));
    assert_eq!(server.seen().len(), 2, "nothing is watched");
}

#[tokio::test]
async fn the_prompt_comes_from_a_file_or_standard_input_byte_for_byte() {
    let prompt = "echo \"it's\" $(x) `y`\n\ttab\r\n\u{1b} end\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), prompt).unwrap();
    let server = server_of(two_runs(TaskStatus::Pending), Vec::new(), End::Silent).await;
    let path = file.path().to_str().unwrap();
    let options = ["--context", "{\"a\":[1]}", "--timeout=61", "--max-retries=0", "--allow-no-changes"];
    let base =
        [&["run", "--detach", "--cli", "shell", "--repo", "demo", "--base", "main"], &options[..]].concat();
    assert_eq!(kage(&server.url, &[&base[..], &["--file", path]].concat()).await.0, 0);
    let mut command = command(&server.url, &[&base[..], &["-"]].concat());
    command.stdin(std::fs::File::open(path).unwrap());
    assert!(command.output().await.unwrap().status.success());
    for seen in server.seen() {
        let posted: NewTask = serde_json::from_slice(&seen.body).unwrap();
        assert_eq!(posted.description, prompt);
        assert_eq!(
            (posted.repository.as_deref(), posted.base_revision.as_deref()),
            (Some("demo"), Some("main"))
        );
        let one = &posted.cli_assignments[0];
        assert_eq!((one.timeout, one.allow_no_changes, posted.max_retries), (61, true, 0));
        assert_eq!(Value::Object(one.context.clone()), serde_json::json!({"a": [1]}));
    }
}

#[tokio::test]
async fn a_server_that_is_slow_to_begin_is_asked_once() {
    let task = two_runs(TaskStatus::Completed);
    let story = story(TaskStatus::Completed);
    let server = Server::start(move |seen, _| {
        if seen.path.ends_with("/progress") {
            // Longer than the view's tick: drawing must not drop a connection that is being made.
            std::thread::sleep(Duration::from_millis(600));
            return stream_of(stream_text(&story, last_event_id(seen)), End::Silent);
        }
        json(if seen.method == Method::POST { 201 } else { 200 }, &task)
    })
    .await;
    assert_eq!(kage(&server.url, &RUN).await.0, 0);
    assert_eq!(server.seen().iter().filter(|seen| seen.path.ends_with("/progress")).count(), 1);
}

#[tokio::test]
async fn an_interrupt_leaves_the_task_alone() {
    let server =
        server_of(two_runs(TaskStatus::Running), story(TaskStatus::Completed)[..6].to_vec(), End::Silent)
            .await;
    let mut command = command(&server.url, &RUN);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("two") {
            break;
        }
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("[shell] last without end"));
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&format!("still running: kage logs -f {TASK}, kage cancel {TASK}")), "{stderr}");
    assert!(server.seen().iter().all(|seen| seen.method != Method::DELETE));
}

#[tokio::test]
async fn several_runs_have_headings_and_one_that_has_no_patch_does_not_hide_the_others() {
    let task = two_runs(TaskStatus::Completed);
    let server = Server::start(move |seen, _| match seen.path.as_str() {
        path if path.ends_with("/runs/shell/diff") => problem(404, "no patch"),
        path if path.ends_with("/diff") || path.ends_with("/log") => path.to_owned().into_response(),
        path if path.ends_with("/files") => json(200, &files("shell-2")),
        _ => json(200, &task),
    })
    .await;
    let id = TASK.to_string();
    let (exit, stdout, stderr) = kage(&server.url, &["diff", &id]).await;
    assert_eq!((exit, stdout), (0, format!("/api/v1/tasks/{id}/runs/shell-2/diff")));
    assert_eq!(stderr, "==> shell <==\n[shell] no patch (HTTP 404)\n==> shell-2 <==\n");
    assert_eq!(kage(&server.url, &["diff", &id, "--run", "shell"]).await.0, 3);
    let (exit, _, stderr) = kage(&server.url, &["logs", &id, "--run", "other"]).await;
    assert_eq!(exit, 2);
    assert!(stderr.contains("it has shell, shell-2"), "{stderr}");
}

#[tokio::test]
async fn exit_codes_tell_whose_fault_it_is() {
    let id = TASK.to_string();
    let refusing = Server::start(|_, _| problem(401, "the key is not known")).await;
    let (exit, stdout, stderr) = kage(&refusing.url, &["task", &id]).await;
    assert_eq!((exit, stdout.as_str()), (3, ""));
    assert_eq!(stderr.lines().next(), Some("kage: the key is not known (HTTP 401)"));
    assert!(!stderr.contains(KEY));

    let (exit, _, stderr) = kage(&closed_port(), &["tasks"]).await;
    assert_eq!(exit, 4);
    assert!(stderr.starts_with("kage: cannot reach http://127.0.0.1:"), "{stderr}");

    let broken = Server::start(|_, _| problem(500, "oops")).await;
    assert_eq!(kage(&broken.url, &RUN).await.0, 4);

    for usage in [
        &["run", "--cli", "shell"][..],
        &["run", "do it all"],
        &["task", "x"],
        &["run", "--cli", "../x", "p"],
        &["frobnicate"],
    ] {
        assert_eq!(kage(&broken.url, usage).await.0, 2, "{usage:?}");
    }
    let mut command = command("http://far.example", &["tasks"]);
    assert_eq!(command.output().await.unwrap().status.code(), Some(2));
    let (exit, stdout, _) = kage(&broken.url, &["run", "--help"]).await;
    assert_eq!(exit, 0);
    assert!(stdout.contains("Exit codes:") && stdout.contains("130"), "{stdout}");
}

#[tokio::test]
async fn a_config_file_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let server = server_of(task(TaskStatus::Completed, Vec::new()), Vec::new(), End::Silent).await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("kage/config.toml");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("url = \"{}\"\nkey = \"{KEY}\"\n", server.url)).unwrap();
    for (mode, code) in [(0o644, 2), (0o600, 0)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut command = command("", &["task", &TASK.to_string()]);
        let output = command
            .env("XDG_CONFIG_HOME", home.path())
            .env_remove("KAGE_URL")
            .env_remove("KAGE_API_KEY")
            .output();
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(code));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.contains(&format!("chmod 600 {}", path.display())), code == 2, "{stderr}");
        assert!(!stderr.contains(KEY));
    }
    assert_eq!(server.seen().len(), 1, "nothing was sent with the key that others could read");
}

pub fn repository(state: RepositoryState) -> Repository {
    Repository {
        name: "demo".to_owned(),
        source: format!("/srv/{HOSTILE}"),
        state,
        error: (state == RepositoryState::Failed).then(|| HOSTILE.to_owned()),
        default_branch: Some("main".to_owned()),
        refs: [("refs/heads/main".to_owned(), "c".repeat(40))].into(),
        created_at: start(),
        fetched_at: None,
    }
}

/// Accepts everything; after `polls` looks the repository is in its last state.
fn repositories(last: Option<RepositoryState>, polls: usize) -> impl Fn(&Seen, usize) -> Response {
    move |seen, before| match seen.method {
        Method::POST => json(202, &repository(RepositoryState::Pending)),
        Method::DELETE => StatusCode::ACCEPTED.into_response(),
        _ if before < polls => json(200, &repository(RepositoryState::Fetching)),
        _ => last.map_or_else(|| problem(404, "gone"), |last| json(200, &repository(last))),
    }
}

#[tokio::test]
async fn repositories_are_waited_for() {
    for (last, code) in [(RepositoryState::Ready, 0), (RepositoryState::Failed, 1)] {
        for args in [&["repo", "add", "demo", "/srv/x"][..], &["repo", "fetch", "demo"]] {
            let server = Server::start(repositories(Some(last), 2)).await;
            let (exit, stdout, stderr) = kage(&server.url, args).await;
            assert_eq!((exit, stdout.as_str()), (code, ""), "{stderr}");
            assert_eq!(stderr.lines().next(), Some("fetching demo…"));
            assert_eq!(server.seen().len(), 4);
            let server = Server::start(repositories(Some(last), 0)).await;
            let (exit, stdout, _) = kage(&server.url, &[args, &["--json"]].concat()).await;
            assert_eq!(
                (exit, serde_json::from_str::<Repository>(&stdout).unwrap()),
                (code, repository(last))
            );
        }
    }
    let server = Server::start(repositories(None, 2)).await;
    let (exit, _, stderr) = kage(&server.url, &["repo", "rm", "demo"]).await;
    assert_eq!((exit, stderr.as_str()), (0, "removing demo…\ndemo is removed\n"));
    let server = Server::start(repositories(None, 0)).await;
    assert_eq!(kage(&server.url, &["repo", "add", "--detach", "demo", "/srv/x"]).await.0, 0);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_command_without_a_word() {
    let task = task(TaskStatus::Completed, vec![run("shell", RunState::Succeeded)]);
    let server = Server::start(move |seen, _| match seen.path.ends_with("/log") {
        true => ([(header::CONTENT_TYPE, "text/plain")], "line\n".repeat(1_000_000)).into_response(),
        false => json(200, &task),
    })
    .await;
    let line = format!("'{}' logs {TASK} | head -n 1; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_kage"));
    let mut command = Command::new("bash");
    command.args(["-c", &line]).env("KAGE_URL", &server.url).env("KAGE_API_KEY", KEY);
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "line\n130\n");
    assert!(output.stderr.is_empty());
}
