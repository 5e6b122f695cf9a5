//! Security events.

use reqwest::Method;

use crate::client::Client;
use crate::client::error::ClientError;
use crate::wire::security_event::{SecurityEventFilter, SecurityEventPage};

impl Client {
    /// # Errors
    /// [`ClientError`].
    pub async fn security_events(
        &self,
        filter: &SecurityEventFilter,
    ) -> Result<SecurityEventPage, ClientError> {
        self.json_repeating(self.api(Method::GET, &["security-events"]).query(filter)).await
    }
}
