//! An answer of any length, in the pieces that come.

use bytes::Bytes;
use reqwest::{RequestBuilder, Response};

use crate::client::Client;
use crate::client::error::ClientError;

/// An answer on its way.
#[derive(Debug)]
pub struct Download {
    client: Client,
    response: Response,
}

impl Client {
    pub(super) async fn download(&self, request: RequestBuilder) -> Result<Download, ClientError> {
        let response = self.send_repeating(request).await?;
        Ok(Download { client: self.clone(), response })
    }
}

impl Download {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError`]; an answer that breaks off is not taken up again.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.client.chunk(&mut self.response).await
    }

    /// The next line without its end; `None` after the last one.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Protocol`] if a line is longer than `limit` bytes, or the last one has no end.
    pub async fn line(&mut self, held: &mut Vec<u8>, limit: usize) -> Result<Option<Vec<u8>>, ClientError> {
        let mut seen = 0;
        loop {
            if let Some(end) = held[seen..].iter().position(|byte| *byte == b'\n') {
                let rest = held.split_off(seen + end + 1);
                let mut line = std::mem::replace(held, rest);
                line.pop();
                return Ok(Some(line));
            }
            seen = held.len();
            if seen > limit {
                return Err(self.client.protocol(format!("a line of more than {limit} bytes")));
            }
            match self.chunk().await? {
                Some(bytes) => held.extend_from_slice(&bytes),
                None if held.is_empty() => return Ok(None),
                None => return Err(self.client.protocol("the last line has no end")),
            }
        }
    }
}
