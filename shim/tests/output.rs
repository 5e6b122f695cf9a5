//! Output: complete, in order, and exactly once, whatever happens to the runner.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::Duration;

use kage_shim::protocol::{
    EndedBy, Exited, FromRunner, FromShim, Job, MAX_OUTPUT, Offsets, Resume, Stream, frame_length,
};
use support::{Connection, HANG, Ledger, Runner, bash, processes_with, unique_sleep};

/// Bytes of the frame that only a first connection has.
const STARTED: usize = 5;

/// Numbered lines on both streams, in pieces of many sizes; about 1.2 MB.
const MIXED: &str =
    "for i in $(seq 1 60); do seq $i $((i * 100)); seq $i $((i * 50)) >&2; printf \"no end $i\"; done";

/// What [`MIXED`] writes.
fn mixed() -> (String, String) {
    let lines = |from: u32, to: u32| (from..=to).map(|number| format!("{number}\n")).collect::<String>();
    let stdout = (1..=60).map(|i| lines(i, i * 100) + &format!("no end {i}")).collect();
    (stdout, (1..=60).map(|i| lines(i, i * 50)).collect())
}

fn assert_mixed(ledger: &Ledger) {
    let (stdout, stderr) = mixed();
    assert!(ledger.stdout == stdout.as_bytes(), "standard output differs");
    assert!(ledger.stderr == stderr.as_bytes(), "standard error differs");
}

#[test]
fn both_streams_are_complete() {
    let (ledger, exited, _) = Runner::listening().run(&bash(MIXED));
    assert_eq!(exited.code, Some(0));
    assert_mixed(&ledger);
}

#[test]
fn the_order_of_reads_is_kept_over_both_streams() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    // Each piece is written only when the one before has arrived.
    // A reader that comes before the writer of the last line has closed sees the end of file: it looks again.
    let next = "until read _ < f; do :; done";
    let script = format!("for i in 1 2 3 4 5; do echo $i; {next}; echo $i >&2; {next}; done");
    let mut job = bash(&format!("mkfifo f; {script}"));
    job.cwd = runner.folder().to_str().unwrap().to_owned();
    let fifo = runner.folder().join("f");
    let mut connection = runner.start(&job);
    connection.expect_started();
    let mut ledger = Ledger::default();
    for _ in 0..10 {
        let FromShim::Output { stream, offset, bytes } = connection.receive() else { panic!("no output") };
        ledger.add(stream, offset, &bytes);
        std::fs::write(&fifo, "\n").unwrap();
    }
    // All of it is sent again, from the beginning, to a runner that has nothing.
    drop(connection);
    let mut connection = runner.resume(Offsets::default());
    let mut again = Ledger::default();
    connection.finish(&mut again);
    shim.wait();
    for ledger in [ledger, again] {
        assert_eq!(ledger.order, [Stream::Stdout, Stream::Stderr].repeat(5));
        assert_eq!(ledger.stdout, b"1\n2\n3\n4\n5\n");
    }
}

#[test]
fn a_hundred_megabytes_come_in_frames_of_at_most_64_kib() {
    let (ledger, exited, _) = Runner::listening().run(&bash("head -c 100000000 /dev/zero"));
    assert_eq!(exited.total, Offsets { stdout: 100_000_000, stderr: 0 });
    assert!(ledger.stdout.iter().all(|&byte| byte == 0));
    assert!(ledger.order.len() >= 100_000_000 / MAX_OUTPUT);
}

/// What the runner had done with a frame when it died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Crash {
    /// Everything since the last acknowledgement is lost.
    BeforeCommit,
    /// Committed, but the shim was not told.
    BeforeAck,
    /// Committed and told.
    AfterAck,
}

/// Receives up to `frames` frames, then dies.
fn receive_some(
    connection: &mut Connection,
    ledger: &mut Ledger,
    frames: usize,
    crash: Crash,
) -> Option<Exited> {
    let mut uncommitted = Ledger::default();
    uncommitted.stdout.clone_from(&ledger.stdout);
    uncommitted.stderr.clone_from(&ledger.stderr);
    let mut end = None;
    for _ in 0..frames {
        match connection.receive() {
            FromShim::Output { stream, offset, bytes } => {
                uncommitted.add(stream, offset, &bytes);
                if crash == Crash::AfterAck {
                    connection.ack(&uncommitted);
                }
            }
            FromShim::Exited(exited) => {
                end = Some(exited);
                break;
            }
            FromShim::Started | FromShim::Hello(_) => {}
        }
    }
    if crash != Crash::BeforeCommit {
        *ledger = uncommitted;
    }
    end
}

#[test]
fn a_runner_that_dies_after_any_number_of_frames_loses_and_doubles_nothing() {
    for crash in [Crash::BeforeCommit, Crash::BeforeAck, Crash::AfterAck] {
        for frames in [1, 2, 3, 5, 8, 13] {
            let mut runner = Runner::listening();
            let mut shim = runner.shim();
            let mut connection = runner.start(&bash(MIXED));
            let mut ledger = Ledger::default();
            for round in 0..12 {
                // Grows, so that also a runner that commits nothing sees different cuts.
                let frames = frames + if crash == Crash::BeforeCommit { round } else { 0 };
                if receive_some(&mut connection, &mut ledger, frames, crash).is_some() {
                    break;
                }
                drop(connection);
                connection = runner.resume(ledger.offsets());
            }
            drop(connection);
            let mut connection = runner.resume(ledger.offsets());
            let exited = connection.finish(&mut ledger);
            assert_eq!((exited.code, exited.ended_by), (Some(0), EndedBy::Itself), "{crash:?} {frames}");
            assert_mixed(&ledger);
            assert_eq!(shim.wait().code(), Some(0));
        }
    }
}

/// Lets the runner die after each number of bytes of what the shim sends: every `step`th,
/// from `first` on.
fn cut_at_bytes(first: usize, step: usize) {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut connection = runner.start(&bash("printf one; printf two >&2; printf three; exit 5"));
    let length = connection.unacknowledged().iter().map(|frame| frame.encode().unwrap().len()).sum::<usize>();
    for cut in (first..=length).step_by(step) {
        drop(connection);
        connection = runner.resume(Offsets::default());
        let mut bytes = vec![0; cut.min(length - STARTED)];
        connection.stream.read_exact(&mut bytes).unwrap();
    }
    drop(connection);
    let mut ledger = Ledger::default();
    let exited = runner.resume(Offsets::default()).finish(&mut ledger);
    assert_eq!(exited.code, Some(5));
    assert_eq!((ledger.stdout.as_slice(), ledger.stderr.as_slice()), (&b"onethree"[..], &b"two"[..]));
    assert_eq!(shim.wait().code(), Some(5));
}

#[test]
fn a_runner_that_dies_at_any_byte_loses_and_doubles_nothing() {
    let lanes = 6;
    let threads: Vec<_> = (0..lanes).map(|lane| thread::spawn(move || cut_at_bytes(lane, lanes))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_runner_that_dies_before_it_gives_the_job_changes_nothing() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let whole = FromRunner::Job(Box::new(bash("echo done"))).encode().unwrap();
    for cut in [0, 1, 4, 5, whole.len() / 2, whole.len() - 1] {
        let (mut connection, hello) = runner.accept();
        assert_eq!(hello.session, None);
        connection.stream.write_all(&whole[..cut]).unwrap();
    }
    let mut ledger = Ledger::default();
    let exited = runner.start(&bash("echo done")).finish(&mut ledger);
    assert_eq!((exited.code, ledger.stdout.as_slice()), (Some(0), &b"done\n"[..]));
    assert_eq!(shim.wait().code(), Some(0));
}

/// Receives until the shim has nothing more to send.
fn receive_until_quiet(connection: &mut Connection, ledger: &mut Ledger) {
    connection.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut prefix = [0; 4];
    loop {
        match connection.stream.read(&mut prefix[..1]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            read => assert_eq!(read.unwrap(), 1, "the shim has hung up"),
        }
        connection.stream.set_read_timeout(Some(HANG)).unwrap();
        connection.stream.read_exact(&mut prefix[1..]).unwrap();
        let mut body = vec![0; frame_length(prefix).unwrap()];
        connection.stream.read_exact(&mut body).unwrap();
        if let FromShim::Output { stream, offset, bytes } = FromShim::decode(&body).unwrap() {
            ledger.add(stream, offset, &bytes);
        }
        connection.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    }
    connection.stream.set_read_timeout(Some(HANG)).unwrap();
}

#[test]
fn a_full_buffer_blocks_the_cli_until_it_is_acknowledged() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = bash("head -c 3000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo over > over");
    job.cwd = runner.folder().to_str().unwrap().to_owned();
    job.limits.buffer_bytes = 300_000;
    let over = runner.folder().join("over");
    let mut connection = runner.start(&job);
    let mut ledger = Ledger::default();
    receive_until_quiet(&mut connection, &mut ledger);
    assert!((200_000..=300_000).contains(&ledger.stdout.len()), "kept {}", ledger.stdout.len());
    assert!(!over.exists());
    connection.ack(&ledger);
    let before = ledger.stdout.len();
    receive_until_quiet(&mut connection, &mut ledger);
    assert!((200_000..=300_000).contains(&(ledger.stdout.len() - before)));
    assert!(!over.exists());
    // Also for a runner that comes back.
    drop(connection);
    let mut connection = runner.resume(ledger.offsets());
    let exited = connection.finish(&mut ledger);
    assert_eq!(exited.total, Offsets { stdout: 3_000_000, stderr: 1_000_000 });
    assert!(over.exists());
    assert_eq!(shim.wait().code(), Some(0));
}

#[test]
fn the_buffer_never_holds_less_than_a_frame() {
    let mut job = bash("head -c 200000 /dev/zero");
    job.limits.buffer_bytes = 0;
    let (_, exited, _) = Runner::listening().run(&job);
    assert_eq!(exited.total.stdout, 200_000);
}

#[test]
fn single_bytes_of_alternating_streams_stay_within_the_memory() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut job = bash("while :; do printf .; printf . >&2; done");
    job.limits.buffer_bytes = 65_536;
    job.limits.grace_ms = 0;
    let mut connection = runner.start(&job);
    let mut ledger = Ledger::default();
    // As long as it takes to fill the buffer; a chunk costs more than its bytes.
    receive_until_quiet(&mut connection, &mut ledger);
    let kept = ledger.stdout.len() + ledger.stderr.len();
    assert!(kept <= 65_536, "kept {kept}");
    connection.send(&FromRunner::Terminate);
    connection.ack(&ledger);
    assert_eq!(connection.finish(&mut ledger).ended_by, EndedBy::Runner);
    shim.wait();
}

#[test]
fn offsets_that_cannot_be_served_end_the_run() {
    let beyond = Offsets { stdout: 4, stderr: 0 };
    let below = Offsets { stdout: 2, stderr: 0 };
    for committed in [beyond, below, Offsets { stdout: 3, stderr: 1 }] {
        let mut runner = Runner::listening();
        let mut shim = runner.shim();
        let marker = unique_sleep("offsets");
        let mut connection = runner.start(&bash(&format!("printf abc; sleep {marker}; :")));
        let mut ledger = Ledger::default();
        connection.receive_until(&mut ledger, "abc");
        connection.ack(&ledger);
        // The answer to a greeting that follows shows that the acknowledgement was taken.
        drop(connection);
        let (mut connection, hello) = runner.accept();
        assert_eq!(hello.acked, ledger.offsets());
        connection.send(&FromRunner::Resume(Resume { committed }));
        let (status, message) = shim.wait_with_message();
        assert_eq!(status, Some(125));
        assert!(message.contains("broke the protocol"), "{message}");
        assert_eq!(processes_with(&marker), [0; 0]);
    }
}

#[test]
fn a_runner_that_breaks_the_protocol_ends_the_run() {
    let second_job = FromRunner::Job(Box::new(bash("true"))).encode().unwrap();
    let unsent = FromRunner::Ack(Offsets { stdout: 0, stderr: 1 }).encode().unwrap();
    let early = FromRunner::Release.encode().unwrap();
    let resumption = FromRunner::Resume(Resume { committed: Offsets::default() }).encode().unwrap();
    let cases = [
        second_job,
        unsent,
        early,
        resumption,
        vec![0, 0, 0, 0],
        vec![255, 255, 255, 255],
        vec![0, 0, 0, 1, 77],
        vec![0, 0, 0, 3, 18, b'{', b'}'],
    ];
    for bytes in cases {
        let mut runner = Runner::listening();
        let mut shim = runner.shim();
        let marker = unique_sleep("protocol");
        let mut connection = runner.start(&bash(&format!("sleep {marker}; :")));
        connection.expect_started();
        connection.stream.write_all(&bytes).unwrap();
        let (status, message) = shim.wait_with_message();
        assert_eq!(status, Some(125), "{bytes:?}");
        assert!(message.contains("broke the protocol"), "{message}");
        assert_eq!(processes_with(&marker), [0; 0]);
    }
}

#[test]
fn the_end_is_told_again_to_a_runner_that_comes_back() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut ledger = Ledger::default();
    let first = runner.start(&bash("echo x; exit 3")).exited(&mut ledger);
    for _ in 0..3 {
        assert_eq!(runner.resume(ledger.offsets()).exited(&mut ledger), first);
    }
    assert!(shim.is_running());
    // Released, but not everything acknowledged: the output must not be lost.
    let mut connection = runner.resume(ledger.offsets());
    connection.finish(&mut ledger);
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn a_release_does_not_lose_what_is_not_acknowledged() {
    let mut runner = Runner::listening();
    let mut shim = runner.shim();
    let mut connection = runner.start(&bash("echo x"));
    connection.unacknowledged();
    connection.send(&FromRunner::Release);
    drop(connection);
    let mut ledger = Ledger::default();
    runner.resume(Offsets::default()).finish(&mut ledger);
    assert_eq!(ledger.stdout, b"x\n");
    assert_eq!(shim.wait().code(), Some(0));
}

/// The engine's log gets a copy when the job asks for it, and nothing when it does not.
#[test]
fn a_copy_of_the_output_goes_to_the_shims_own_streams_if_the_job_says_so() {
    for copy_output in [true, false] {
        let mut runner = Runner::listening();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kage-shim"));
        command.arg("--socket").arg(runner.socket());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let shim = command.spawn().unwrap();
        let job = Job { copy_output, ..bash("echo to the log; echo and here >&2") };
        let mut connection = runner.start(&job);
        let mut ledger = Ledger::default();
        connection.finish(&mut ledger);
        let output = shim.wait_with_output().unwrap();
        let expected = if copy_output { ("to the log\n", "and here\n") } else { ("", "") };
        let seen = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!((seen.0.as_str(), seen.1.as_str()), expected);
        assert_eq!(ledger.stdout_text(), "to the log\n");
    }
}
