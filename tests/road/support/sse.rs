//! A strict reader of event streams: whatever the server may not send is a failure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::{Method, Response};
use serde_json::Value;

use crate::support::http::Answer;
use crate::support::{PATIENCE, TestKage};

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: Option<i64>,
    pub name: String,
    pub data: Value,
    /// A comment came with it.
    pub comment: bool,
}

impl Event {
    /// The bytes of a `log` event.
    pub fn bytes(&self) -> Vec<u8> {
        assert_eq!(self.name, "log");
        let text = self.data["text"].as_str().expect("log events have a text");
        match self.data["base64"].as_str() {
            None => text.as_bytes().to_vec(),
            Some(encoded) => {
                let bytes = STANDARD.decode(encoded).expect("base64");
                assert_eq!(String::from_utf8_lossy(&bytes), text);
                assert!(String::from_utf8(bytes.clone()).is_err(), "base64 without need");
                bytes
            }
        }
    }
}

pub struct EventStream {
    body: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    buffer: Vec<u8>,
}

impl EventStream {
    /// # Panics
    /// If the answer is not an event stream.
    pub fn new(response: Response) -> Self {
        let of = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned()
        };
        assert_eq!(of("content-type"), "text/event-stream");
        assert_eq!(of("cache-control"), "no-cache");
        Self { body: response.bytes_stream().boxed(), buffer: Vec::new() }
    }

    /// The next event; `None` at the stream's end, an error where the connection breaks.
    pub async fn try_next(&mut self) -> Result<Option<Event>, reqwest::Error> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(Some(parse(std::str::from_utf8(&block).expect("event streams are UTF-8"))));
            }
            let next = tokio::time::timeout(PATIENCE, self.body.next()).await;
            match next.expect("heartbeats come in time") {
                Some(chunk) => self.buffer.extend_from_slice(&chunk?),
                None => {
                    assert!(self.buffer.is_empty(), "half an event at the end: {:?}", self.buffer);
                    return Ok(None);
                }
            }
        }
    }

    pub async fn next(&mut self) -> Option<Event> {
        self.try_next().await.expect("the stream does not break")
    }

    /// All until the end, heartbeats left out.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            if event.name != "heartbeat" {
                events.push(event);
            }
        }
        events
    }

    /// The next heartbeat; whatever comes before it is passed over.
    pub async fn until_heartbeat(&mut self) -> Event {
        loop {
            let event = self.next().await.expect("the stream goes on");
            if event.name == "heartbeat" {
                return event;
            }
        }
    }

    /// Everything up to the first event that fits, heartbeats left out.
    pub async fn until(&mut self, mut fits: impl FnMut(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await.expect("the event comes before the stream's end");
            if event.name == "heartbeat" {
                continue;
            }
            let found = fits(&event);
            events.push(event);
            if found {
                return events;
            }
        }
    }
}

fn parse(block: &str) -> Event {
    let (mut id, mut name, mut data, mut comment) = (None, None, None, false);
    for line in block.trim_end_matches('\n').split('\n') {
        assert!(!line.contains('\r'), "a carriage return ends a line too: {line:?}");
        if line.starts_with(':') {
            comment = true;
        } else if let Some(text) = line.strip_prefix("id: ") {
            assert!(id.replace(text.parse().expect("a number")).is_none(), "two ids: {block:?}");
        } else if let Some(text) = line.strip_prefix("event: ") {
            assert!(name.replace(text.to_owned()).is_none(), "two names: {block:?}");
        } else if let Some(text) = line.strip_prefix("data: ") {
            assert!(
                data.replace(serde_json::from_str(text).expect("JSON")).is_none(),
                "two data lines: {block:?}"
            );
        } else {
            panic!("no line of an event: {line:?}");
        }
    }
    Event { id, name: name.expect("a name"), data: data.expect("data"), comment }
}

/// What one stream's log events of one run and stream (`stdout`, `stderr`) make, with offsets checked.
pub fn output(events: &[Event], run: &str, stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut attempt = 0;
    let mut offset = 0;
    for event in events.iter().filter(|event| event.name == "log") {
        if event.data["run"] != run || event.data["stream"] != stream {
            continue;
        }
        if event.data["attempt"].as_u64().expect("a number") != attempt {
            attempt = event.data["attempt"].as_u64().expect("a number");
            offset = 0;
        }
        assert_eq!(event.data["offset"], offset, "a gap or a duplicate in {run}'s {stream}");
        let block = event.bytes();
        assert!((1..=65536).contains(&block.len()), "a block of {} bytes", block.len());
        offset += block.len() as u64;
        bytes.extend(block);
    }
    bytes
}

/// Checks that ids rise by one from `first`; events of the connection itself have none.
pub fn assert_contiguous(events: &[Event], first: i64) {
    let ids: Vec<i64> = events.iter().filter_map(|event| event.id).collect();
    let expected: Vec<i64> = (first..).take(ids.len()).collect();
    assert_eq!(ids, expected);
}

impl TestKage {
    /// Opens a task's stream. `query` as in `?after=3`; the refusal if it is refused.
    pub async fn try_stream(
        &self,
        task: &str,
        query: &str,
        last_event_id: Option<&str>,
    ) -> Result<EventStream, Answer> {
        let mut request = self.request(Method::GET, &format!("/api/v1/tasks/{task}/progress{query}"));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.expect("the server answers");
        if response.status() == 200 {
            return Ok(EventStream::new(response));
        }
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Err(Answer { status, headers, body: response.bytes().await.expect("a whole body") })
    }

    pub async fn stream(&self, task: &str, query: &str) -> EventStream {
        self.try_stream(task, query, None).await.unwrap_or_else(|answer| panic!("{}", answer.text()))
    }

    /// All events of a task that are or come after a cursor, without `connected`, once it has ended.
    pub async fn events(&self, task: &str, query: &str) -> Vec<Event> {
        let mut events = self.stream(task, query).await.rest().await;
        let first = events.remove(0);
        assert_eq!((first.name.as_str(), first.id), ("connected", None));
        events
    }
}
