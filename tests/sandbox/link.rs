//! The runner's end of the shim's protocol, against a peer that can be as wrong as it likes.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kage::sandbox::shim_link::{LinkError, ShimLink, new_session};
use kage::sandbox::shim_listener::ShimListener;
use kage::sandbox::spec::SandboxUser;
use kage_shim::protocol::{
    EndedBy, Exited, FromRunner, FromShim, Hello, Job, JobLimits, MAX_FRAME, Offsets, Stream, VERSION,
    frame_length,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const LONG: Duration = Duration::from_secs(60);

struct Peer(UnixStream);

impl Peer {
    async fn connect(folder: &Path) -> Self {
        let names = std::fs::read_dir(folder).expect("lists").map(|entry| entry.expect("reads").path());
        let socket = names.into_iter().find(|path| path.extension().is_some_and(|end| end == "sock"));
        Self(UnixStream::connect(socket.expect("a socket")).await.expect("connects"))
    }

    async fn say(&mut self, frame: FromShim) {
        self.0.write_all(&frame.encode().expect("encodes")).await.expect("writes");
    }

    async fn hello(&mut self, session: Option<&str>, acked: Offsets) {
        self.say(FromShim::Hello(Hello {
            version: VERSION,
            session: session.map(str::to_owned),
            acked,
            facts: session.is_none().then(Box::default),
        }))
        .await;
    }

    async fn output(&mut self, offset: u64, text: &str) {
        self.say(FromShim::Output { stream: Stream::Stdout, offset, bytes: text.into() }).await;
    }

    async fn hear(&mut self) -> FromRunner {
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix).await.expect("reads");
        let mut body = vec![0; frame_length(prefix).expect("a length")];
        self.0.read_exact(&mut body).await.expect("reads");
        FromRunner::decode(&body).expect("a frame")
    }

    /// Whether the runner has hung up on us.
    async fn is_dropped(&mut self) -> bool {
        self.0.read(&mut [0; 1]).await.map_or(true, |length| length == 0)
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("tempdir");
    // Deeper than a socket's address is long.
    let deep = folder.path().join("d".repeat(120)).join("run");
    (folder, deep)
}

fn listen(folder: &Path) -> ShimListener {
    ShimListener::bind(folder, SandboxUser::new(10001, 10001).expect("not root")).expect("binds")
}

fn listen_again(folder: &Path, session: &str) -> ShimListener {
    let user = SandboxUser::new(10001, 10001).expect("not root");
    ShimListener::bind_again(folder, user, session).expect("binds")
}

fn job(session: &str) -> Job {
    Job {
        session: session.to_owned(),
        argv: vec!["true".to_owned()],
        env: Default::default(),
        cwd: "/workspace".to_owned(),
        stdin: "a\nprompt".to_owned(),
        file: None,
        bridge: None,
        places: Vec::new(),
        copy_output: false,
        limits: JobLimits { wall_secs: 60, orphan_secs: 60, grace_ms: 1000, buffer_bytes: 1 << 20 },
    }
}

/// Short enough for a socket's address, unlike the folder itself.
fn short(folder: &Path) -> PathBuf {
    let link = std::env::temp_dir().join(format!("kage-link-{}", uuid::Uuid::new_v4().simple()));
    std::os::unix::fs::symlink(folder, &link).expect("symlink");
    link
}

async fn first(folder: &Path, session: &str) -> (ShimLink, Peer) {
    let listener = listen(folder);
    let at = short(folder);
    let accepted = async {
        let (mut link, _) = listener.accept_first(LONG).await?;
        link.give(job(session)).await.map(|()| link)
    };
    let (link, peer) = tokio::join!(accepted, async {
        let mut peer = Peer::connect(&at).await;
        peer.hello(None, Offsets::default()).await;
        assert!(matches!(peer.hear().await, FromRunner::Job(given) if *given == job(session)));
        peer
    });
    std::fs::remove_file(at).expect("removes");
    (link.expect("links"), peer)
}

#[tokio::test]
async fn the_job_is_given_once_and_the_socket_is_gone() {
    let (_keep, folder) = folder();
    let listener = listen(&folder);
    let socket = std::fs::metadata(folder.join("run.sock")).expect("is there");
    assert_eq!((socket.uid(), socket.gid(), socket.permissions().mode() & 0o777), (10001, 10001, 0o600));
    assert_eq!(std::fs::metadata(&folder).expect("is there").permissions().mode() & 0o777, 0o711);
    drop(listener);
    assert!(!folder.join("run.sock").exists());

    let (mut link, mut peer) = first(&folder, "secret").await;
    assert!(!folder.join("run.sock").exists());
    peer.say(FromShim::Started).await;
    peer.output(0, "hello ").await;
    peer.output(6, "world").await;
    assert_eq!(link.recv().await.expect("started"), FromShim::Started);
    let output = |offset, text: &str| FromShim::Output { stream: Stream::Stdout, offset, bytes: text.into() };
    assert_eq!(link.recv().await.expect("output"), output(0, "hello "));
    assert_eq!(link.recv().await.expect("output"), output(6, "world"));
    let all = Offsets { stdout: 11, stderr: 0 };
    let some = Offsets { stdout: 5, stderr: 0 };
    link.ack(some).await.expect("acknowledges");
    assert!(peer.hear().await == FromRunner::Ack(some));
    let backwards = link.ack(Offsets::default()).await;
    assert!(matches!(backwards, Err(LinkError::Protocol(_))), "{backwards:?}");
    assert!(matches!(link.ack(Offsets { stdout: 12, stderr: 0 }).await, Err(LinkError::Protocol(_))));
    assert!(matches!(link.release().await, Err(LinkError::Protocol(_))), "it has not exited");
    link.terminate().await.expect("sends");
    assert!(peer.hear().await == FromRunner::Terminate);
    peer.say(FromShim::Exited(exited(all))).await;
    assert_eq!(link.recv().await.expect("exited"), FromShim::Exited(exited(all)));
    assert!(matches!(link.release().await, Err(LinkError::Protocol(_))), "not all is acknowledged");
    link.ack(all).await.expect("acknowledges");
    assert!(peer.hear().await == FromRunner::Ack(all));
    link.release().await.expect("sends");
    assert!(peer.hear().await == FromRunner::Release);
    drop(peer);
    assert!(matches!(link.recv().await, Err(LinkError::Closed)));
}

fn exited(total: Offsets) -> Exited {
    Exited {
        code: Some(0),
        signal: None,
        spawn_error: None,
        ended_by: EndedBy::Itself,
        oom_kills: 0,
        refused_forks: 0,
        full: Vec::new(),
        total,
    }
}

#[tokio::test]
async fn only_the_session_is_resumed_and_impostors_hold_nobody_up() {
    let (_keep, folder) = folder();
    let session = new_session();
    let listener = listen_again(&folder, &session);
    assert!(!folder.join("run.sock").exists(), "nobody else knows where");
    let at = short(&folder);
    let committed = Offsets { stdout: 10, stderr: 3 };
    let (link, mut peer) = tokio::join!(listener.accept_resumed(&session, committed, LONG), async {
        let mut silent = Peer::connect(&at).await;
        let mut jobless = Peer::connect(&at).await;
        jobless.hello(None, Offsets::default()).await;
        let mut guessing = Peer::connect(&at).await;
        guessing.hello(Some(&new_session()), Offsets::default()).await;
        let mut rude = Peer::connect(&at).await;
        rude.0.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("writes");
        let mut hasty = Peer::connect(&at).await;
        hasty.output(0, "not a hello").await;
        for peer in [&mut jobless, &mut guessing, &mut rude, &mut hasty] {
            assert!(peer.is_dropped().await);
        }
        let mut peer = Peer::connect(&at).await;
        peer.hello(Some(&session), Offsets { stdout: 4, stderr: 0 }).await;
        assert!(matches!(peer.hear().await, FromRunner::Resume(resume) if resume.committed == committed));
        assert!(silent.is_dropped().await, "who is not the shim is dropped when it has come");
        peer
    });
    std::fs::remove_file(at).expect("removes");
    let mut link = link.expect("links");
    // What was committed already is cut off, what lies across is split.
    peer.output(4, "456789").await;
    peer.output(8, "89ab").await;
    peer.say(FromShim::Output { stream: Stream::Stderr, offset: 3, bytes: b"e".to_vec() }).await;
    let output = FromShim::Output { stream: Stream::Stdout, offset: 10, bytes: b"ab".to_vec() };
    assert_eq!(link.recv().await.expect("output"), output);
    let output = FromShim::Output { stream: Stream::Stderr, offset: 3, bytes: b"e".to_vec() };
    assert_eq!(link.recv().await.expect("output"), output);
    assert_eq!(link.received(), Offsets { stdout: 12, stderr: 4 });
}

/// Why the place is a secret: who finds it fills the queue, says nothing, and the shim is not heard in time.
#[tokio::test]
async fn a_queue_that_others_find_is_full() {
    let (_keep, folder) = folder();
    let session = new_session();
    let listener = listen_again(&folder, &session);
    let at = short(&folder);
    let (link, _silent) =
        tokio::join!(listener.accept_resumed(&session, Offsets::default(), Duration::from_secs(2)), async {
            let mut silent = Vec::new();
            for _ in 0..40 {
                silent.push(Peer::connect(&at).await);
            }
            let mut peer = Peer::connect(&at).await;
            peer.hello(Some(&session), Offsets::default()).await;
            silent.push(peer);
            silent
        });
    std::fs::remove_file(at).expect("removes");
    assert!(matches!(link, Err(LinkError::NotConnected(_))), "{link:?}");
}

#[tokio::test]
async fn a_shim_that_dropped_uncommitted_output_is_refused() {
    let (_keep, folder) = folder();
    let listener = listen(&folder);
    let at = short(&folder);
    let (link, ()) =
        tokio::join!(listener.accept_resumed("s", Offsets { stdout: 5, stderr: 0 }, LONG), async {
            let mut peer = Peer::connect(&at).await;
            peer.hello(Some("s"), Offsets { stdout: 6, stderr: 0 }).await;
            let _ = peer.is_dropped().await;
        });
    std::fs::remove_file(at).expect("removes");
    assert!(matches!(link, Err(LinkError::Protocol(_))), "{link:?}");
}

#[tokio::test]
async fn a_shim_of_another_version_is_refused() {
    let (_keep, folder) = folder();
    let listener = listen(&folder);
    let at = short(&folder);
    let (link, ()) = tokio::join!(listener.accept_first(LONG), async {
        let mut peer = Peer::connect(&at).await;
        peer.say(FromShim::Hello(Hello {
            version: VERSION + 1,
            session: None,
            acked: Offsets::default(),
            facts: None,
        }))
        .await;
        let _ = peer.is_dropped().await;
    });
    std::fs::remove_file(at).expect("removes");
    assert!(matches!(link, Err(LinkError::Version(_))), "{link:?}");
}

#[tokio::test]
async fn nobody_comes() {
    let (_keep, folder) = folder();
    let late = listen(&folder).accept_first(Duration::from_millis(50)).await;
    assert!(matches!(late, Err(LinkError::NotConnected(_))));
    assert!(!folder.join("run.sock").exists());
}

#[tokio::test]
async fn a_broken_protocol_ends_the_link() {
    let output =
        |offset, bytes: &[u8]| FromShim::Output { stream: Stream::Stdout, offset, bytes: bytes.to_vec() };
    let hello =
        FromShim::Hello(Hello { version: VERSION, session: None, acked: Offsets::default(), facts: None });
    let encode = |frames: &[FromShim]| {
        frames.iter().flat_map(|frame| frame.encode().expect("encodes")).collect::<Vec<u8>>()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a gap", encode(&[output(1, b"x")])),
        ("an overflow", encode(&[output(u64::MAX, b"x")])),
        ("a second hello", encode(&[hello])),
        ("an exit that lost output", encode(&[FromShim::Exited(exited(Offsets { stdout: 1, stderr: 0 }))])),
        ("output after the end", encode(&[FromShim::Exited(exited(Offsets::default())), output(0, b"x")])),
        ("a frame for the runner", FromRunner::Terminate.encode().expect("encodes")),
        ("an empty frame", vec![0, 0, 0, 0]),
        ("a huge frame", u32::try_from(MAX_FRAME).expect("fits").to_be_bytes().to_vec()),
        ("an endless frame", vec![0xff; 8]),
        ("a frame that is no JSON", vec![0, 0, 0, 3, 4, b'{', b'x']),
        ("output without an offset", vec![0, 0, 0, 2, 3, 1]),
        ("output of no stream", vec![0, 0, 0, 11, 3, 9, 0, 0, 0, 0, 0, 0, 0, 0, b'x']),
    ];
    for (what, bytes) in cases {
        let (_keep, folder) = folder();
        let (mut link, mut peer) = first(&folder, "s").await;
        peer.0.write_all(&bytes).await.expect("writes");
        drop(peer);
        let error = loop {
            match link.recv().await {
                Ok(FromShim::Exited(_)) => {}
                Ok(other) => panic!("{what}: {other:?}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, LinkError::Protocol(_)), "{what}: {error}");
    }
}

#[tokio::test]
async fn waiting_can_be_dropped_without_loss_and_a_cut_frame_is_not_received() {
    let (_keep, folder) = folder();
    let (mut link, mut peer) = first(&folder, "s").await;
    let text = "x".repeat(50_000);
    let frame = FromShim::Output { stream: Stream::Stdout, offset: 0, bytes: text.clone().into() };
    let bytes = frame.encode().expect("encodes");
    let mut received = None;
    for part in bytes.chunks(7_001) {
        assert!(received.is_none());
        peer.0.write_all(part).await.expect("writes");
        // Gives up again and again in the middle of the frame.
        received = tokio::time::timeout(Duration::from_millis(20), link.recv()).await.ok();
    }
    let received = match received {
        Some(received) => received,
        None => link.recv().await,
    };
    assert_eq!(received.expect("whole"), frame);
    let next = FromShim::Output { stream: Stream::Stdout, offset: 50_000, bytes: text.into() }
        .encode()
        .expect("encodes");
    peer.0.write_all(&next[..30_000]).await.expect("writes");
    drop(peer);
    assert!(matches!(link.recv().await, Err(LinkError::Closed)));
    assert_eq!(link.received(), Offsets { stdout: 50_000, stderr: 0 });
}
