//! Sending one request, and making one of our errors of whatever comes instead of a good answer.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::Url;

use crate::client::Client;
use crate::client::backoff;
use crate::client::error::ClientError;
use crate::wire::problem::{self, Problem};

/// The largest JSON answer: a page of 100 tasks with a prompt of 1 MiB each fits.
const MAX_JSON: usize = 128 * 1024 * 1024;
/// The largest problem that is read.
const MAX_PROBLEM: usize = 64 * 1024;
/// How much of a problem's detail is shown, in characters.
const MAX_DETAIL: usize = 500;

impl Client {
    /// The URL of a path below the base. `segments` must be ids and names, never free text: what
    /// `.` and `..` would do to a path is thereby ruled out.
    pub(super) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    pub(super) fn api(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut all = vec!["api", "v1"];
        all.extend_from_slice(segments);
        self.http.request(method, self.url(&all))
    }

    /// The server's address, for messages.
    pub(super) fn server(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    pub(super) fn protocol(&self, what: impl Into<String>) -> ClientError {
        ClientError::Protocol { server: self.server(), what: one_line(&what.into()) }
    }

    /// Sends once; any status is an answer.
    pub(super) async fn send_any(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        request.send().await.map_err(|error| self.transport(error))
    }

    /// Sends once; only a 2xx is an answer.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = self.send_any(request).await?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    /// Sends a request that does no harm when it arrives twice, and repeats it until an answer begins.
    pub(super) async fn send_repeating(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        self.repeating(request, async |request| self.send(request).await).await
    }

    /// As [`Client::send_repeating`], until a whole JSON answer has come.
    pub(super) async fn json_repeating<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, ClientError> {
        let request = request.timeout(self.patience.answer);
        self.repeating(request, async |request| self.json(self.send(request).await?).await).await
    }

    /// Repeats while the answer is lost or the server says that it is not ready. A server that was
    /// never there is no reason to wait.
    async fn repeating<T>(
        &self,
        request: RequestBuilder,
        once: impl AsyncFn(RequestBuilder) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + self.patience.repeat_for;
        let mut attempt = 0;
        loop {
            let Some(copy) = request.try_clone() else { return once(request).await };
            let error = match once(copy).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let never_there = attempt == 0 && matches!(error, ClientError::Unreachable { .. });
            let delay = self.delay(attempt);
            if never_there || !error.is_transient() || Instant::now() + delay > deadline {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
            attempt += 1;
        }
    }

    pub(super) fn delay(&self, attempt: u32) -> Duration {
        backoff::delay(self.patience.first_delay, self.patience.most_delay, attempt, rand::random())
    }

    /// Reads a JSON answer to its end.
    pub(super) async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        let body = self.body(response, MAX_JSON).await?;
        serde_json::from_slice(&body).map_err(|error| self.protocol(error.to_string()))
    }

    /// Asks for JSON; repeats when the answer is lost.
    pub(super) async fn get<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, ClientError> {
        self.json_repeating(self.api(Method::GET, segments)).await
    }

    pub(super) async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if body.len() + chunk.len() > limit {
                return Err(self.protocol(format!("an answer of more than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The next bytes of an answer; `None` at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, ClientError> {
        response.chunk().await.map_err(|error| self.transport(error))
    }

    fn transport(&self, error: reqwest::Error) -> ClientError {
        let server = self.server();
        let connect = error.is_connect();
        let cause = if error.is_timeout() && !connect {
            "no answer in time".to_owned()
        } else {
            self.shown(&root_cause(&error.without_url()))
        };
        if connect { ClientError::Unreachable { server, cause } } else { ClientError::Lost { server, cause } }
    }

    pub(super) async fn refusal(&self, response: Response) -> ClientError {
        let status = response.status();
        if status.is_redirection() {
            return self.protocol(format!(
                "a redirect (HTTP {}); KAGE_URL must be the final address",
                status.as_u16()
            ));
        }
        let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = header.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let is_problem = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(problem::CONTENT_TYPE));
        let detail = if is_problem {
            let body = self.body(response, MAX_PROBLEM).await.unwrap_or_default();
            serde_json::from_slice::<Problem>(&body).ok().map(|problem| problem.detail)
        } else {
            None
        };
        let plain = || status.canonical_reason().unwrap_or("an error without a reason").to_owned();
        let detail = self.shown(&detail.unwrap_or_else(plain));
        if status.is_client_error() {
            ClientError::Refused { status: status.as_u16(), detail, retry_after }
        } else if status.is_server_error() {
            ClientError::Failed { status: status.as_u16(), detail, retry_after }
        } else {
            self.protocol(format!("HTTP {}", status.as_u16()))
        }
    }

    /// A server's text, for a message: one line, not long, and without the key, whoever echoes it.
    pub(super) fn shown(&self, text: &str) -> String {
        let key = self.key.expose_secret();
        // A key this short is a test's, and would be found in every word.
        if key.len() < 8 { one_line(text) } else { one_line(&text.replace(key, "[key]")) }
    }
}

fn one_line(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(MAX_DETAIL) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_becomes_one_short_line() {
        assert_eq!(one_line("a\r\n b\tc"), "a b c");
        let long = one_line(&"ä".repeat(2000));
        assert_eq!(long.chars().count(), MAX_DETAIL + 1);
    }
}
