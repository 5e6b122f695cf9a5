//! The syslog anchor: RFC 5424 over a Unix socket, UDP (RFC 5426) or TCP (RFC 6587, counted).
//!
//! Own code, a dozen lines: the crate `syslog` blocks, and does not count its messages on a stream.

use chrono::{SecondsFormat, Utc};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram};
use url::Url;

/// Facility 13 (log audit), severity 5 (notice).
const PRIORITY: u8 = 13 * 8 + 5;

/// One line: header, no structured data, the note as JSON after a byte order mark.
fn message(note: &str) -> String {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host: String = host.chars().filter(char::is_ascii_graphic).take(255).collect();
    let host = if host.is_empty() { "-" } else { &host };
    let note = json!({ "checkpoint": note });
    format!("<{PRIORITY}>1 {time} {host} kage {} checkpoint - \u{feff}{note}", std::process::id())
}

/// # Errors
/// What the system says.
pub async fn send(url: &Url, note: &str) -> Result<(), String> {
    let message = message(note);
    let address = || Some((url.host_str()?.trim_matches(['[', ']']).to_owned(), url.port()?));
    let address = || address().ok_or_else(|| "it is HOST:PORT".to_owned());
    let sent = match url.scheme() {
        "unix" => async {
            let socket = UnixDatagram::unbound()?;
            socket.send_to(message.as_bytes(), url.path()).await
        }
        .await
        .map(drop),
        "udp" => {
            let address = address()?;
            async {
                let local = if address.0.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(local).await?;
                socket.send_to(message.as_bytes(), address).await
            }
            .await
            .map(drop)
        }
        _ => {
            let address = address()?;
            async {
                let mut stream = TcpStream::connect(address).await?;
                stream.write_all(format!("{} {message}", message.len()).as_bytes()).await?;
                stream.shutdown().await
            }
            .await
        }
    };
    sent.map_err(|error| error.to_string())
}
