//! The shim as PID 1 of a PID namespace, as in a sandbox. Needs the right to make one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;

use kage_shim::protocol::{EndedBy, FromRunner};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use support::{Ledger, Runner, SHIM, Shim, bash, eventually, processes_with, unique_sleep};

fn as_pid_1(runner: &Runner) -> Shim {
    let mut command = Command::new("/usr/bin/unshare");
    if !geteuid().is_root() {
        command.args(["--user", "--map-current-user"]);
    }
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", SHIM]);
    command.arg("--socket").arg(runner.socket());
    Shim::spawn(command)
}

/// The shim's PID as this test sees it.
fn outer_pid(runner: &Runner) -> Pid {
    let socket = runner.socket().to_str().unwrap().to_owned();
    let pid = eventually("the shim inside", || {
        processes_with(&socket).into_iter().find(|pid| {
            let program = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            program.starts_with(SHIM.as_bytes())
        })
    });
    Pid::from_raw(pid).unwrap()
}

#[test]
fn it_is_pid_1_and_carries_status_and_output() {
    let mut runner = Runner::listening();
    let mut shim = as_pid_1(&runner);
    let mut ledger = Ledger::default();
    let exited = runner.start(&bash("echo $PPID; exit 9")).finish(&mut ledger);
    assert_eq!((exited.code, exited.ended_by), (Some(9), EndedBy::Itself));
    assert_eq!(ledger.stdout, b"1\n");
    assert_eq!(shim.wait().code(), Some(9));
}

#[test]
fn everything_in_the_namespace_is_ended() {
    let marker = unique_sleep("namespace");
    let mut runner = Runner::listening();
    let mut shim = as_pid_1(&runner);
    let script = format!(
        "trap '' TERM; (setsid sleep {marker} &); (setsid bash -c 'sleep {marker} & sleep {marker}; :' &)
         until [ $(pgrep -fc '^sleep {marker}') = 3 ]; do sleep 0.01; done; echo ready; sleep {marker}; :"
    );
    let mut connection = runner.start(&bash(&script));
    let mut ledger = Ledger::default();
    connection.receive_until(&mut ledger, "ready");
    connection.send(&FromRunner::Terminate);
    let exited = connection.exited(&mut ledger);
    assert_eq!(processes_with(&marker), [0; 0]);
    assert_eq!((exited.signal, exited.ended_by), (Some(9), EndedBy::Runner));
    connection.ack(&ledger);
    connection.send(&FromRunner::Release);
    assert_eq!(shim.wait().code(), Some(137));
}

#[test]
fn the_end_waits_for_no_grace_time_if_all_obey() {
    let marker = unique_sleep("obey");
    let mut runner = Runner::listening();
    let mut shim = as_pid_1(&runner);
    let mut job = bash(&format!("sleep {marker} & (setsid sleep {marker} &); exit 0"));
    job.limits.grace_ms = 3_600_000;
    let mut ledger = Ledger::default();
    assert_eq!(runner.start(&job).finish(&mut ledger).code, Some(0));
    assert_eq!(shim.wait().code(), Some(0));
    assert_eq!(processes_with(&marker), [0; 0]);
}

#[test]
fn signals_that_pid_1_would_not_get_are_handled() {
    let mut runner = Runner::listening();
    let mut shim = as_pid_1(&runner);
    let pid = outer_pid(&runner);
    let mut job = bash("trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done");
    job.limits.grace_ms = 3_600_000;
    let mut connection = runner.start(&job);
    let mut ledger = Ledger::default();
    connection.receive_until(&mut ledger, "ready");
    kill_process(pid, Signal::USR1).unwrap();
    connection.receive_until(&mut ledger, "usr1");
    kill_process(pid, Signal::TERM).unwrap();
    let exited = connection.finish(&mut ledger);
    assert_eq!((exited.signal, exited.ended_by), (Some(15), EndedBy::Container));
    assert_eq!(shim.wait().code(), Some(143));
}

#[test]
fn the_cli_cannot_end_the_shim() {
    let mut runner = Runner::listening();
    let mut shim = as_pid_1(&runner);
    let mut ledger = Ledger::default();
    let script = "for i in KILL STOP SEGV ABRT PIPE TERM; do kill -$i 1; done; sleep 0.1; echo here; exit 3";
    let exited = runner.start(&bash(script)).finish(&mut ledger);
    assert_eq!((exited.code, ledger.stdout.as_slice()), (Some(3), &b"here\n"[..]));
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn a_fork_bomb_is_ended_at_once() {
    let marker = unique_sleep("pid1bomb");
    let mut runner = Runner::listening();
    let mut shim = as_pid_1(&runner);
    let script = format!(
        "trap '' TERM; export s='trap \"\" TERM; : {marker}; sleep 0.005; setsid bash -c \"$s\" & exit'
         for i in 1 2 3; do setsid bash -c \"$s\" & done; echo ready; sleep {marker}; :"
    );
    let mut connection = runner.start(&bash(&script));
    let mut ledger = Ledger::default();
    connection.receive_until(&mut ledger, "ready");
    connection.send(&FromRunner::Terminate);
    assert_eq!(connection.finish(&mut ledger).ended_by, EndedBy::Runner);
    assert_eq!(processes_with(&marker), [0; 0]);
    assert_eq!(shim.wait().code(), Some(137));
}
