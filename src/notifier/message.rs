//! What is sent, and its signatures: Standard Webhooks.

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use standardwebhooks::Webhook as Signer;
use uuid::Uuid;

use crate::domain::security_event::Severity;
use crate::wire::security_event::{SecurityEvent, Webhook};

/// The kind of a message that is a test.
pub const TEST: &str = "webhook.test";

/// One message; the same for every try and every receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The event's: by it a receiver knows what it has had already.
    pub id: Uuid,
    pub body: String,
}

impl Message {
    pub fn of_event(event: SecurityEvent) -> Self {
        let (id, kind, timestamp) = (event.id, event.kind.to_string(), event.at);
        Self::new(id, kind, timestamp, json!(event))
    }

    /// That says that it is a test.
    pub fn test(hook: &str) -> Self {
        let data = json!({ "hook": hook, "severity": Severity::Low, "text": "this is a test; nothing has happened" });
        Self::new(Uuid::now_v7(), TEST.to_owned(), Utc::now(), data)
    }

    fn new(id: Uuid, kind: String, timestamp: DateTime<Utc>, data: Value) -> Self {
        let body = json!(Webhook { kind, timestamp, data }).to_string();
        Self { id, body }
    }

    /// `v1,…` for each secret, for a try at this time.
    ///
    /// # Errors
    /// What is wrong, without the secret.
    pub fn signatures(&self, secrets: &[SecretString], at: i64) -> Result<String, String> {
        let sign = |secret: &SecretString| {
            // Its error would name the bad byte.
            let signer = Signer::new(secret.expose_secret()).map_err(|_| "its secret cannot be read")?;
            let signature = signer.sign(&self.id.to_string(), at, self.body.as_bytes());
            signature.map_err(|_| "it cannot be signed")
        };
        let signed: Result<Vec<String>, &str> = secrets.iter().map(sign).collect();
        signed.map(|all| all.join(" ")).map_err(str::to_owned)
    }
}
