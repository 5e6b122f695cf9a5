//! Frames to typed events.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;

use crate::client::sse::Frame;
use crate::wire::event::{Connected, Log, Notice, Progress, RunResult, Security, State, TaskComplete};
use crate::wire::let_go::Missing;

/// One event of a task, at its place in the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Rises from event to event.
    pub id: u64,
    /// The SSE event name.
    pub name: String,
    /// The payload as it came: one JSON value.
    pub data: String,
    pub payload: Payload,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    State(State),
    Log(Log),
    Progress(Progress),
    Result(Box<RunResult>),
    Warning(Notice),
    Security(Security),
    Error(Notice),
    TaskComplete(TaskComplete),
    /// An event that this version does not know.
    Other,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Connected(Connected),
    Event(Box<Event>),
    /// The server could not go on with this stream.
    Broken(String),
    /// A part of the stream is no longer kept.
    LetGo(Missing),
    /// A heartbeat, or something of no account.
    Nothing,
}

/// What is wrong with a frame.
pub type Malformed = String;

/// Reads a frame.
///
/// # Errors
/// Says what is wrong with it.
pub fn read(frame: Frame) -> Result<Message, Malformed> {
    let Frame { id, event: name, data } = frame;
    let Some(id) = id else {
        return match name.as_str() {
            "connected" => Ok(Message::Connected(parse(&name, &data)?)),
            "let_go" => Ok(Message::LetGo(parse(&name, &data)?)),
            "error" => {
                let text =
                    parse::<Notice>(&name, &data).map_or_else(|_| data.clone(), |notice| notice.message);
                Ok(Message::Broken(text))
            }
            "log" | "state" | "progress" | "result" | "warning" | "security" | "task_complete" => {
                Err(format!("a {name} event without an id"))
            }
            _ => Ok(Message::Nothing),
        };
    };
    let id: u64 = id.parse().map_err(|_| "an event whose id is not a number".to_owned())?;
    let payload = match name.as_str() {
        "state" => Payload::State(parse(&name, &data)?),
        "log" => Payload::Log(parse(&name, &data)?),
        "progress" => Payload::Progress(parse(&name, &data)?),
        "result" => Payload::Result(parse(&name, &data)?),
        "warning" => Payload::Warning(parse(&name, &data)?),
        "security" => Payload::Security(parse(&name, &data)?),
        "error" => Payload::Error(parse(&name, &data)?),
        "task_complete" => Payload::TaskComplete(parse(&name, &data)?),
        _ => {
            parse::<serde::de::IgnoredAny>(&name, &data)?;
            Payload::Other
        }
    };
    Ok(Message::Event(Box::new(Event { id, name, data, payload })))
}

fn parse<T: DeserializeOwned>(name: &str, data: &str) -> Result<T, Malformed> {
    serde_json::from_str(data).map_err(|error| format!("a {name} event: {error}"))
}

/// A log block's bytes, exactly as the CLI wrote them.
///
/// # Errors
/// Says so where its base64 is not base64.
pub fn log_bytes(log: &Log) -> Result<std::borrow::Cow<'_, [u8]>, Malformed> {
    match &log.base64 {
        None => Ok(log.text.as_bytes().into()),
        Some(text) => {
            STANDARD.decode(text).map(Into::into).map_err(|error| format!("a log event's bytes: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(id: Option<&str>, event: &str, data: &str) -> Frame {
        Frame { id: id.map(str::to_owned), event: event.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn tells_the_kinds_apart() {
        let log = r#"{"run":"shell","attempt":1,"stream":"stdout","offset":0,"text":"�","base64":"/w=="}"#;
        let Message::Event(event) = read(frame(Some("7"), "log", log)).unwrap() else { panic!("an event") };
        assert_eq!((event.id, event.data.as_str()), (7, log));
        let Payload::Log(log) = event.payload else { panic!("a log") };
        assert_eq!(log_bytes(&log).unwrap().as_ref(), b"\xff");

        assert_eq!(read(frame(None, "heartbeat", "{}")), Ok(Message::Nothing));
        assert_eq!(read(frame(None, "error", "oops")), Ok(Message::Broken("oops".to_owned())));
        let Message::Event(event) = read(frame(Some("8"), "novelty", "[1]")).unwrap() else {
            panic!("an event")
        };
        assert_eq!(event.payload, Payload::Other);
    }

    #[test]
    fn refuses_garbage() {
        for (id, event, data) in [
            (Some("x"), "log", "{}"),
            (Some("-1"), "log", "{}"),
            (Some("1"), "log", "{}"),
            (Some("1"), "log", "not json"),
            (Some("1"), "novelty", "not json"),
            (None, "log", "{}"),
            (None, "connected", "{}"),
        ] {
            assert!(read(frame(id, event, data)).is_err(), "{id:?} {event} {data}");
        }
    }
}
