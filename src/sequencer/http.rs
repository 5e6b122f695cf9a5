//! The HTTP anchor: a POST of the note.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, redirect};
use url::Url;

const WITHIN: Duration = Duration::from_secs(10);

/// # Errors
/// If the system's certificates cannot be used.
pub fn client() -> Result<Client, reqwest::Error> {
    // Fails only where one is installed already, which is just as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The environment's own proxies count for nothing, as everywhere here.
    Client::builder().no_proxy().timeout(WITHIN).redirect(redirect::Policy::none()).build()
}

/// # Errors
/// What went wrong, without the URL: it may hold a secret.
pub async fn post(client: &Client, url: &Url, note: &str) -> Result<(), String> {
    let request =
        client.post(url.clone()).header(CONTENT_TYPE, "text/plain; charset=utf-8").body(note.to_owned());
    let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}
