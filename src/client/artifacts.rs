//! What a run leaves behind: its output, its patch, its list of files.

use bytes::Bytes;
use reqwest::header::{ACCEPT, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use uuid::Uuid;

use crate::client::Client;
use crate::client::download::Download;
use crate::client::error::ClientError;
use crate::domain::name::Name;
use crate::wire::run::{Diff, Files, FilesPart};

impl Client {
    fn artifact(&self, task: Uuid, run: &Name, what: &str) -> RequestBuilder {
        self.api(Method::GET, &["tasks", &task.to_string(), "runs", run.as_str(), what])
    }

    /// The run's patch as git would print it: fit for `git apply`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn patch(&self, task: Uuid, run: &Name) -> Result<Download, ClientError> {
        let request = self.artifact(task, run, "diff").header(ACCEPT, "text/x-diff");
        self.download(request).await
    }

    /// The run's patch with its list of files.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn diff(&self, task: Uuid, run: &Name) -> Result<Diff, ClientError> {
        let request = self.artifact(task, run, "diff").header(ACCEPT, "application/json");
        self.json_repeating(request).await
    }

    /// All changed files, however many answers they take.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn files(&self, task: Uuid, run: &Name) -> Result<Files, ClientError> {
        let mut all: Files = self.json_repeating(self.artifact(task, run, "files")).await?;
        while let Some(after) = all.next {
            let part = FilesPart { after: Some(after), limit: None };
            let request = self.artifact(task, run, "files").query(&part);
            let mut more: Files = self.json_repeating(request).await?;
            all.files.append(&mut more.files);
            // A server that goes round in circles is not followed.
            all.next = more.next.filter(|next| *next > after);
        }
        Ok(all)
    }

    /// The run's output so far, from byte `offset` on.
    pub fn log(&self, task: Uuid, run: &Name, offset: u64) -> LogDownload {
        LogDownload {
            client: self.clone(),
            task,
            run: run.clone(),
            offset,
            skip: 0,
            response: None,
            attempt: 0,
        }
    }
}

/// A log on its way. Taken up again where it broke off.
#[derive(Debug)]
pub struct LogDownload {
    client: Client,
    task: Uuid,
    run: Name,
    /// The next byte to hand out.
    offset: u64,
    /// Bytes of the present answer to leave out: the server did not honour the range.
    skip: u64,
    response: Option<Response>,
    /// Failures since the last byte.
    attempt: u32,
}

impl LogDownload {
    /// Offset of the next byte.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes; `None` at the end of what there is now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let result = match &mut self.response {
                Some(response) => self.client.chunk(response).await,
                None => match self.request().await {
                    Ok(Some(response)) => {
                        self.response = Some(response);
                        continue;
                    }
                    Ok(None) => return Ok(None),
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(None) => return Ok(None),
                Ok(Some(mut bytes)) => {
                    let left_out = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                    let bytes = bytes.split_off(left_out);
                    self.skip -= left_out as u64;
                    if !bytes.is_empty() {
                        self.offset += bytes.len() as u64;
                        self.attempt = 0;
                        return Ok(Some(bytes));
                    }
                }
                Err(error) if error.is_transient() && self.attempt < 5 && self.response.take().is_some() => {
                    tokio::time::sleep(self.client.delay(self.attempt)).await;
                    self.attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `None`: there is nothing beyond the offset.
    async fn request(&mut self) -> Result<Option<Response>, ClientError> {
        let mut request = self.client.artifact(self.task, &self.run, "log");
        if self.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.offset));
        }
        match self.client.send_repeating(request).await {
            Ok(response) => {
                let whole = response.status() != StatusCode::PARTIAL_CONTENT;
                self.skip = if whole { self.offset } else { 0 };
                Ok(Some(response))
            }
            Err(ClientError::Refused { status: 416, .. }) if self.offset > 0 => Ok(None),
            Err(error) => Err(error),
        }
    }
}
