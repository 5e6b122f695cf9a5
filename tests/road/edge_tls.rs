//! TLS of the API, with real sockets and real clients: its files and their exchange, handshakes, certificates of clients.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, Identity, Method};
use serde_json::{Value, json};

use crate::support::http::send;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

/// Who signs certificates in a test.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Signer {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signs itself").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key in PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        (certificate.pem(), key.serialize_pem())
    }
}

impl TestKage {
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).expect("write");
        path
    }

    fn set_path(&mut self, name: &str, file: &str, text: &str) {
        let path = self.file(file, text).display().to_string();
        self.set(name, &path);
    }

    /// From now on over TLS, with a client that trusts the signer.
    fn speak_tls(&mut self, signer: &Signer, name: &str) {
        let (certificate, key) = signer.sign(name);
        self.set_path("KAGE_API_TLS_CERT", "cert.pem", &certificate);
        self.set_path("KAGE_API_TLS_KEY_FILE", "key.pem", &key);
        self.set("KAGE_API_TLS_RELOAD_SECS", "1");
        self.url = format!("https://127.0.0.1:{}", self.address().port());
        self.http = tls_client(signer, None);
    }

    /// The name in the certificate that is served now, as OpenSSL shows it.
    async fn served_name(&self) -> String {
        let output = self.openssl(&["-showcerts"]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let subject = text.lines().find_map(|line| line.trim().strip_prefix("subject="));
        subject.unwrap_or_else(|| panic!("{text}")).rsplit('=').next().unwrap_or_default().trim().to_owned()
    }

    /// `openssl s_client`, another implementation than ours.
    async fn openssl(&self, args: &[&str]) -> Output {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &self.address().to_string()]).args(args);
        command.stdin(Stdio::null());
        let run = tokio::task::spawn_blocking(move || command.output().expect("openssl is installed"));
        run.await.expect("no panic")
    }
}

fn tls_client(signer: &Signer, identity: Option<(String, String)>) -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .read_timeout(Duration::from_secs(60))
        .tls_certs_only([Certificate::from_pem(signer.pem.as_bytes()).expect("PEM")]);
    let builder = match identity {
        Some((certificate, key)) => {
            builder.identity(Identity::from_pem(format!("{certificate}{key}").as_bytes()).expect("PEM"))
        }
        None => builder,
    };
    builder.build().expect("a client")
}

#[tokio::test]
async fn tls_is_served_and_its_files_are_exchanged_while_a_stream_is_open() {
    let signer = Signer::new("Test signer");
    let mut kage = TestKage::new().await;
    kage.speak_tls(&signer, "first");
    let server = kage.start("serve").await;
    kage.demo().await;

    let answer = kage.get("/api/v1/tasks").await;
    assert_eq!((answer.status, answer.header("strict-transport-security")), (200, "max-age=31536000"));
    // The same port speaks nothing else, and nobody's client is asked to trust what it does not know.
    let plain = crate::support::http::client().get(format!("http://{}/health", kage.address())).send().await;
    assert!(plain.is_err_and(|error| !error.is_timeout()));
    let stranger = crate::support::http::client().get(format!("{}/health", kage.url)).send().await;
    assert!(stranger.is_err(), "nobody signed it whom the system trusts");

    // Versions, tried with another implementation. What is refused is refused by the server's alert.
    for (version, good) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_1", false), ("-tls1", false)] {
        let output = kage.openssl(&[version, "-cipher", "ALL:@SECLEVEL=0"]).await;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.contains("Cipher is (NONE)"), !good, "{version}: {said}");
        assert!(good || said.contains("SSL alert number"), "{version}: {said}");
    }

    // Our own client with the signer's file.
    let ca = kage.file("ca.pem", &signer.pem).display().to_string();
    let list = |ca: Option<&str>| {
        let mut command = kage.client_command(&["tasks"]);
        command.envs(ca.map(|ca| ("KAGE_CA_FILE", ca)));
        command.output().expect("starts")
    };
    let output = list(Some(&ca));
    assert!(output.status.success(), "{output:?}");
    let output = list(None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(4) && said.contains("KAGE_CA_FILE"), "not trusted: {said}");
    let mut command = kage.client_command(&["tasks"]);
    let output = command.env("KAGE_URL", kage.url.replace("https:", "http:")).output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(4) && said.contains("https://"), "plain: {said}");
    // `kage doctor` looks at the pair.
    let output = kage.server_command(&["doctor", "tls"]).output().expect("starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("CN=first") && said.contains("ends on"), "{output:?}");
    // The test's key file is as it was made: readable to others, which both say and neither refuses.
    assert!(said.starts_with("WARN") && said.contains("chmod 600"), "{said}");
    assert!(kage.process(server).log_says("api.certificate_key_exposed"));
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(kage.folder.join("key.pem"), closed).expect("its own file");
    let output = kage.server_command(&["doctor", "tls"]).output().expect("starts");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("ok"), "{output:?}");

    // Half of a new pair: the old one stays. Then the other half.
    let task = kage.submit(&shell("while [ ! -e go ]; do sleep 0.1; done; echo over")).await;
    let id = string(&task["id"]).to_owned();
    let mut stream =
        kage.request(Method::GET, &format!("/api/v1/tasks/{id}/progress")).send().await.expect("a stream");
    assert!(stream.chunk().await.expect("reads").is_some());
    let (certificate, key) = signer.sign("second");
    kage.file("key.pem", &key);
    eventually("the half pair is refused", async || {
        kage.process(server).log_says("api.certificate_refused").then_some(())
    })
    .await;
    assert_eq!(kage.served_name().await, "first");
    let output = kage.server_command(&["doctor", "tls"]).output().expect("starts");
    assert!(
        !output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains("do not belong together")
    );
    kage.file("cert.pem", &certificate);
    eventually("the new pair is served", async || (kage.served_name().await == "second").then_some(())).await;
    kage.delete(&format!("/api/v1/tasks/{id}")).await;
    kage.post(&format!("/api/v1/tasks/{id}/cancel"), &json!({})).await;
    let mut rest = Vec::new();
    while let Some(bytes) = stream.chunk().await.expect("the stream from before the exchange goes on") {
        rest.extend_from_slice(&bytes);
    }
    assert!(String::from_utf8_lossy(&rest).contains("event: task_complete"));

    let told: Vec<(String, Value)> = sqlx::query_as(
        "SELECT outcome, details FROM audit_entries WHERE action = 'certificate.reload' ORDER BY at",
    )
    .fetch_all(kage.pool())
    .await
    .expect("reads");
    let outcomes: Vec<&str> = told.iter().map(|one| one.0.as_str()).collect();
    assert_eq!(outcomes, ["failed", "done"], "{told:#?}");
    assert!(told[0].1["kept"] == "CN=first" && told[1].1["subject"] == "CN=second", "{told:#?}");

    // A pair that does not belong together, or none, is no start.
    let (other, _) = signer.sign("other");
    let other = kage.file("other.pem", &other).display().to_string();
    for (certificate, says) in
        [(other.as_str(), "do not belong together"), ("/nonexistent.pem", "cannot read")]
    {
        let mut command = kage.server_command(&["api"]);
        command.env("KAGE_API_TLS_CERT", certificate).env("KAGE_API_LISTEN", "127.0.0.1:0");
        let output = command.output().expect("starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{certificate}: {said}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
    }
}

#[tokio::test]
async fn whoever_does_not_finish_a_handshake_holds_up_nobody() {
    let signer = Signer::new("Test signer");
    let mut kage = TestKage::new().await;
    kage.speak_tls(&signer, "server");
    kage.set("KAGE_API_TLS_HANDSHAKE_SECS", "5");
    kage.start("api").await;
    let mut silent: Vec<TcpStream> = (0..100)
        .map(|number| {
            let mut stream = TcpStream::connect(kage.address()).expect("connects");
            // Some say nothing, some begin a record and stop.
            if number % 2 == 0 {
                stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).expect("writes");
            }
            stream
        })
        .collect();
    // A client that knows nothing of them, with a connection of its own for each request.
    for _ in 0..3 {
        let client = tls_client(&signer, None);
        assert_eq!(send(client.get(format!("{}/health", kage.url))).await.status, 200);
    }
    let ended = tokio::task::spawn_blocking(move || {
        silent.iter_mut().all(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            match stream.read_to_end(&mut Vec::new()) {
                Ok(_) => true,
                Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        })
    });
    assert!(ended.await.expect("no panic"), "each is closed");
}

#[tokio::test]
async fn a_clients_certificate_is_asked_for_and_named_in_the_trail() {
    let (signer, stranger) = (Signer::new("Test signer"), Signer::new("Stranger"));
    let mut kage = TestKage::new().await;
    kage.speak_tls(&signer, "server");
    let ca = kage.file("clients.pem", &signer.pem).display().to_string();
    kage.set("KAGE_API_TLS_CLIENT_CA", &ca);
    kage.set("KAGE_API_HSTS_SUBDOMAINS", "true");
    kage.http = tls_client(&signer, Some(signer.sign("build farm")));
    let api = kage.start("api").await;
    let answer = kage.get("/api/v1/tasks").await;
    let strict = answer.header("strict-transport-security");
    assert_eq!((answer.status, strict), (200, "max-age=31536000; includeSubDomains"));
    for identity in [None, Some(stranger.sign("build farm"))] {
        let client = tls_client(&signer, identity);
        assert!(client.get(format!("{}/health", kage.url)).send().await.is_err(), "nobody else is let in");
    }
    our_own_client_shows_its_certificate(&kage, &signer);
    let (_, key) = kage.key_with(&json!({ "scopes": ["tasks:read"] })).await;
    send(kage.bare_request(Method::GET, "/api/v1/keys").header("X-API-Key", key)).await.problem(403);
    kage.process(api).terminate().await;
    let named: Vec<String> = sqlx::query_scalar(
        "SELECT details->>'certificate' FROM audit_entries WHERE action IN ('key.create', 'access.refuse') \
         AND details ? 'certificate'",
    )
    .fetch_all(kage.pool())
    .await
    .expect("reads");
    assert!(named.len() >= 2 && named.iter().all(|name| name.contains("CN=build farm")), "{named:?}");
}

fn our_own_client_shows_its_certificate(kage: &TestKage, signer: &Signer) {
    let ca = kage.file("ca.pem", &signer.pem);
    let (certificate, key) = signer.sign("laptop");
    let (certificate, key) = (kage.file("client.pem", &certificate), kage.file("client-key.pem", &key));
    let tasks = |shown: bool, key_mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(key_mode);
        std::fs::set_permissions(&key, mode).expect("its own file");
        let mut command = kage.client_command(&["tasks"]);
        command.env("KAGE_CA_FILE", &ca);
        if shown {
            command.env("KAGE_CLIENT_CERT_FILE", &certificate).env("KAGE_CLIENT_KEY_FILE", &key);
        }
        let output = command.output().expect("starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = tasks(true, 0o600);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = tasks(false, 0o600);
    assert!(code == Some(4) && said.contains("KAGE_CLIENT_CERT_FILE"), "{said}");
    let (code, said) = tasks(true, 0o644);
    assert!(code == Some(2) && said.contains("can be read or written by others"), "{said}");
}

#[tokio::test]
async fn a_key_that_a_command_prints_is_exchanged_too() {
    let signer = Signer::new("Test signer");
    let mut kage = TestKage::new().await;
    kage.speak_tls(&signer, "first");
    let (certificate, key) = signer.sign("first");
    kage.file("cert.pem", &certificate);
    let path = kage.file("key.pem", &key).display().to_string();
    kage.set("KAGE_API_TLS_KEY_FILE", "");
    kage.set("KAGE_API_TLS_KEY", &format!("exec:/bin/cat {path}"));
    kage.set("KAGE_SECRETS_RELOAD_SECS", "1");
    kage.start("api").await;
    assert_eq!(kage.served_name().await, "first");
    let (certificate, key) = signer.sign("second");
    kage.file("key.pem", &key);
    kage.file("cert.pem", &certificate);
    eventually("the new pair is served", async || (kage.served_name().await == "second").then_some(())).await;
}
