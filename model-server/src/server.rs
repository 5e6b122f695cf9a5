//! Listens, reads requests, answers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::answer::{self, Body};
use crate::delivery::deliver;
use crate::dialect::Dialect;
use crate::fault::{Fault, Kind};
use crate::play::Player;
use crate::recorder::{Recorder, Understood};
use crate::routes::{Route, route};
use crate::script::Script;

/// Longest body that is read.
const BODY_LIMIT: usize = 128 << 20;

#[derive(Debug)]
pub struct Options {
    /// What is played where the prompt holds no script.
    pub script: Script,
    pub faults: Vec<Fault>,
    /// Requests go to this file too.
    pub record: Option<PathBuf>,
    /// Requests without this key, in the header of their dialect, get a 401.
    pub require_key: Option<String>,
    /// Names for the model lists. Any model is answered.
    pub models: Vec<String>,
    /// What the fault `fixed` answers.
    pub fixed: Option<Fixed>,
}

/// An answer laid down as a whole.
#[derive(Debug, Clone)]
pub struct Fixed {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Options {
    #[must_use]
    pub fn new(script: Script) -> Self {
        let models = vec!["kage-scripted".to_owned()];
        Self { script, faults: Vec::new(), record: None, require_key: None, models, fixed: None }
    }
}

#[derive(Debug, Clone)]
pub enum Listen {
    Tcp(SocketAddr),
    /// Path and mode of the socket's file. A socket that is there already is replaced.
    Unix(PathBuf, u32),
}

#[derive(Debug)]
pub struct Server {
    listener: Listener,
    /// Unlinked with the server.
    _socket: Option<SocketFile>,
    state: Arc<State>,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Removed when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[derive(Debug)]
struct State {
    player: Player,
    recorder: Arc<Recorder>,
    require_key: Option<String>,
    models: Vec<String>,
    fixed: Option<Fixed>,
}

impl Server {
    /// Bound, but not yet answering.
    ///
    /// # Errors
    /// The address or the record file cannot be had.
    pub async fn bind(listen: Listen, options: Options) -> io::Result<Self> {
        let recorder = Arc::new(Recorder::new(options.record.as_deref())?);
        let (listener, socket) = match listen {
            Listen::Tcp(address) => (Listener::Tcp(TcpListener::bind(address).await?), None),
            Listen::Unix(path, mode) => {
                remove_stale(&path)?;
                let listener = UnixListener::bind(&path)?;
                let file = SocketFile(path);
                std::fs::set_permissions(&file.0, PermissionsExt::from_mode(mode))?;
                (Listener::Unix(listener), Some(file))
            }
        };
        let state = State {
            player: Player::new(options.script, options.faults),
            recorder,
            require_key: options.require_key,
            models: options.models,
            fixed: options.fixed,
        };
        Ok(Self { listener, _socket: socket, state: Arc::new(state) })
    }

    /// `None` on a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    #[must_use]
    pub fn recorder(&self) -> Arc<Recorder> {
        self.state.recorder.clone()
    }

    /// Answers until `stop` is done; then every connection is cut.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let mut stop = pin!(stop);
        // A silent fault waits for ever; dropping the set ends it.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                accepted = self.listener.accept() => {
                    connections.spawn(converse(accepted?, self.state.clone()));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is no socket", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// One connection, request after request. A client that goes away is no error of ours.
async fn converse(connection: Box<dyn Connection>, state: Arc<State>) {
    let service = service_fn(|request| {
        let state = state.clone();
        async move { state.answer(request).await }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    let _ = builder.serve_connection(TokioIo::new(connection), service).await;
}

impl State {
    /// # Errors
    /// The connection is to be closed without an answer: a fault of the script, or the client's body broke off.
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let route = match route(&parts.method, parts.uri.path()) {
            // Two dialects have this path; one of them always says which version it speaks.
            Route::Models(Dialect::Chat) if parts.headers.contains_key("anthropic-version") => {
                Route::Models(Dialect::Anthropic)
            }
            other => other,
        };
        let dialect = dialect_of(&route);
        let body = match Limited::new(body, BODY_LIMIT).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) => return Err(io::Error::other(error)),
        };
        if let Some(dialect) = dialect
            && let Some(refused) = self.refuse_key(&parts, dialect)
        {
            self.record(&parts, &body, Some(dialect), None)?;
            return Ok(refused);
        }
        match route {
            Route::Generate { dialect, model, stream } => {
                self.generate(&parts, &body, dialect, model, stream).await
            }
            Route::Requests => Ok(answer::json(200, &json!(self.recorder.requests()))),
            Route::Forget => {
                self.recorder.forget();
                Ok(answer::json(200, &json!({})))
            }
            other => {
                self.record(&parts, &body, dialect, None)?;
                Ok(self.fact(&other, &parts, &body))
            }
        }
    }

    /// What needs no script.
    fn fact(&self, route: &Route, parts: &Parts, body: &Bytes) -> Response<Body> {
        match route {
            Route::CountTokens(dialect) => answer::count(*dialect, body),
            Route::Models(dialect) => answer::models(*dialect, &self.models),
            Route::Show => answer::show(),
            Route::Version => answer::json(200, &json!({ "version": env!("CARGO_PKG_VERSION") })),
            Route::Hello => {
                answer::whole(200, "text/plain", Bytes::from_static(b"kage-model-server is running"))
            }
            _ => {
                let message = format!("no route {} {}", parts.method, parts.uri.path());
                answer::error(Dialect::Chat, 404, &message, None)
            }
        }
    }

    async fn generate(
        &self,
        parts: &Parts,
        body: &Bytes,
        dialect: Dialect,
        model: Option<String>,
        stream: Option<bool>,
    ) -> io::Result<Response<Body>> {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            self.record(parts, body, Some(dialect), None)?;
            return Ok(answer::error(dialect, 400, "the body is no JSON", None));
        };
        let mut conversation = dialect.conversation(&value);
        conversation.model = model.unwrap_or(conversation.model);
        conversation.stream = stream.unwrap_or(conversation.stream);
        match self.player.play(&conversation) {
            Ok(played) => {
                self.record(parts, body, Some(dialect), Some((played.reply.turn, played.fault)))?;
                if played.fault == Some(Kind::Fixed)
                    && let Some(fixed) = &self.fixed
                {
                    return Ok(answer::fixed(fixed));
                }
                deliver(dialect, conversation.stream, parts.uri.path(), played).await
            }
            Err(error) => {
                self.record(parts, body, Some(dialect), None)?;
                Ok(answer::error(dialect, 400, &error.to_string(), None))
            }
        }
    }

    fn record(
        &self,
        parts: &Parts,
        body: &Bytes,
        dialect: Option<Dialect>,
        played: Option<(usize, Option<Kind>)>,
    ) -> io::Result<()> {
        let fault = played.and_then(|(_, kind)| kind);
        let fault = fault.map(|kind| Fault { kind, turn: None, times: None }.to_string());
        let understood = Understood { dialect, turn: played.map(|(turn, _)| turn + 1), fault };
        self.recorder.record(parts, body, understood)
    }

    fn refuse_key(&self, parts: &Parts, dialect: Dialect) -> Option<Response<Body>> {
        let wanted = self.require_key.as_deref()?;
        let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = || header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let given = match dialect {
            Dialect::Anthropic => header("x-api-key").or_else(bearer),
            Dialect::Gemini => header("x-goog-api-key"),
            Dialect::Responses | Dialect::Chat | Dialect::Ollama => bearer(),
        };
        let refused =
            || answer::error(dialect, 401, "kage-model-server: not the key that was asked for", None);
        (given != Some(wanted)).then(refused)
    }
}

fn dialect_of(route: &Route) -> Option<Dialect> {
    match route {
        Route::Generate { dialect, .. } | Route::CountTokens(dialect) | Route::Models(dialect) => {
            Some(*dialect)
        }
        Route::Show | Route::Version => Some(Dialect::Ollama),
        Route::Hello | Route::Requests | Route::Forget | Route::Unknown => None,
    }
}
