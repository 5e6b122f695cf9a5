//! Liveness and readiness of the server.

use reqwest::Method;

use crate::client::Client;
use crate::client::error::ClientError;
use crate::wire::health::{Health, Ready};

impl Client {
    /// Whether the server lives.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn health(&self) -> Result<Health, ClientError> {
        let request = self.http.request(Method::GET, self.url(&["health"])).timeout(self.patience.answer);
        let response = self.send(request).await?;
        self.json(response).await
    }

    /// Whether the server can do its work, and each dependency's state, also when it cannot (503).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ready(&self) -> Result<Ready, ClientError> {
        let request = self.http.request(Method::GET, self.url(&["ready"])).timeout(self.patience.answer);
        let response = self.send_any(request).await?;
        match response.status().as_u16() {
            200 | 503 => self.json(response).await,
            _ => Err(self.refusal(response).await),
        }
    }
}
