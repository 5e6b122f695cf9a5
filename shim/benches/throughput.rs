//! How fast the shim carries output, beside the same program writing into a bare pipe.
//!
//! `cargo bench -p kage-shim`. Prints medians; runs are interleaved.

use std::io::{self, BufWriter, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kage_shim::protocol::{FromRunner, FromShim, Job, JobLimits, Offsets, Stream, read_body, write_frame};

const ROUNDS: usize = 5;
const LINES: usize = 1_000_000;
const LINE: [u8; 98] =
    *b"2026-11-22T00:00:00Z info a line of the length that a build tool or a test runner writes, say 98.\n";
const BLOCKS: usize = 16 * 1024;
const BLOCK: usize = 64 * 1024;

type Error = Box<dyn std::error::Error>;

/// Plays the CLI when called with one of these as its argument.
fn write_output(kind: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match kind {
        "lines" => {
            // One write(2) a line, as a program that flushes does; std's own line buffer
            // does the same.
            for _ in 0..LINES {
                out.write_all(&LINE)?;
            }
        }
        "buffered-lines" => {
            let mut out = BufWriter::with_capacity(8192, out);
            for _ in 0..LINES {
                out.write_all(&LINE)?;
            }
            out.flush()?;
        }
        _ => {
            let block = vec![b'x'; BLOCK];
            for _ in 0..BLOCKS {
                out.write_all(&block)?;
            }
        }
    }
    Ok(())
}

fn through_pipe(kind: &str) -> Result<(u64, Duration), Error> {
    let start = Instant::now();
    let mut child = Command::new(std::env::current_exe()?).arg(kind).stdout(Stdio::piped()).spawn()?;
    let mut pipe = child.stdout.take().ok_or("no pipe")?;
    let mut buffer = vec![0; BLOCK];
    let mut bytes = 0;
    loop {
        match pipe.read(&mut buffer)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    child.wait()?;
    Ok((bytes, start.elapsed()))
}

fn through_shim(kind: &str) -> Result<(u64, Duration), Error> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("run.sock");
    let listener = UnixListener::bind(&socket)?;
    let shim = std::env::var("KAGE_SHIM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_kage-shim").to_owned());
    let mut shim = Command::new(shim).arg("--socket").arg(&socket).spawn()?;
    let (mut stream, _) = listener.accept()?;
    read_body(&mut stream)?;
    let program = std::env::current_exe()?.into_os_string().into_string().map_err(|_| "path")?;
    let job = Job {
        session: "s".to_owned(),
        argv: vec![program, kind.to_owned()],
        env: std::collections::BTreeMap::new(),
        cwd: "/".to_owned(),
        stdin: String::new(),
        file: None,
        bridge: None,
        places: Vec::new(),
        copy_output: false,
        limits: JobLimits { wall_secs: 600, orphan_secs: 600, grace_ms: 100, buffer_bytes: 8 << 20 },
    };
    let start = Instant::now();
    write_frame(&mut stream, &FromRunner::Job(Box::new(job)).encode()?)?;
    let mut received = Offsets::default();
    let mut acked = 0;
    let mut input = io::BufReader::with_capacity(256 * 1024, stream.try_clone()?);
    loop {
        match FromShim::decode(&read_body(&mut input)?)? {
            FromShim::Output { stream: Stream::Stdout, bytes, .. } => received.stdout += bytes.len() as u64,
            FromShim::Exited(_) => break,
            _ => {}
        }
        // A runner commits in batches, so it acknowledges in batches.
        if received.stdout - acked >= 1 << 20 {
            acked = received.stdout;
            write_frame(&mut stream, &FromRunner::Ack(received).encode()?)?;
        }
    }
    let elapsed = start.elapsed();
    write_frame(&mut stream, &FromRunner::Ack(received).encode()?)?;
    write_frame(&mut stream, &FromRunner::Release.encode()?)?;
    shim.wait()?;
    Ok((received.stdout, elapsed))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() -> Result<(), Error> {
    if let Some(kind) = std::env::args().nth(1).filter(|argument| !argument.starts_with('-')) {
        return Ok(write_output(&kind)?);
    }
    println!("{:<16}{:>12}{:>14}{:>14}{:>10}", "output", "bytes", "pipe MB/s", "shim MB/s", "seconds");
    for kind in ["blocks", "buffered-lines", "lines"] {
        let (mut pipe, mut shim, mut bytes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let (expected, elapsed) = through_pipe(kind)?;
            pipe.push(elapsed);
            let (carried, elapsed) = through_shim(kind)?;
            shim.push(elapsed);
            if carried != expected {
                return Err(format!("{carried} bytes of {expected} came through").into());
            }
            bytes = carried;
        }
        let (pipe, shim) = (median(pipe), median(shim));
        let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
        println!("{kind:<16}{bytes:>12}{:>14.0}{:>14.0}{:>10.2}", rate(pipe), rate(shim), shim.as_secs_f64());
    }
    Ok(())
}
