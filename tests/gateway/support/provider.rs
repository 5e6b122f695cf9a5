//! The scripted model server, in this process.

use std::net::SocketAddr;
use std::sync::Arc;

use kage_model_server::recorder::{Recorded, Recorder};
use kage_model_server::scenario;
use kage_model_server::server::{Fixed, Listen, Options, Server};
use tokio::sync::oneshot;

pub struct Scripted {
    address: SocketAddr,
    recorder: Arc<Recorder>,
    _stop: oneshot::Sender<()>,
}

impl Scripted {
    pub async fn start(key: Option<&str>) -> Self {
        Self::with(key, None).await
    }

    /// With what the fault `fixed` answers.
    pub async fn with(key: Option<&str>, fixed: Option<Fixed>) -> Self {
        let mut options = Options::new(scenario::find("talk").expect("built in"));
        options.require_key = key.map(str::to_owned);
        options.fixed = fixed;
        let listen = Listen::Tcp(([127, 0, 0, 1], 0).into());
        let server = Server::bind(listen, options).await.expect("binds");
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, recorder) = (server.address().expect("a port"), server.recorder());
        tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self { address, recorder, _stop: stop }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.recorder.requests()
    }
}
