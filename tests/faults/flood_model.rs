//! What floods the gateway: a provider that says more than anybody reads and reads as slowly as it can, and calls of CLIs that do
//! the same.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::StreamExt as _;
use futures::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;

use crate::support::TestKage;

/// Of one long answer.
const ANSWER: usize = 4 << 20;
/// Of one event of it.
const PIECE: usize = 16 << 10;
/// Of one large request.
const REQUEST: usize = 6 << 20;
/// What is small enough to be looked into.
const SMALL: usize = 64 << 10;
/// Of each sort of call, of each run and round.
const CALLS: usize = 4;

pub struct Provider {
    port: u16,
    server: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Provider {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let router = Router::new().fallback(answer);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { port, server }
    }

    /// Makes it this world's only provider, and registers the CLI image `asker`: a bash script that is given a model API.
    pub fn of(&self, kage: &mut TestKage) {
        let file = kage.folder.join("providers.toml");
        let table = format!(
            "[[provider]]\nname = \"near\"\ndialect = \"anthropic\"\nbase_url = \"http://127.0.0.1:{}\"\n\
             [[provider.model]]\nname = \"*\"\ninput_usd_per_mtok = 0.1\noutput_usd_per_mtok = 0.1\n\
             as_of = \"2026-01-01\"\n",
            self.port
        );
        std::fs::write(&file, table).expect("writes");
        kage.set("KAGE_GATEWAY_PROVIDERS", file.to_str().expect("UTF-8"));
        kage.image(
            "asker",
            "command = [\"/bin/bash\", \"-s\"]\nprompt = \"stdin\"\n[model]\ndialect = \"anthropic\"\ndefault = \"good\"\n\
             [environment]\nMODEL = \"{{model}}\"\nURL = \"{{gateway}}\"\nKEY = \"{{token}}\"\n",
        );
    }
}

async fn answer(body: Body) -> Response {
    let (mut pieces, mut seen, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(Ok(piece)) = pieces.next().await {
        length += piece.len();
        if length <= SMALL {
            seen.extend_from_slice(&piece);
        } else {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    let asks = |word: &[u8]| length <= SMALL && seen.windows(word.len()).any(|window| window == word);
    if asks(b"endless") {
        return streamed(usize::MAX);
    }
    if asks(b"long") {
        return streamed(ANSWER / PIECE);
    }
    let answer = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "good",
        "content": [{ "type": "text", "text": "the answer" }], "stop_reason": "end_turn", "stop_sequence": null,
        "usage": { "input_tokens": 10, "output_tokens": 10 },
    });
    let response = Response::builder().header("content-type", "application/json");
    response.body(Body::from(answer.to_string())).expect("an answer")
}

/// A message of so many events of text.
fn streamed(pieces: usize) -> Response {
    let event = |kind: &str, mut data: serde_json::Value| {
        data["type"] = kind.into();
        Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
    };
    let message = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "good", "content": [], "stop_reason": null,
        "stop_sequence": null, "usage": { "input_tokens": 10, "output_tokens": 1 },
    });
    let text = json!({ "index": 0, "delta": { "type": "text_delta", "text": "y".repeat(PIECE) } });
    let first = [
        event("message_start", json!({ "message": message })),
        event("content_block_start", json!({ "index": 0, "content_block": { "type": "text", "text": "" } })),
    ];
    let last = [
        event("content_block_stop", json!({ "index": 0 })),
        event(
            "message_delta",
            json!({ "delta": { "stop_reason": "end_turn" }, "usage": { "output_tokens": 10 } }),
        ),
        event("message_stop", json!({})),
    ];
    let text = event("content_block_delta", text);
    let all = first.into_iter().chain(std::iter::repeat_n(text, pieces)).chain(last);
    let body = Body::from_stream(futures::stream::iter(all.map(Ok::<_, Infallible>)));
    Response::builder().header("content-type", "text/event-stream").body(body).expect("an answer")
}

fn request(prompt: &str, stream: bool) -> String {
    let messages = json!([{ "role": "user", "content": prompt }]);
    json!({ "model": "good", "max_tokens": 1000, "stream": stream, "messages": messages }).to_string()
}

/// A call by hand, which goes no further than the beginning of its answer.
async fn begin(socket: &Path, body: &str, sent: usize) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.expect("connects");
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body[..sent]).as_bytes()).await.expect("is taken");
    stream
}

/// A CLI that asks and does not read.
async fn deaf(socket: &Path) -> UnixStream {
    let body = request("endless", true);
    let mut stream = begin(socket, &body, body.len()).await;
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    stream
}

/// One that reads to the end; how much it was.
async fn reader(client: &reqwest::Client, body: String) -> (u16, usize) {
    let sent = client
        .post("http://gateway/v1/messages")
        .header("content-type", "application/json")
        .body(body)
        .send();
    let mut answer = sent.await.expect("an answer");
    let (status, mut length) = (answer.status().as_u16(), 0);
    while let Some(chunk) = answer.chunk().await.expect("a whole answer") {
        length += chunk.len();
    }
    (status, length)
}

/// All sorts of calls at once: the first run's requests never come to their end, the others ask and read, or do not. Who holds a
/// call does so until all others have their answers.
pub async fn calls(sockets: &[PathBuf]) {
    let large = request(&"z".repeat(REQUEST), false);
    let (mute, others) = sockets.split_first().expect("some runs");
    let mut held = Vec::new();
    for _ in 0..CALLS {
        held.push(begin(mute, &large, 64 << 10).await);
    }
    let one = async |socket: &PathBuf| {
        let client = reqwest::Client::builder().unix_socket(socket.as_path()).no_proxy().build();
        let client = client.expect("a client");
        let (mut deaf_ones, mut readers) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            deaf_ones.push(deaf(socket).await);
            readers.push(reader(&client, request("long", true)));
            readers.push(reader(&client, large.clone()));
        }
        let answers = join_all(readers).await;
        let long = answers.iter().filter(|(status, length)| *status == 200 && *length > ANSWER).count();
        assert_eq!(long, CALLS, "{answers:?}");
        // Where there is no memory for a large one, it is told to come again.
        assert!(answers.iter().all(|(status, _)| [200, 503, 529].contains(status)), "{answers:?}");
        drop(deaf_ones);
    };
    join_all(others.iter().map(one)).await;
    drop(held);
}
