//! Keys that are made by tests, and requests with them.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::http::{Answer, send};
use crate::support::tasks::string;

impl TestKage {
    /// Makes a key through the API; its id and itself.
    pub async fn key_with(&self, rights: &Value) -> (String, String) {
        let mut body = json!({ "name": "made by a test" });
        body.as_object_mut().expect("an object").extend(rights.as_object().expect("an object").clone());
        let made = self.post("/api/v1/keys", &body).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let made = made.json();
        (string(&made["id"]).to_owned(), string(&made["key"]).to_owned())
    }

    /// A request with another key.
    pub fn with_key(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        self.bare_request(method, path).header("X-API-Key", key)
    }

    pub async fn get_as(&self, path: &str, key: &str) -> Answer {
        send(self.with_key(Method::GET, path, key)).await
    }

    pub async fn post_as(&self, path: &str, key: &str, body: &Value) -> Answer {
        send(self.with_key(Method::POST, path, key).json(body)).await
    }

    pub async fn submit_as(&self, key: &str, task: &Value) -> Value {
        let answer = self.post_as("/api/v1/tasks", key, task).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }
}
