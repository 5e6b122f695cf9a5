//! A plain HTTP/1.1 client on a blocking socket. It stands for any client, and costs little: what is measured
//! is the server.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Longer than anything here may take; a server that hangs fails the bench instead of hanging it.
const READ_WITHIN: Duration = Duration::from_secs(120);

/// Where the API listens, and the key that opens it.
#[derive(Debug, Clone)]
pub struct Api {
    pub address: SocketAddr,
    pub key: String,
}

impl Api {
    /// Sends a request and reads the whole answer, which must be a success.
    pub fn call(&self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let mut answer = self.send(method, path, body)?;
        let mut bytes = Vec::new();
        answer.body.read_to_end(&mut bytes)?;
        let status = answer.status;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(&bytes)
        );
        Ok(bytes)
    }

    /// Opens an event stream.
    pub fn events(&self, task: &str) -> Result<Events> {
        let path = format!("/api/v1/tasks/{task}/progress");
        let answer = self.send("GET", &path, "")?;
        ensure!(answer.status == 200, "GET {path}: {}", answer.status);
        Ok(Events { body: BufReader::with_capacity(256 << 10, answer.body), line: Vec::new() })
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let mut stream = TcpStream::connect(self.address).context("the server does not answer")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_WITHIN))?;
        let (address, key, length) = (self.address, &self.key, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nx-api-key: {key}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes())?;
        Answer::read(stream)
    }
}

struct Answer {
    status: u16,
    body: Body,
}

impl Answer {
    fn read(stream: TcpStream) -> Result<Self> {
        // Small: thousands of idle streams are opened with it.
        let mut stream = BufReader::with_capacity(8 << 10, stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("no HTTP answer: {line:?}"))?;
        let mut chunked = false;
        loop {
            line.clear();
            ensure!(stream.read_line(&mut line)? > 0, "the answer's head is cut off");
            let header = line.trim_end().to_ascii_lowercase();
            chunked |= header == "transfer-encoding: chunked";
            if header.is_empty() {
                return Ok(Self { status, body: Body { stream, chunked, left: 0, ended: false } });
            }
        }
    }
}

/// The bytes of an answer, out of their chunks; without chunks, all until the connection's end.
struct Body {
    stream: BufReader<TcpStream>,
    chunked: bool,
    /// Bytes of the current chunk that are still to come.
    left: usize,
    ended: bool,
}

impl Body {
    fn next_chunk(&mut self) -> io::Result<()> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a broken chunk");
        let mut line = String::new();
        // An empty line ends the chunk before.
        while line.trim_end().is_empty() {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.left = usize::from_str_radix(line.trim_end(), 16).map_err(|_| invalid())?;
        self.ended = self.left == 0;
        Ok(())
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.chunked {
            return self.stream.read(buffer);
        }
        if self.left == 0 && !self.ended {
            self.next_chunk()?;
        }
        let most = self.left.min(buffer.len());
        let count = self.stream.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        Ok(count)
    }
}

/// A Server-Sent Events stream.
pub struct Events {
    body: BufReader<Body>,
    line: Vec<u8>,
}

/// One event of it.
#[derive(Debug, Default)]
pub struct Event {
    pub name: String,
    /// One line of JSON.
    pub data: Vec<u8>,
}

impl Events {
    /// Reads the next event into `event`; `false` at the stream's end.
    pub fn next(&mut self, event: &mut Event) -> Result<bool> {
        event.name.clear();
        event.data.clear();
        loop {
            self.line.clear();
            if self.body.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(false);
            }
            let line = self.line.strip_suffix(b"\n").context("the stream is cut off within a line")?;
            match line.iter().position(|byte| *byte == b':') {
                None if line.is_empty() && event.name.is_empty() => {}
                None if line.is_empty() => return Ok(true),
                Some(5) if line.starts_with(b"event: ") => {
                    event.name.push_str(str::from_utf8(&line[7..])?);
                }
                Some(4) if line.starts_with(b"data: ") => event.data.extend_from_slice(&line[6..]),
                // Ids and comments.
                _ => {}
            }
        }
    }
}
