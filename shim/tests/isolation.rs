//! What the CLI can see of the shim: nothing. And what it starts with: nothing unusual.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use kage_shim::protocol::FromRunner;
use support::{Ledger, Runner, SHIM, Shim, bash, eventually, job, unique_sleep};

/// Not root, so that root's right to read everything does not hide what is tested.
const NOBODY: u32 = 65534;

/// A shim of another user than root, and a folder that it can reach.
fn nobodys_shim(runner: &Runner) -> Shim {
    let program = runner.folder().join("kage-shim");
    fs::copy(SHIM, &program).unwrap();
    fs::set_permissions(runner.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(runner.socket(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new(program);
    command.arg("--socket").arg(runner.socket());
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    Shim::spawn(command)
}

#[test]
fn the_cli_cannot_read_the_shim() {
    let mut runner = Runner::listening();
    let mut shim = nobodys_shim(&runner);
    let script = r#"
        for file in mem environ maps fd/0 fd/3 exe cwd root auxv; do
            if head -c 1 /proc/$PPID/$file >/dev/null 2>&1 || readlink /proc/$PPID/$file; then echo "read $file"; fi
        done
        ls /proc/$PPID/fd 2>/dev/null && echo "listed fd"
        # The same must be possible for a process that does not protect itself.
        sleep 60 & until [ "$(cat /proc/$!/comm)" = sleep ]; do :; done
        head -c 1 /proc/$!/environ >/dev/null && readlink /proc/$!/fd/1 >/dev/null && echo control
        kill $!"#;
    let mut ledger = Ledger::default();
    let exited = runner.start(&bash(script)).finish(&mut ledger);
    assert_eq!(exited.spawn_error, None);
    assert_eq!(ledger.stdout_text(), "control\n");
    shim.wait();
}

#[test]
fn only_the_standard_streams_are_open_in_the_cli() {
    let mut runner = Runner::listening();
    // Leaks descriptors into the shim on purpose.
    let mut command = Command::new("bash");
    command.args(["-c", r#"exec 7</etc/passwd 9</ 200>/dev/null; exec "$@""#, "bash", SHIM, "--socket"]);
    command.arg(runner.socket());
    let mut shim = Shim::spawn(command);
    let marker = unique_sleep("open");
    let mut connection = runner.start(&job(&["sleep", &marker]));
    connection.expect_started();
    let pid = eventually("the CLI", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shim.pid())).unwrap();
        children.trim().parse::<i32>().ok()
    });
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut open: Vec<_> = open.map(|fd| (fd.file_name(), fs::read_link(fd.path()).unwrap())).collect();
    open.sort();
    assert_eq!(open.iter().map(|(number, _)| number).collect::<Vec<_>>(), ["0", "1", "2"]);
    assert!(open.iter().all(|(_, target)| target.to_str().unwrap().starts_with("pipe:")), "{open:?}");
    connection.send(&FromRunner::Terminate);
    connection.finish(&mut Ledger::default());
    shim.wait();
}

#[test]
fn the_shim_itself_keeps_no_inherited_descriptor() {
    let mut runner = Runner::listening();
    let mut command = Command::new("bash");
    command.args(["-c", r#"exec 7</etc/passwd 200</etc/passwd; exec "$@""#, "bash", SHIM, "--socket"]);
    command.arg(runner.socket());
    let shim = Shim::spawn(command);
    let (_connection, _) = runner.accept();
    // Only root may look, because the shim is not dumpable.
    if rustix::process::geteuid().is_root() {
        let open = fs::read_dir(format!("/proc/{}/fd", shim.pid())).unwrap();
        let targets = open.flatten().map(|entry| fs::read_link(entry.path()).unwrap_or_default());
        assert_eq!(targets.filter(|target| target.ends_with("passwd")).count(), 0);
    }
}

#[test]
fn signals_and_limits_start_at_their_defaults() {
    let mut runner = Runner::listening();
    let mut command = Command::new("bash");
    // Ignored signals are inherited, by the shim as by anybody.
    command.args([
        "-c",
        r#"trap '' HUP INT QUIT USR1 USR2 TERM CHLD TSTP ALRM XFSZ PIPE; exec "$@""#,
        "bash",
        SHIM,
    ]);
    command.arg("--socket").arg(runner.socket());
    let mut shim = Shim::spawn(command);
    let mut ledger = Ledger::default();
    // Executed by the shim itself: no shell changes anything.
    let exited = runner.start(&job(&["cat", "/proc/self/status"])).finish(&mut ledger);
    assert_eq!(exited.code, Some(0));
    let text = ledger.stdout_text();
    for name in ["SigBlk:", "SigIgn:", "SigCgt:"] {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        // Above 31 are the C library's own and the real-time signals.
        let standard = u64::from_str_radix(value.trim(), 16).unwrap() & 0x7fff_ffff;
        assert_eq!(standard, 0, "{name}{value}");
    }
    shim.wait();
}

#[test]
fn the_cli_leads_its_own_group_and_is_not_in_the_runners_session() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut ledger = Ledger::default();
    let script = r#"read -r _ _ _ _ group session _ < /proc/$$/stat; echo "$$ $group $session""#;
    runner.start(&bash(script)).finish(&mut ledger);
    let text = ledger.stdout_text();
    let ids: Vec<i32> = text.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[2], shim.pid());
    shim.wait();
}

#[test]
fn memory_is_taken_from_the_cli_before_the_shim() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut ledger = Ledger::default();
    let script =
        "until [ $(cat /proc/$$/oom_score_adj) = 1000 ]; do sleep 0.01; done; cat /proc/self/oom_score_adj";
    runner.start(&bash(script)).finish(&mut ledger);
    assert_eq!(ledger.stdout, b"1000\n");
    shim.wait();
}

#[test]
fn the_command_line_and_environment_tell_nothing_of_the_job() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = bash("echo ready; sleep 3600");
    job.env.insert("TOKEN".to_owned(), "very-secret".to_owned());
    let mut connection = runner.start(&job);
    let mut ledger = Ledger::default();
    connection.receive_until(&mut ledger, "ready");
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{file}", shim.pid())).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("very-secret") && !text.contains("3600"), "{text}");
    }
    connection.send(&FromRunner::Terminate);
    connection.finish(&mut ledger);
    shim.wait();
}
