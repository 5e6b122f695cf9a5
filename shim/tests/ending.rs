//! Every way in which a run can end, and that nothing is alive after it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use kage_shim::protocol::{EndedBy, FromRunner, Job};
use rustix::process::Signal;
use support::{Connection, Ledger, Runner, SHIM, Shim, bash, eventually, processes_with, unique_sleep};

/// A CLI and two daemons of it (own sessions, orphaned, holding the pipes), all of which
/// ignore SIGTERM. Says "ready" when all are there.
fn stubborn(marker: &str) -> Job {
    bash(&format!(
        "trap '' TERM HUP INT
         (setsid sleep {marker} &)
         (setsid bash -c 'sleep {marker} & sleep {marker}; :' &)
         sleep {marker} &
         until [ $(pgrep -fc '^sleep {marker}') = 4 ]; do sleep 0.01; done
         echo ready; wait"
    ))
}

fn assert_nothing_left(marker: &str) {
    assert_eq!(processes_with(marker), [0; 0], "processes outlived the run");
}

fn started(runner: &mut Runner, job: &Job) -> (Connection, Ledger) {
    let mut connection = runner.start(job);
    let mut ledger = Ledger::default();
    connection.receive_until(&mut ledger, "ready");
    (connection, ledger)
}

#[test]
fn terminate_ends_also_what_ignores_it_and_hides() {
    let marker = unique_sleep("terminate");
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let (mut connection, mut ledger) = started(&mut runner, &stubborn(&marker));
    connection.send(&FromRunner::Terminate);
    let exited = connection.finish(&mut ledger);
    assert_nothing_left(&marker);
    assert_eq!(exited.ended_by, EndedBy::Runner);
    assert_eq!((exited.code, exited.signal), (None, Some(9)));
    assert_eq!(shim.wait().code(), Some(137));
}

#[test]
fn terminate_lets_the_cli_say_good_bye() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = bash("trap 'sleep 0.2; echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done");
    job.limits.grace_ms = 60_000;
    let (mut connection, mut ledger) = started(&mut runner, &job);
    connection.send(&FromRunner::Terminate);
    let exited = connection.finish(&mut ledger);
    assert_eq!((exited.code, exited.ended_by), (Some(4), EndedBy::Runner));
    assert_eq!(ledger.stdout, b"ready\nbye\n");
    assert_eq!(shim.wait().code(), Some(4));
}

#[test]
fn stopped_processes_are_ended_too() {
    let marker = unique_sleep("stopped");
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = bash(&format!("sleep {marker} & kill -STOP $!; echo ready; kill -STOP $$"));
    // SIGTERM alone has to do.
    job.limits.grace_ms = 3_600_000;
    let (mut connection, mut ledger) = started(&mut runner, &job);
    connection.send(&FromRunner::Terminate);
    let exited = connection.finish(&mut ledger);
    assert_eq!((exited.signal, exited.ended_by), (Some(15), EndedBy::Runner));
    assert_nothing_left(&marker);
    shim.wait();
}

#[test]
fn sigterm_to_the_shim_ends_all_as_terminate_does() {
    let marker = unique_sleep("sigterm");
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let (mut connection, mut ledger) = started(&mut runner, &stubborn(&marker));
    shim.signal(Signal::TERM);
    assert_eq!(connection.finish(&mut ledger).ended_by, EndedBy::Container);
    assert_nothing_left(&marker);
    shim.wait();
}

#[test]
fn the_wall_clock_ends_the_run_and_is_the_first_cause() {
    let marker = unique_sleep("wall");
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = stubborn(&marker);
    job.limits.wall_secs = 3;
    job.limits.grace_ms = 2000;
    let (mut connection, mut ledger) = started(&mut runner, &job);
    // Comes while the grace time runs.
    std::thread::sleep(std::time::Duration::from_millis(3500));
    connection.send(&FromRunner::Terminate);
    let exited = connection.finish(&mut ledger);
    assert_nothing_left(&marker);
    assert_eq!((exited.ended_by, exited.signal), (EndedBy::WallClock, Some(9)));
    shim.wait();
}

#[test]
fn an_orphaned_run_is_ended_and_then_the_shim() {
    let marker = unique_sleep("orphan");
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = stubborn(&marker);
    job.limits.orphan_secs = 1;
    drop(started(&mut runner, &job));
    assert_eq!(shim.wait().code(), Some(137));
    assert_nothing_left(&marker);
}

#[test]
fn a_late_runner_still_learns_of_the_orphaned_run() {
    let marker = unique_sleep("late");
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = stubborn(&marker);
    job.limits.orphan_secs = 5;
    let (connection, _) = started(&mut runner, &job);
    drop(connection);
    eventually("the orphan's end", || processes_with(&marker).is_empty().then_some(()));
    let mut ledger = Ledger::default();
    let exited = runner.resume(ledger.offsets()).finish(&mut ledger);
    assert_eq!(exited.ended_by, EndedBy::Orphaned);
    assert_eq!(ledger.stdout, b"ready\n");
    assert_eq!(shim.wait().code(), Some(137));
}

#[test]
fn a_runner_that_comes_back_in_time_saves_the_run() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = bash("echo ready; sleep 6; echo over");
    job.limits.orphan_secs = 4;
    let (mut connection, mut ledger) = started(&mut runner, &job);
    for _ in 0..5 {
        drop(connection);
        std::thread::sleep(std::time::Duration::from_secs(1));
        connection = runner.resume(ledger.offsets());
    }
    let exited = connection.finish(&mut ledger);
    assert_eq!((exited.code, exited.ended_by), (Some(0), EndedBy::Itself));
    assert_eq!(ledger.stdout, b"ready\nover\n");
    shim.wait();
}

#[test]
fn a_run_that_is_over_is_kept_only_for_the_orphan_time() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = bash("echo ready; exit 6");
    job.limits.orphan_secs = 1;
    drop(started(&mut runner, &job));
    assert_eq!(shim.wait().code(), Some(6));
}

#[test]
fn background_processes_do_not_delay_the_end() {
    let marker = unique_sleep("background");
    let script = format!("sleep {marker} & (setsid sleep {marker} &); echo done");
    let mut job = bash(&script);
    // Nothing here ignores SIGTERM, so the grace time is never waited for.
    job.limits.grace_ms = 3_600_000;
    let (ledger, exited, status) = Runner::listening().run(&job);
    assert_eq!((exited.code, exited.ended_by), (Some(0), EndedBy::Itself));
    assert_eq!(ledger.stdout, b"done\n");
    assert_nothing_left(&marker);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn output_of_background_processes_is_kept_up_to_their_end() {
    let script = "(trap 'echo last; exit' TERM; echo ready; while :; do sleep 0.01; done) & read _ < <(sleep 0.3); exit 2";
    let mut job = bash(script);
    job.limits.grace_ms = 60_000;
    let (ledger, exited, _) = Runner::listening().run(&job);
    assert_eq!(exited.code, Some(2));
    assert_eq!(ledger.stdout, b"ready\nlast\n");
}

#[test]
fn a_fork_bomb_is_ended() {
    let marker = unique_sleep("bomb");
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    // Always three alive, each soon replaced by another, all in new sessions.
    let script = format!(
        "trap '' TERM; f() {{ setsid bash -c \"$s\" & }}
         export s='trap \"\" TERM; : {marker}; sleep 0.005; setsid bash -c \"$s\" & exit'
         f; f; f; echo ready; wait; sleep {marker}"
    );
    let (mut connection, mut ledger) = started(&mut runner, &bash(&script));
    connection.send(&FromRunner::Terminate);
    let exited = connection.finish(&mut ledger);
    assert_eq!(exited.ended_by, EndedBy::Runner);
    assert_nothing_left(&marker);
    shim.wait();
}

/// A process in a frozen cgroup (version 1) does not even die of SIGKILL.
#[test]
#[ignore = "needs root and a version 1 freezer cgroup; takes the shim's ten seconds"]
fn a_process_that_cannot_be_killed_does_not_hang_the_shim() {
    let freezer =
        std::path::PathBuf::from(format!("/sys/fs/cgroup/freezer/kage-shim-test-{}", std::process::id()));
    std::fs::create_dir(&freezer).unwrap();
    let marker = unique_sleep("frozen");
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let (mut connection, mut ledger) =
        started(&mut runner, &bash(&format!("sleep {marker} & echo ready; sleep {marker}; :")));
    for pid in processes_with(&marker) {
        std::fs::write(freezer.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    connection.send(&FromRunner::Terminate);
    let exited = connection.finish(&mut ledger);
    assert_eq!((exited.signal, exited.ended_by), (Some(9), EndedBy::Runner));
    assert_ne!(processes_with(&marker), [0; 0]);
    assert_eq!(shim.wait().code(), Some(137));
    std::fs::write(freezer.join("freezer.state"), "THAWED").unwrap();
    eventually("the thawed to die", || std::fs::remove_dir(&freezer).ok());
}

#[test]
fn orphans_are_reaped_while_the_cli_runs() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = bash("for i in $(seq 50); do (true &); done; echo ready; exec sleep 3600");
    job.limits.grace_ms = 0;
    let (mut connection, mut ledger) = started(&mut runner, &job);
    let pid = shim.pid();
    eventually("only the CLI to be a child", || {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        (list.split_whitespace().count() == 1).then_some(())
    });
    connection.send(&FromRunner::Terminate);
    connection.finish(&mut ledger);
    shim.wait();
}

#[test]
fn signals_are_passed_on_to_the_cli() {
    let names = ["INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"];
    let traps: String = names.iter().map(|name| format!("trap 'echo {name}' {name};")).collect();
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let job = bash(&format!("{traps} echo ready; while :; do sleep 0.02; done"));
    let (mut connection, mut ledger) = started(&mut runner, &job);
    let signals = [Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];
    for (signal, name) in signals.into_iter().zip(names) {
        shim.signal(signal);
        connection.receive_until(&mut ledger, &format!("{name}\n"));
    }
    for signal in [Signal::ALARM, Signal::TSTP, Signal::TTIN, Signal::XFSZ] {
        shim.signal(signal);
    }
    connection.send(&FromRunner::Terminate);
    assert_eq!(connection.finish(&mut ledger).signal, Some(15));
    shim.wait();
}

#[test]
fn a_shim_whose_runner_never_comes_ends_by_itself() {
    let runner = Runner::absent();
    let (status, message) = runner.shim_with(&["--wait-secs", "1"]).wait_with_message();
    assert_eq!(status, Some(125));
    assert!(message.contains("no job"), "{message}");
}

#[test]
fn a_shim_that_gets_no_job_ends_by_itself() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim_with(&["--wait-secs", "1"]);
    let (mut connection, _) = runner.accept();
    let (status, message) = shim.wait_with_message();
    assert_eq!(status, Some(125));
    assert!(message.contains("no job"), "{message}");
    assert_eq!(connection.rest(), b"");
}

#[test]
fn a_late_socket_is_found() {
    let mut runner = Runner::absent();
    let mut shim = runner.shim();
    std::thread::sleep(std::time::Duration::from_millis(700));
    let mut ledger = Ledger::default();
    let exited = runner.start(&bash("echo found")).finish(&mut ledger);
    assert_eq!((exited.code, ledger.stdout.as_slice()), (Some(0), &b"found\n"[..]));
    shim.wait();
}

#[test]
fn without_a_job_sigterm_ends_the_shim() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let (_connection, _) = runner.accept();
    shim.signal(Signal::TERM);
    let status = shim.wait();
    assert_eq!((status.code(), status.signal()), (Some(143), None));
}

#[test]
fn a_wrong_command_line_is_refused() {
    for args in [&["--socket"][..], &["run"], &["--wait-secs", "x"]] {
        let mut command = Command::new(SHIM);
        command.args(args);
        let (status, message) = Shim::spawn(command).wait_with_message();
        assert_eq!(status, Some(125));
        assert!(message.contains("argument") || message.contains("needs"), "{message}");
    }
}
