//! A scripted runner on a Unix socket, and the real `kage-shim` as an ordinary process.

#![expect(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kage_shim::protocol::{
    self, Exited, FromRunner, FromShim, Hello, Job, JobLimits, Offsets, Resume, Stream, write_frame,
};
use tempfile::TempDir;

pub const SHIM: &str = env!("CARGO_BIN_EXE_kage-shim");
pub const SESSION: &str = "0123456789abcdef";

/// Far beyond what any step takes: only a hang reaches it.
pub const HANG: Duration = Duration::from_secs(60);

/// Polls until `check` gives something.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < HANG, "waited in vain for {what}");
        sleep(Duration::from_millis(5));
    }
}

/// A job that runs `script` in bash.
pub fn bash(script: &str) -> Job {
    job(&["bash", "-c", script])
}

pub fn job(argv: &[&str]) -> Job {
    Job {
        session: SESSION.to_owned(),
        argv: argv.iter().map(ToString::to_string).collect(),
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        cwd: "/".to_owned(),
        stdin: String::new(),
        file: None,
        bridge: None,
        places: Vec::new(),
        copy_output: false,
        limits: JobLimits { wall_secs: 600, orphan_secs: 600, grace_ms: 200, buffer_bytes: 1024 * 1024 },
    }
}

/// Where runner and shim meet.
pub struct Runner {
    folder: TempDir,
    listener: Option<UnixListener>,
    /// The job was given: the shim comes back elsewhere.
    given: bool,
}

impl Runner {
    /// A folder without a socket.
    pub fn absent() -> Self {
        Self { folder: TempDir::new().unwrap(), listener: None, given: false }
    }

    pub fn listening() -> Self {
        let mut runner = Self::absent();
        runner.listen();
        runner
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run.sock")
    }

    /// Where the shim comes next.
    fn awaited(&self) -> PathBuf {
        if self.given { self.folder.path().join(protocol::socket_of(SESSION)) } else { self.socket() }
    }

    pub fn listen(&mut self) {
        let listener = UnixListener::bind(self.awaited()).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.listener = Some(listener);
    }

    /// Accepts the shim's connection, and takes the socket away as the real runner does.
    pub fn accept(&mut self) -> (Connection, Hello) {
        if self.listener.is_none() {
            self.listen();
        }
        let listener = self.listener.take().unwrap();
        let stream = eventually("a connection", || match listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("cannot accept: {error}"),
        });
        fs::remove_file(self.awaited()).unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        let mut connection = Connection { stream };
        let FromShim::Hello(hello) = connection.receive() else { panic!("no greeting") };
        assert_eq!(hello.version, protocol::VERSION);
        (connection, hello)
    }

    /// The first connection, with the job given.
    pub fn start(&mut self, job: &Job) -> Connection {
        let (mut connection, hello) = self.accept();
        assert_eq!(hello.session, None);
        assert_eq!(hello.acked, Offsets::default());
        connection.send(&FromRunner::Job(Box::new(job.clone())));
        self.given = true;
        connection
    }

    /// A later connection, resumed.
    pub fn resume(&mut self, committed: Offsets) -> Connection {
        let (mut connection, hello) = self.accept();
        assert_eq!(hello.session.as_deref(), Some(SESSION));
        connection.send(&FromRunner::Resume(Resume { committed }));
        connection
    }

    /// Starts the shim.
    pub fn shim(&self) -> Shim {
        self.shim_with(&[])
    }

    pub fn shim_with(&self, args: &[&str]) -> Shim {
        let mut command = Command::new(SHIM);
        command.arg("--socket").arg(self.socket()).args(args);
        Shim::spawn(command)
    }

    /// Runs a job to its end over one connection.
    pub fn run(&mut self, job: &Job) -> (Ledger, Exited, ExitStatus) {
        let mut shim = self.shim();
        let mut connection = self.start(job);
        let mut ledger = Ledger::default();
        let exited = connection.finish(&mut ledger);
        (ledger, exited, shim.wait())
    }
}

/// One connection from the shim.
pub struct Connection {
    pub stream: UnixStream,
}

impl Connection {
    pub fn send(&mut self, frame: &FromRunner) {
        write_frame(&mut self.stream, &frame.encode().unwrap()).unwrap();
    }

    pub fn receive(&mut self) -> FromShim {
        FromShim::decode(&protocol::read_body(&mut self.stream).expect("a frame from the shim")).unwrap()
    }

    /// Bytes until the shim closes the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => bytes,
        }
    }

    pub fn expect_started(&mut self) {
        assert_eq!(self.receive(), FromShim::Started);
    }

    pub fn ack(&mut self, ledger: &Ledger) {
        self.send(&FromRunner::Ack(ledger.offsets()));
    }

    /// Receives output until there is `text` in standard output.
    pub fn receive_until(&mut self, ledger: &mut Ledger, text: &str) {
        while !ledger.stdout_text().contains(text) {
            if let FromShim::Output { stream, offset, bytes } = self.receive() {
                ledger.add(stream, offset, &bytes);
            }
        }
    }

    /// Receives and acknowledges all output, then the end.
    pub fn exited(&mut self, ledger: &mut Ledger) -> Exited {
        loop {
            match self.receive() {
                FromShim::Started => {}
                FromShim::Output { stream, offset, bytes } => {
                    ledger.add(stream, offset, &bytes);
                    self.ack(ledger);
                }
                FromShim::Exited(exited) => {
                    assert_eq!(exited.total, ledger.offsets());
                    return exited;
                }
                FromShim::Hello(_) => panic!("a second greeting"),
            }
        }
    }

    /// All frames up to the end, of which the shim is not told that they came.
    pub fn unacknowledged(&mut self) -> Vec<FromShim> {
        let mut frames = Vec::new();
        while !matches!(frames.last(), Some(FromShim::Exited(_))) {
            frames.push(self.receive());
        }
        frames
    }

    /// As [`Connection::exited`], then lets the shim go.
    pub fn finish(&mut self, ledger: &mut Ledger) -> Exited {
        let exited = self.exited(ledger);
        self.ack(ledger);
        self.send(&FromRunner::Release);
        exited
    }
}

/// What a runner has committed.
#[derive(Default)]
pub struct Ledger {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Streams in the order in which their bytes came.
    pub order: Vec<Stream>,
}

impl Ledger {
    pub fn add(&mut self, stream: Stream, offset: u64, bytes: &[u8]) {
        assert!(!bytes.is_empty() && bytes.len() <= protocol::MAX_OUTPUT);
        let kept = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        assert_eq!(offset, kept.len() as u64, "a gap or a repetition in {stream:?}");
        kept.extend_from_slice(bytes);
        self.order.push(stream);
    }

    pub fn offsets(&self) -> Offsets {
        Offsets { stdout: self.stdout.len() as u64, stderr: self.stderr.len() as u64 }
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A running shim; killed when dropped.
pub struct Shim {
    child: Child,
}

impl Shim {
    /// Runs a prepared command without an environment.
    pub fn spawn(mut command: Command) -> Self {
        let child =
            command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Self { child: child.unwrap() }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        eventually("the shim's end", || self.child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The exit status and what was written to standard error.
    pub fn wait_with_message(&mut self) -> (Option<i32>, String) {
        let status = self.wait();
        let mut message = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        assert_eq!(status.signal(), None, "{message}");
        (status.code(), message)
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        // First asked: a test that fails must not leave the CLI behind.
        self.signal(rustix::process::Signal::TERM);
        sleep(Duration::from_millis(500));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// PIDs of all processes with `marker` in an argument.
pub fn processes_with(marker: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(marker).then_some(pid)
        })
        .collect()
}

/// An argument for sleep(1) that no other process has.
pub fn unique_sleep(name: &str) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte}")).collect();
    format!("9999.{}{digits}", std::process::id())
}
