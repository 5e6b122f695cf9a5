//! A TCP proxy in front of a server of a test, that makes the network slow, narrow, silent or broken.
//!
//! It has a thread and a runtime of its own: a test that blocks does not hold it up. Of each direction of a connection it holds
//! [`HELD`] bytes at most, so who writes feels what it does.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Most bytes of one direction of a connection that are on their way.
pub const HELD: usize = 4 << 20;
const CHUNK: usize = 16 << 10;

/// What the network is like. The default: as if there were no proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// For each direction: a round trip takes twice as long.
    pub delay: Duration,
    /// Bytes a second of each direction of each connection.
    pub rate: Option<u64>,
    /// Nothing comes through, either way, and nobody is told. New connections are accepted, and hear nothing.
    pub is_black_hole: bool,
    /// New connections are reset.
    pub is_refusing: bool,
}

/// Where it leads.
#[derive(Debug, Clone)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

pub struct Proxy {
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    target: Target,
    weather: watch::Receiver<Weather>,
    /// Cancelled and replaced to break all connections.
    cut: watch::Sender<CancellationToken>,
    /// The same, to have them carry nothing more.
    forgotten: watch::Sender<CancellationToken>,
    end: CancellationToken,
    open: AtomicUsize,
    accepted: AtomicU64,
}

impl Proxy {
    /// Listens on a port of 127.0.0.1 that the kernel chooses.
    pub fn before(target: Target) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("an address");
        let (weather, seen) = watch::channel(Weather::default());
        let shared = Arc::new(Shared {
            target,
            weather: seen,
            cut: watch::channel(CancellationToken::new()).0,
            forgotten: watch::channel(CancellationToken::new()).0,
            end: CancellationToken::new(),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(accept(listener, of_thread));
        });
        Self { address, weather, shared, thread: Some(thread) }
    }

    /// In front of the server that a Postgres URL names, and the URL that leads through it.
    pub fn before_postgres(url: &str) -> (Self, String) {
        let mut url: url::Url = url.parse().expect("a URL");
        let folder = url.query_pairs().find(|(name, _)| name == "host").map(|(_, value)| value.into_owned());
        let port = url.port().unwrap_or(5432);
        let target = match folder.filter(|folder| folder.starts_with('/')) {
            Some(folder) => Target::Unix(PathBuf::from(folder).join(format!(".s.PGSQL.{port}"))),
            None => {
                let found = url.socket_addrs(|| Some(5432)).expect("an address");
                Target::Tcp(*found.first().expect("an address"))
            }
        };
        let this = Self::before(target);
        let rest: Vec<(String, String)> =
            url.query_pairs().filter(|(name, _)| name != "host").map(|(n, v)| (n.into(), v.into())).collect();
        url.query_pairs_mut().clear().extend_pairs(rest).append_pair("sslmode", "disable");
        url.set_ip_host(this.address.ip()).expect("takes a host");
        url.set_port(Some(this.address.port())).expect("takes a port");
        (this, url.into())
    }

    /// From now on, for connections that are open too.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Resets all connections that are open.
    pub fn cut(&self) {
        self.shared.cut.send_replace(CancellationToken::new()).cancel();
    }

    /// Nothing more comes through those that are open, either way, and nobody is told: as a firewall that has forgotten them. New ones
    /// are well.
    pub fn forget(&self) {
        self.shared.forgotten.send_replace(CancellationToken::new()).cancel();
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Connections that ever came.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.end.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the proxy panicked");
        }
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        let client = tokio::select! {
            () = shared.end.cancelled() => return,
            client = listener.accept() => client,
        };
        // Out of files, or the client is gone already.
        let Ok((client, _)) = client else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.open.fetch_add(1, Ordering::SeqCst);
            serve(client, &shared).await;
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// One connection, to its end.
async fn serve(mut client: TcpStream, shared: &Shared) {
    let cut = shared.cut.borrow().clone();
    let forgotten = shared.forgotten.borrow().clone();
    let carried = async {
        let mut carrying = pin!(connect(&mut client, shared));
        tokio::select! {
            biased;
            // Both ends stay open, and nobody moves what they say.
            () = forgotten.cancelled() => std::future::pending().await,
            ended = &mut carrying => ended,
        }
    };
    let ended = tokio::select! {
        ended = carried => ended,
        () = cut.cancelled() => Err(io::ErrorKind::ConnectionReset.into()),
        () = shared.end.cancelled() => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if ended.is_err() {
        // A reset, as of a network that broke, not the end of a conversation.
        drop(client.set_zero_linger());
    }
}

async fn connect(client: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let mut weather = shared.weather.clone();
    if weather.borrow().is_refusing {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // Nothing reaches the server meanwhile.
    weather.wait_for(|weather| !weather.is_black_hole).await.map_err(io::Error::other)?;
    client.set_nodelay(true)?;
    let (read, write) = client.split();
    match &shared.target {
        Target::Tcp(address) => {
            let mut server = TcpStream::connect(address).await?;
            server.set_nodelay(true)?;
            let (from, to) = server.split();
            tokio::try_join!(carry(read, to, shared), carry(from, write, shared))?;
        }
        Target::Unix(path) => {
            let mut server = UnixStream::connect(path).await?;
            let (from, to) = server.split();
            tokio::try_join!(carry(read, to, shared), carry(from, write, shared))?;
        }
    }
    Ok(())
}

/// One direction, to its end: each chunk when it is due, in order.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
) -> io::Result<()> {
    let mut changes = shared.weather.clone();
    let mut buffer = vec![0; CHUNK];
    let (mut held, mut bytes) = (VecDeque::<(Instant, Vec<u8>)>::new(), 0);
    let (mut is_ended, mut next) = (false, Instant::now());
    while !(is_ended && held.is_empty()) {
        let weather = *changes.borrow_and_update();
        let flows = !weather.is_black_hole;
        // Narrow is narrow from the first byte on.
        let most = weather
            .rate
            .map_or(CHUNK, |rate| usize::try_from(rate / 10).map_or(CHUNK, |n| n.clamp(1, CHUNK)));
        let due = held.front().map(|(due, _)| (*due).max(next));
        tokio::select! {
            // What was said of the weather before a byte came holds for that byte.
            biased;
            changed = changes.changed() => changed.map_err(io::Error::other)?,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if flows && due.is_some() => {
                let (_, chunk) = held.pop_front().expect("it is due");
                to.write_all(&chunk).await?;
                bytes -= chunk.len();
                let takes = weather.rate.map(|rate| Duration::from_secs_f64(chunk.len() as f64 / rate.max(1) as f64));
                next = Instant::now() + takes.unwrap_or_default();
            }
            read = from.read(&mut buffer[..most]), if flows && !is_ended && bytes < HELD => {
                let read = read?;
                is_ended = read == 0;
                bytes += read;
                if read > 0 {
                    held.push_back((Instant::now() + weather.delay, buffer[..read].to_vec()));
                }
            }
        }
    }
    to.shutdown().await
}

/// Answers every line with the same one, and counts those that came.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    address
}

/// Sends a byte and waits for it to come back; how long that took.
async fn ping(stream: &mut TcpStream) -> io::Result<Duration> {
    let begun = Instant::now();
    stream.write_all(b"!").await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    Ok(begun.elapsed())
}

#[tokio::test]
async fn the_proxy_does_what_it_is_told() {
    let proxy = Proxy::before(Target::Tcp(echo().await));
    let mut stream = TcpStream::connect(proxy.address).await.expect("connects");
    ping(&mut stream).await.expect("answers");
    assert_eq!((proxy.open(), proxy.accepted()), (1, 1));

    // Slow: never faster than it was told to be.
    let delay = Duration::from_millis(150);
    proxy.set(Weather { delay, ..Weather::default() });
    assert!(ping(&mut stream).await.expect("answers") >= 2 * delay);

    // Narrow: 30 kB one way and back at 50 kB/s, both ways at once.
    proxy.set(Weather { rate: Some(50_000), ..Weather::default() });
    let begun = Instant::now();
    stream.write_all(&[b'x'; 30_000]).await.expect("writes");
    stream.read_exact(&mut [0; 30_000]).await.expect("all of it comes back");
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());

    // Silent: what was sent meanwhile comes afterwards, once.
    proxy.set(Weather { is_black_hole: true, ..Weather::default() });
    let silence = tokio::time::timeout(Duration::from_millis(300), ping(&mut stream)).await;
    assert!(silence.is_err(), "something came through");
    let mut other = TcpStream::connect(proxy.address).await.expect("is accepted");
    let silence = tokio::time::timeout(Duration::from_millis(300), ping(&mut other)).await;
    assert!(silence.is_err(), "something came through");
    proxy.set(Weather::default());
    for stream in [&mut stream, &mut other] {
        stream.read_exact(&mut [0]).await.expect("comes");
        ping(stream).await.expect("answers");
    }

    // Who writes without reading is held up: nothing piles up here.
    proxy.set(Weather { is_black_hole: true, ..Weather::default() });
    let much = vec![b'y'; 64 << 20];
    let written = tokio::time::timeout(Duration::from_millis(500), other.write_all(&much)).await;
    assert!(written.is_err(), "64 MiB went into nothing");

    // Broken.
    proxy.set(Weather::default());
    proxy.cut();
    let error = ping(&mut stream).await.expect_err("is cut");
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
    let mut stream = TcpStream::connect(proxy.address).await.expect("connects");
    ping(&mut stream).await.expect("a new connection is well");

    // Refused.
    proxy.set(Weather { is_refusing: true, ..Weather::default() });
    let refused = async {
        let mut stream = TcpStream::connect(proxy.address).await?;
        ping(&mut stream).await
    };
    refused.await.expect_err("is refused");
    ping(&mut stream).await.expect("those that are open stay");
}
