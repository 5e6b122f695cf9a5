//! The audit trail. The server is not believed: whoever has the log's public key can verify what comes.

use reqwest::Method;

use crate::client::Client;
use crate::client::download::Download;
use crate::client::error::ClientError;
use crate::wire::audit::{AuditEntry, AuditExport, AuditFilter, AuditPage};

/// The largest checkpoint with the signatures of its witnesses, in bytes.
const MAX_NOTE: usize = 256 * 1024;

impl Client {
    /// All entries that `filter` lets through, in the order of the log, however many answers they take.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit_entries(&self, mut filter: AuditFilter) -> Result<Vec<AuditEntry>, ClientError> {
        let mut all = Vec::new();
        loop {
            let request = self.api(Method::GET, &["audit"]).query(&filter);
            let page: AuditPage = self.json_repeating(request).await?;
            all.extend(page.entries);
            // A server that goes round in circles is not followed.
            let next = page.next.filter(|next| filter.cursor.is_none_or(|cursor| *next > cursor));
            let Some(next) = next else { return Ok(all) };
            filter.cursor = Some(next);
        }
    }

    /// The log as of its last checkpoint, a line an entry.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit_export(&self, asked: &AuditExport) -> Result<Download, ClientError> {
        self.download(self.api(Method::GET, &["audit", "export"]).query(asked)).await
    }

    /// The last checkpoint, a signed note.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn audit_checkpoint(&self) -> Result<String, ClientError> {
        let response = self.send_repeating(self.api(Method::GET, &["audit", "checkpoint"])).await?;
        let note = self.body(response, MAX_NOTE).await?;
        String::from_utf8(note).map_err(|_| self.protocol("a checkpoint that is no text"))
    }
}
