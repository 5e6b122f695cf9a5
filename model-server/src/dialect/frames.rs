//! How an event looks on the wire.

use bytes::Bytes;
use serde_json::Value;

/// A server-sent event with a name.
pub fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// A server-sent event of data alone.
pub fn data(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// A line of NDJSON.
pub fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}
