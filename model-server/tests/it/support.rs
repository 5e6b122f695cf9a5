//! A server of the test's own, on a port that is free.

use std::sync::Arc;

use kage_model_server::fault::Fault;
use kage_model_server::recorder::Recorder;
use kage_model_server::scenario;
use kage_model_server::server::{Listen, Options, Server};
use serde_json::Value;
use tokio::task::JoinHandle;

pub struct TestServer {
    pub url: String,
    pub recorder: Arc<Recorder>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestServer {
    pub async fn start(scenario: &str, faults: &[&str]) -> Self {
        let faults: Vec<Fault> = faults.iter().map(|fault| fault.parse().unwrap()).collect();
        let options = Options { faults, ..Options::new(scenario::find(scenario).unwrap()) };
        Self::with(options).await
    }

    pub async fn with(options: Options) -> Self {
        let server = Server::bind(Listen::Tcp("127.0.0.1:0".parse().unwrap()), options).await.unwrap();
        let url = format!("http://{}", server.address().unwrap());
        let recorder = server.recorder();
        Self { url, recorder, task: tokio::spawn(server.serve(std::future::pending())) }
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        client().post(format!("{}{path}", self.url)).json(body).send().await.unwrap()
    }
}

pub fn client() -> reqwest::Client {
    // With the whole workspace, reqwest has TLS and no cryptography of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
}

/// Data of the events of a text/event-stream, but for `[DONE]`.
pub fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}
