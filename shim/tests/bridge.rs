//! The way from the CLI's loopback port to the gateway's socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use kage_shim::protocol::{self, Job};
use support::{Connection, HANG, Ledger, Runner, Shim, bash, eventually};

/// A run with a bridge, and the gateway's end of it.
struct World {
    runner: Runner,
    shim: Shim,
    connection: Connection,
    port: u16,
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn with_bridge(runner: &Runner, script: &str, port: u16) -> Job {
    let socket = model_socket(runner).to_str().unwrap().to_owned();
    let mut job = Job { bridge: Some(protocol::Bridge { port, socket }), ..bash(script) };
    job.env.insert("FOLDER".to_owned(), runner.folder().to_str().unwrap().to_owned());
    job
}

fn model_socket(runner: &Runner) -> PathBuf {
    runner.folder().join("model.sock")
}

impl World {
    /// The CLI does what `script` says.
    fn new(script: &str) -> Self {
        let mut runner = Runner::listening();
        let port = free_port();
        let shim = runner.shim();
        let mut connection = runner.start(&with_bridge(&runner, script, port));
        connection.expect_started();
        Self { runner, shim, connection, port }
    }

    fn gateway(&self) -> UnixListener {
        UnixListener::bind(model_socket(&self.runner)).unwrap()
    }

    fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        stream
    }
}

fn accept(gateway: &UnixListener) -> UnixStream {
    let (stream, _) = gateway.accept().unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream
}

/// Bytes that betray every gap, repetition and exchange.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let world = World::new("sleep 600");
    let gateway = world.gateway();
    let (request, answer) = (bytes(1, 5 << 20), bytes(2, 7 << 20));
    let (asked, told) = (request.clone(), answer.clone());
    let server = thread::spawn(move || {
        let mut stream = accept(&gateway);
        // The beginning of the answer comes while the request is still on its way.
        stream.write_all(&told[..10]).unwrap();
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).unwrap();
        assert!(seen == asked, "the request was changed on its way");
        stream.write_all(&told[10..]).unwrap();
    });
    let mut client = world.dial();
    let mut first = [0; 10];
    client.read_exact(&mut first).unwrap();
    client.write_all(&request).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut seen = first.to_vec();
    client.read_to_end(&mut seen).unwrap();
    assert!(seen == answer, "the answer was changed on its way");
    server.join().unwrap();
}

#[test]
fn a_side_that_does_not_read_holds_the_other_up_and_nobody_else() {
    let world = World::new("sleep 600");
    let gateway = world.gateway();
    let mut stuck = world.dial();
    let mut asleep = accept(&gateway);
    stuck.set_nonblocking(true).unwrap();
    let chunk = bytes(3, 1 << 16);
    let (mut sent, mut refusals) = (0, 0);
    // Kernel buffers grow while they fill: full is what stays full.
    while refusals < 100 {
        match stuck.write(&chunk[sent % chunk.len()..]) {
            Ok(count) => (sent, refusals) = (sent + count, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refusals += 1;
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 256 << 20, "the bridge takes whatever comes");
    }
    let mut other = world.dial();
    let mut served = accept(&gateway);
    other.write_all(b"ping").unwrap();
    let mut ping = [0; 4];
    served.read_exact(&mut ping).unwrap();
    assert_eq!(&ping, b"ping");

    stuck.shutdown(Shutdown::Write).unwrap();
    let mut seen = Vec::new();
    asleep.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len(), sent);
    assert!(seen.chunks(chunk.len()).all(|part| part == &chunk[..part.len()]));
}

#[test]
fn a_client_that_goes_is_gone_for_the_gateway() {
    let world = World::new("sleep 600");
    let gateway = world.gateway();
    let client = world.dial();
    let mut stream = accept(&gateway);
    drop(client);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    // What is still sent to it ends in an error, not in a buffer.
    let chunk = [0; 1 << 16];
    eventually("the connection's end", || stream.write_all(&chunk).err());
}

#[test]
fn a_gateway_that_is_started_anew_is_waited_for() {
    let world = World::new("sleep 600");
    let mut client = world.dial();
    client.write_all(b"early").unwrap();
    thread::sleep(Duration::from_millis(300));
    let gateway = world.gateway();
    let mut stream = accept(&gateway);
    let mut seen = [0; 5];
    stream.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"early");

    drop((gateway, stream));
    assert_eq!(client.read(&mut seen).unwrap(), 0, "a broken connection is not mended");
    fs::remove_file(model_socket(&world.runner)).unwrap();
    let gateway = world.gateway();
    let mut client = world.dial();
    client.write_all(b"again").unwrap();
    accept(&gateway).read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"again");
}

#[test]
fn more_connections_than_there_is_room_for_take_turns() {
    const CLIENTS: u8 = 150;
    let world = World::new("sleep 600");
    let gateway = world.gateway();
    let server = thread::spawn(move || {
        for _ in 0..CLIENTS {
            let mut stream = accept(&gateway);
            thread::spawn(move || {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                stream.write_all(&byte).unwrap();
            });
        }
    });
    let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| world.dial()).collect();
    for (number, mut client) in (0..CLIENTS).zip(clients) {
        client.write_all(&[number]).unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [number]);
    }
    server.join().unwrap();
}

#[test]
fn a_port_that_is_taken_keeps_the_cli_from_starting() {
    let mut runner = Runner::listening();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let marker = runner.folder().join("ran");
    let job = with_bridge(&runner, &format!("touch {}", marker.display()), port);
    let (_, exited, status) = runner.run(&job);
    let reason = exited.spawn_error.unwrap();
    assert!(reason.contains(&format!("127.0.0.1:{port}")), "{reason}");
    assert_eq!(status.code(), Some(126));
    assert!(!marker.exists());
}

#[test]
fn the_bridge_ends_with_the_cli() {
    let mut world = World::new("until [ -e $FOLDER/end ]; do sleep 0.05; done; exit 3");
    let gateway = world.gateway();
    let mut client = world.dial();
    let mut stream = accept(&gateway);
    fs::write(world.runner.folder().join("end"), "").unwrap();
    let exited = world.connection.exited(&mut Ledger::default());
    assert_eq!(exited.code, Some(3));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(!matches!(client.read(&mut [0; 1]), Ok(1..)));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, world.port)).is_err());
    assert!(world.shim.is_running(), "its end is not yet recorded");
}

#[test]
fn a_cli_that_is_being_ended_makes_no_more_calls() {
    let mut world = World::new("trap '' TERM; echo ready; while :; do sleep 1; done");
    let mut ledger = Ledger::default();
    world.connection.receive_until(&mut ledger, "ready");
    world.connection.send(&protocol::FromRunner::Terminate);
    eventually("the port's end", || TcpStream::connect((Ipv4Addr::LOCALHOST, world.port)).err());
}
