//! Every request as it came: in memory for tests, and as JSON lines in a file.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::http::request::Parts;
use serde::Serialize;
use serde_json::Value;

use crate::dialect::Dialect;

/// Bytes of bodies kept in memory; older requests are forgotten (the file keeps all).
const KEPT: usize = 64 << 20;

#[derive(Debug, Clone, Serialize)]
pub struct Recorded {
    /// From 1.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub dialect: Option<Dialect>,
    pub method: String,
    pub path: String,
    pub query: Option<String>,
    /// In the order in which they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as JSON, where it is JSON.
    pub json: Option<Value>,
    /// The body as text, where it is text but no JSON.
    pub text: Option<String>,
    /// The body in base64, where it is neither.
    pub base64: Option<String>,
    /// Turn of the script that answered it, from 1.
    pub turn: Option<usize>,
    pub fault: Option<String>,
    #[serde(skip)]
    size: usize,
}

impl Recorded {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Default)]
pub struct Recorder {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: VecDeque<Recorded>,
    size: usize,
    count: u64,
    file: Option<File>,
}

/// What the server made of a request.
#[derive(Debug, Default)]
pub struct Understood {
    pub dialect: Option<Dialect>,
    pub turn: Option<usize>,
    pub fault: Option<String>,
}

impl Recorder {
    /// Appends to `file`, which only its owner may read: requests hold credentials.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn new(file: Option<&Path>) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let open = |path| OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let inner = Inner { file: file.map(open).transpose()?, ..Inner::default() };
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// # Errors
    /// The file cannot be written.
    pub fn record(&self, parts: &Parts, body: &Bytes, understood: Understood) -> io::Result<()> {
        let headers = parts.headers.iter().map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let text = if json.is_some() || body.is_empty() { None } else { std::str::from_utf8(body).ok() };
        let neither = json.is_none() && text.is_none() && !body.is_empty();
        let mut recorded = Recorded {
            number: 0,
            at_ms: now_ms(),
            dialect: understood.dialect,
            method: parts.method.as_str().to_owned(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().map(str::to_owned),
            headers: headers.collect(),
            text: text.map(str::to_owned),
            base64: neither.then(|| STANDARD.encode(body)),
            json,
            turn: understood.turn,
            fault: understood.fault,
            size: body.len(),
        };
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.count += 1;
        recorded.number = inner.count;
        if let Some(file) = &mut inner.file {
            let mut line = serde_json::to_vec(&recorded)?;
            line.push(b'\n');
            file.write_all(&line)?;
        }
        inner.size += recorded.size;
        inner.kept.push_back(recorded);
        while inner.size > KEPT && inner.kept.len() > 1 {
            let oldest = inner.kept.pop_front();
            inner.size -= oldest.map_or(0, |oldest| oldest.size);
        }
        Ok(())
    }

    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.kept.iter().cloned().collect()
    }

    pub fn forget(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.kept.clear();
        inner.size = 0;
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
