//! What the CLI gets, and what of its end is told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use kage_shim::protocol::{EndedBy, JobFile, Offsets};
use support::{Runner, bash, job};

#[test]
fn status_and_both_streams_come_back() {
    let (ledger, exited, status) = Runner::listening().run(&bash("echo out; echo err >&2; exit 7"));
    assert_eq!(ledger.stdout, b"out\n");
    assert_eq!(ledger.stderr, b"err\n");
    assert_eq!((exited.code, exited.signal, exited.spawn_error), (Some(7), None, None));
    assert_eq!(exited.ended_by, EndedBy::Itself);
    assert_eq!(exited.total, Offsets { stdout: 4, stderr: 4 });
    assert_eq!(status.code(), Some(7));
}

#[test]
fn a_prompt_of_a_mebibyte_arrives_byte_exact() {
    let piece = "it's \"quoted\" $(touch /tmp/x) `id` $HOME \\n \\0 \u{0} \u{1b}[31m\r\n\ttab é 漢 🥷 %s\n";
    let prompt = piece.repeat((1 << 20) / piece.len() + 1);
    let mut job = job(&["cat"]);
    job.stdin = prompt.clone();
    let (ledger, exited, _) = Runner::listening().run(&job);
    assert_eq!(exited.code, Some(0));
    assert!(ledger.stdout == prompt.as_bytes(), "the prompt was changed on its way");
}

#[test]
fn a_cli_that_does_not_read_its_input_is_not_in_the_way() {
    for script in ["echo ready", "exec 0<&-; echo ready", "head -c 10 >/dev/null; echo ready"] {
        let mut job = bash(script);
        job.stdin = "x".repeat(2 << 20);
        let (ledger, exited, _) = Runner::listening().run(&job);
        assert_eq!((ledger.stdout.as_slice(), exited.code), (&b"ready\n"[..], Some(0)), "{script}");
    }
}

#[test]
fn arguments_are_never_a_shell_line() {
    let arguments = ["$(id)", "a b", "'", "\"", "*", "", "--", "-n", "line\nbreak", ";exit 3"];
    let mut argv = vec!["printf", "<%s>"];
    argv.extend(arguments);
    let (ledger, _, _) = Runner::listening().run(&job(&argv));
    let expected: String = arguments.iter().map(|argument| format!("<{argument}>")).collect();
    assert_eq!(ledger.stdout_text(), expected);
}

#[test]
fn the_environment_is_the_jobs_and_nothing_else() {
    let mut job = job(&["env", "-0"]);
    job.env.insert("MULTI".to_owned(), "two\nlines $HOME".to_owned());
    job.env.insert("EMPTY".to_owned(), String::new());
    let (ledger, _, _) = Runner::listening().run(&job);
    let mut seen: Vec<&[u8]> =
        ledger.stdout.split(|&byte| byte == 0).filter(|line| !line.is_empty()).collect();
    seen.sort_unstable();
    assert_eq!(seen, [&b"EMPTY="[..], b"MULTI=two\nlines $HOME", b"PATH=/usr/bin:/bin"]);
}

#[test]
fn the_program_is_looked_up_in_the_jobs_path_and_run_in_its_folder() {
    let mut runner = Runner::listening();
    let program = runner.folder().join("kage-test-program");
    fs::write(&program, "#!/bin/sh\npwd -P\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut job = job(&["kage-test-program"]);
    job.env.insert("PATH".to_owned(), runner.folder().to_str().unwrap().to_owned());
    job.cwd = runner.folder().to_str().unwrap().to_owned();
    let folder = fs::canonicalize(runner.folder()).unwrap();
    let (ledger, exited, _) = runner.run(&job);
    assert_eq!(exited.spawn_error, None);
    assert_eq!(ledger.stdout_text().trim_end(), folder.to_str().unwrap());
}

#[test]
fn a_file_is_there_before_the_cli_and_nobody_elses() {
    let mut runner = Runner::listening();
    let path = runner.folder().join("prompt").to_str().unwrap().to_owned();
    let text = "-x /run \"$(id)\"\n\u{0}é".repeat(20_000);
    let mut job = bash(&format!("stat -c %a {path}; cat {path}"));
    job.file = Some(JobFile { path: path.clone(), text: text.clone() });
    let (ledger, exited, _) = runner.run(&job);
    assert_eq!(exited.code, Some(0));
    assert!(ledger.stdout_text() == format!("600\n{text}"), "the file was changed on its way");

    // The second time it is there already: somebody else's.
    let mut again = Runner::listening();
    let (_, exited, status) = again.run(&job);
    assert!(exited.spawn_error.unwrap().contains(&path));
    assert_eq!(status.code(), Some(126));
}

#[test]
fn what_cannot_be_started_says_why() {
    let mut nowhere = bash("true");
    nowhere.cwd = "/nowhere/at/all".to_owned();
    let mut misnamed = bash("true");
    misnamed.env.insert("A=B".to_owned(), String::new());
    let cases = [
        (job(&["/nowhere/program"]), 127, "/nowhere/program"),
        (job(&["kage-no-such-program"]), 127, "kage-no-such-program"),
        (job(&["/etc/passwd"]), 126, "/etc/passwd"),
        (job(&["/"]), 126, "\"/\""),
        (job(&["nul\0inside"]), 126, "nul"),
        (job(&[]), 126, "no program"),
        (nowhere, 126, "/nowhere/at/all"),
        (misnamed, 126, "A=B"),
    ];
    for (job, expected, named) in cases {
        let (ledger, exited, status) = Runner::listening().run(&job);
        let reason = exited.spawn_error.expect("a reason");
        assert!(reason.contains(named), "{reason}");
        assert_eq!((exited.code, exited.signal), (None, None));
        assert_eq!(exited.ended_by, EndedBy::Itself);
        assert_eq!(ledger.offsets(), Offsets::default());
        assert_eq!(status.code(), Some(expected), "{reason}");
    }
}

#[test]
fn a_signal_that_ended_the_cli_is_told() {
    let (_, exited, status) = Runner::listening().run(&bash("kill -SEGV $$"));
    assert_eq!((exited.code, exited.signal), (None, Some(11)));
    assert_eq!(exited.ended_by, EndedBy::Itself);
    assert_eq!(status.code(), Some(139));
}
