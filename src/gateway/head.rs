//! The head of a request, vetted byte by byte before an HTTP library sees it. Whatever two readers could understand
//! in two ways is refused: there is one request on a connection, and one way to read it.

/// Bytes of a request line and its headers.
pub(super) const MOST_BYTES: usize = 32 * 1024;
/// Headers of a request.
const MOST_HEADERS: usize = 100;

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
    #[error("the method is none of GET, HEAD and POST")]
    Method,
    #[error("the request's head is larger than {MOST_BYTES} bytes or has more than {MOST_HEADERS} headers")]
    TooLarge,
    #[error("the request's framing is ambiguous: {0}")]
    Framing(&'static str),
    #[error("{0} is not spoken here")]
    NotSpoken(&'static str),
    #[error("the request's body is too large")]
    BodyTooLarge,
}

impl HeadError {
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Framing(_) => 400,
            Self::Method => 405,
            Self::TooLarge => 431,
            Self::NotSpoken("Expect") => 417,
            Self::NotSpoken(_) => 501,
            Self::BodyTooLarge => 413,
        }
    }
}

/// Where the head ends in what has been read; `None`: not yet.
pub(super) fn end(read: &[u8]) -> Option<usize> {
    read.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Judges a whole head, its last empty line included.
///
/// # Errors
/// [`HeadError`] says what is wrong.
pub(super) fn vet(head: &[u8], body_bytes: usize) -> Result<(), HeadError> {
    if head.len() > MOST_BYTES {
        return Err(HeadError::TooLarge);
    }
    check_lines(head)?;
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed("it ends too early")),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(_) => return Err(HeadError::Malformed("it is not HTTP/1.1")),
    }
    if request.version != Some(1) {
        return Err(HeadError::NotSpoken("HTTP/1.0"));
    }
    match request.method {
        Some("GET" | "HEAD" | "POST") => {}
        _ => return Err(HeadError::Method),
    }
    let target = request.path.unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'\\' | b'"' | b'<' | b'>');
    if !target.starts_with('/') || target.starts_with("//") || !target.bytes().all(plain) {
        return Err(HeadError::Malformed("its target is no plain path"));
    }
    check_headers(request.headers, body_bytes)
}

/// Line ends are CR LF and nothing else; no line goes on in the next one.
fn check_lines(head: &[u8]) -> Result<(), HeadError> {
    let mut previous = 0;
    for (index, &byte) in head.iter().enumerate() {
        match byte {
            b'\n' if previous != b'\r' => return Err(HeadError::Malformed("a line ends without CR")),
            b' ' | b'\t' if previous == b'\n' => return Err(HeadError::Malformed("a header is folded")),
            0 => return Err(HeadError::Malformed("it holds NUL")),
            _ if previous == b'\r' && byte != b'\n' => return Err(HeadError::Malformed("CR without LF")),
            b'\r' if index == 0 => return Err(HeadError::Malformed("it begins with an empty line")),
            _ => {}
        }
        previous = byte;
    }
    Ok(())
}

fn check_headers(headers: &[httparse::Header<'_>], body_bytes: usize) -> Result<(), HeadError> {
    let (mut hosts, mut lengths, mut encodings) = (0, 0, 0);
    for header in headers {
        let name = header.name;
        if name.eq_ignore_ascii_case("host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case("content-length") {
            lengths += 1;
            check_length(header.value, body_bytes)?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            encodings += 1;
            if !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::Framing("a transfer encoding other than chunked"));
            }
        } else if name.eq_ignore_ascii_case("upgrade") {
            return Err(HeadError::NotSpoken("Upgrade"));
        } else if name.eq_ignore_ascii_case("expect") {
            return Err(HeadError::NotSpoken("Expect"));
        } else if name.contains('_')
            && name.to_ascii_lowercase().replace('_', "-").starts_with("content-length")
        {
            return Err(HeadError::Framing("a header that some read as Content-Length"));
        }
    }
    if hosts != 1 {
        return Err(HeadError::Malformed("it needs one Host header"));
    }
    match (lengths, encodings) {
        (0, 0 | 1) | (1, 0) => Ok(()),
        (0, _) => Err(HeadError::Framing("several Transfer-Encoding headers")),
        (_, 0) => Err(HeadError::Framing("several Content-Length headers")),
        _ => Err(HeadError::Framing("both Content-Length and Transfer-Encoding")),
    }
}

fn check_length(value: &[u8], body_bytes: usize) -> Result<(), HeadError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::Framing("a Content-Length that is no number"));
    }
    let number = std::str::from_utf8(value).ok().and_then(|digits| digits.parse::<usize>().ok());
    match number {
        Some(length) if length <= body_bytes => Ok(()),
        // Also one with more digits than fit.
        _ => Err(HeadError::BodyTooLarge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(head: &str) -> Result<(), HeadError> {
        vet(head.as_bytes(), 1000)
    }

    fn with(line: &str) -> Result<(), HeadError> {
        judge(&format!("POST /v1/messages HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n"))
    }

    #[test]
    fn ordinary_heads_pass() {
        assert_eq!(judge("HEAD /api/hello HTTP/1.1\r\nHost: x\r\n\r\n"), Ok(()));
        assert_eq!(with("Content-Length: 1000"), Ok(()));
        assert_eq!(with("transfer-encoding: Chunked"), Ok(()));
        assert_eq!(with("Connection: keep-alive, Upgrade"), Ok(()));
        assert_eq!(end(b"GET / HTTP/1.1\r\n\r\nbody"), Some(18));
        assert_eq!(end(b"GET / HTTP/1.1\r\n\r"), None);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        use HeadError::{Framing, Malformed};
        for line in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: 0x5",
            "Content-Length: -1",
            "Content-Length:",
            "Content-Length: 5 5",
            "Content_Length: 5",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \"chunked\"",
        ] {
            assert!(matches!(with(line), Err(Framing(_))), "{line:?}: {:?}", with(line));
        }
        for line in [
            "X: a\r\n folded",
            "X: a\r\n\tfolded",
            "X : a",
            "Transfer-Encoding : chunked",
            "X: a\nY: b",
            "X: a\rY: b",
            "X: a\0b",
            "X",
            ": a",
            "Host: y",
            "X\u{b}: a",
        ] {
            assert!(matches!(with(line), Err(Malformed(_))), "{line:?}: {:?}", with(line));
        }
    }

    #[test]
    fn other_requests_than_ours_are_refused() {
        for (line, error) in [
            ("CONNECT models.example:443 HTTP/1.1", HeadError::Method),
            ("DELETE /v1/messages HTTP/1.1", HeadError::Method),
            ("get /v1/messages HTTP/1.1", HeadError::Method),
            (
                "GET http://models.example/v1/messages HTTP/1.1",
                HeadError::Malformed("its target is no plain path"),
            ),
            ("GET //models.example/ HTTP/1.1", HeadError::Malformed("its target is no plain path")),
            ("GET /a#b HTTP/1.1", HeadError::Malformed("its target is no plain path")),
            ("GET /a\\b HTTP/1.1", HeadError::Malformed("its target is no plain path")),
            ("GET * HTTP/1.1", HeadError::Malformed("its target is no plain path")),
            ("GET / HTTP/1.0", HeadError::NotSpoken("HTTP/1.0")),
            ("GET / HTTP/2.0", HeadError::Malformed("it is not HTTP/1.1")),
            ("GET /a b HTTP/1.1", HeadError::Malformed("it is not HTTP/1.1")),
        ] {
            assert_eq!(judge(&format!("{line}\r\nHost: x\r\n\r\n")), Err(error), "{line}");
        }
        assert_eq!(judge("GET / HTTP/1.1\r\n\r\n"), Err(HeadError::Malformed("it needs one Host header")));
        assert_eq!(with("Upgrade: websocket"), Err(HeadError::NotSpoken("Upgrade")));
        assert_eq!(with("Expect: 100-continue"), Err(HeadError::NotSpoken("Expect")));
        assert_eq!(with("Content-Length: 1001"), Err(HeadError::BodyTooLarge));
        assert_eq!(with("Content-Length: 99999999999999999999999"), Err(HeadError::BodyTooLarge));
        assert_eq!(with("X: a\r\n".repeat(101).trim_end()), Err(HeadError::TooLarge));
        assert_eq!(with(&format!("X: {}", "a".repeat(MOST_BYTES))), Err(HeadError::TooLarge));
    }
}
