//! Faults on demand: what goes wrong, at which turn, how often.
//!
//! `KIND[:PARAMETER=N,…][@TURN][xTIMES]`, for instance `429:retry-after=2@1x2`: the first two requests for turn 1 get
//! a 429. Without `@` every turn has the fault, without `x` every request has it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fault {
    pub kind: Kind,
    /// Turn of the conversation, from 1; every turn where `None`.
    pub turn: Option<usize>,
    /// How many requests (of one prompt and turn) have it; all where `None`.
    pub times: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An error of the dialect. 400 to 599.
    Status { status: u16, retry_after_secs: Option<u32> },
    /// The answer that the program around this server has laid down ([`crate::server::Options::fixed`]).
    Fixed,
    /// 307 to a host that does not exist, with the request's path.
    Redirect,
    /// The request is read, and never answered.
    Silent,
    /// The connection is closed without an answer.
    Reset,
    /// The answer breaks off after half of its frames, without the end of the transfer.
    Cut,
    /// The answer stops after half of its frames; the connection stays open.
    Stall,
    /// Half of the frames, then bytes that are no text and no JSON.
    Garbage,
    /// Half of the frames, then text without end.
    Endless,
    /// `bytes` every `interval_ms`.
    Drip { bytes: usize, interval_ms: u64 },
    /// Waits before the answer begins.
    Delay { millis: u64 },
    /// The answer's text is this long.
    Huge { bytes: usize },
    /// The answer does not say what it cost.
    NoUsage,
    /// Half of the frames, then the dialect's error inside the stream.
    StreamError,
}

#[derive(Debug, thiserror::Error)]
#[error("fault {text:?}: {reason}")]
pub struct FaultError {
    text: String,
    reason: &'static str,
}

const KINDS: &str = "not one of 400…599, redirect, silent, reset, cut, stall, garbage, endless, drip, delay, huge, \
                     no-usage, stream-error";

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let fail = |reason| FaultError { text: text.to_owned(), reason };
        let (rest, times) = match text.rsplit_once('x') {
            Some((rest, times)) if !times.is_empty() && times.bytes().all(|b| b.is_ascii_digit()) => {
                (rest, Some(times.parse().map_err(|_| fail("too many times"))?))
            }
            _ => (text, None),
        };
        let (rest, turn) = match rest.split_once('@') {
            Some((rest, turn)) => {
                (rest, Some(turn.parse().ok().filter(|t| *t > 0).ok_or_else(|| fail("turns count from 1"))?))
            }
            None => (rest, None),
        };
        let (name, parameters) = rest.split_once(':').unwrap_or((rest, ""));
        let mut given = Parameters::parse(parameters).ok_or_else(|| fail("a parameter is NAME=NUMBER"))?;
        let kind = match name {
            "fixed" => Kind::Fixed,
            "redirect" => Kind::Redirect,
            "silent" => Kind::Silent,
            "reset" => Kind::Reset,
            "cut" => Kind::Cut,
            "stall" => Kind::Stall,
            "garbage" => Kind::Garbage,
            "endless" => Kind::Endless,
            "drip" => Kind::Drip {
                bytes: usize::try_from(given.take("bytes").unwrap_or(16)).unwrap_or(usize::MAX).max(1),
                interval_ms: given.take("ms").unwrap_or(100),
            },
            "delay" => Kind::Delay { millis: given.take("ms").unwrap_or(1000) },
            "huge" => Kind::Huge {
                bytes: usize::try_from(given.take("bytes").unwrap_or(64 << 20)).unwrap_or(usize::MAX),
            },
            "no-usage" => Kind::NoUsage,
            "stream-error" => Kind::StreamError,
            status => {
                let status = status.parse().ok().filter(|status| (400..600).contains(status));
                Kind::Status {
                    status: status.ok_or_else(|| fail(KINDS))?,
                    retry_after_secs: given.take("retry-after").and_then(|secs| secs.try_into().ok()),
                }
            }
        };
        if given.0.is_empty() {
            Ok(Self { kind, turn, times })
        } else {
            Err(fail("it has no such parameter"))
        }
    }
}

struct Parameters(Vec<(String, u64)>);

impl Parameters {
    fn parse(text: &str) -> Option<Self> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        let pairs = parts.map(|part| {
            let (name, value) = part.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    fn take(&mut self, name: &str) -> Option<u64> {
        let index = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.swap_remove(index).1)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Status { status, retry_after_secs: None } => write!(f, "{status}")?,
            Kind::Status { status, retry_after_secs: Some(secs) } => {
                write!(f, "{status}:retry-after={secs}")?
            }
            Kind::Fixed => f.write_str("fixed")?,
            Kind::Redirect => f.write_str("redirect")?,
            Kind::Silent => f.write_str("silent")?,
            Kind::Reset => f.write_str("reset")?,
            Kind::Cut => f.write_str("cut")?,
            Kind::Stall => f.write_str("stall")?,
            Kind::Garbage => f.write_str("garbage")?,
            Kind::Endless => f.write_str("endless")?,
            Kind::Drip { bytes, interval_ms } => write!(f, "drip:bytes={bytes},ms={interval_ms}")?,
            Kind::Delay { millis } => write!(f, "delay:ms={millis}")?,
            Kind::Huge { bytes } => write!(f, "huge:bytes={bytes}")?,
            Kind::NoUsage => f.write_str("no-usage")?,
            Kind::StreamError => f.write_str("stream-error")?,
        }
        if let Some(turn) = self.turn {
            write!(f, "@{turn}")?;
        }
        if let Some(times) = self.times {
            write!(f, "x{times}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Fault {
    type Error = FaultError;

    fn try_from(text: String) -> Result<Self, FaultError> {
        text.parse()
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_written_as_they_are_read() {
        for text in [
            "401",
            "429:retry-after=2@1x2",
            "cut@3",
            "fixed",
            "drip:bytes=4,ms=10",
            "huge:bytes=9x1",
            "no-usage",
        ] {
            let fault: Fault = text.parse().unwrap();
            assert_eq!(fault.to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "200", "600", "cut@0", "cut:after", "cut:bytes=1", "redirects", "401@x"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }
}
