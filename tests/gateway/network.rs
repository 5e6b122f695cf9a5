//! The way to a provider: verified, through the operator's proxy and no other.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kage::domain::model::Dialect;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::provider::Scripted;
use crate::support::runs::{NONE, Run};
use crate::support::{World, request};

fn openssl(folder: &Path, args: &str) {
    let output = Command::new("openssl").args(args.split(' ')).current_dir(folder).output();
    let output = output.expect("openssl is installed with ca-certificates");
    assert!(output.status.success(), "{output:?}");
}

/// A certificate of an authority of this test's own, for a name.
fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    if !folder.join("ca.pem").exists() {
        openssl(
            folder,
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-authority -keyout ca.key -out ca.pem",
        );
    }
    openssl(
        folder,
        &format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ),
    );
    std::fs::write(folder.join("names"), format!("subjectAltName=DNS:{name}\n")).unwrap();
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        ),
    );
    (certificate, key)
}

/// Takes TLS off connections and passes what is in them on.
async fn terminator((certificate, key): (PathBuf, PathBuf), to: &Scripted) -> u16 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = to.url().trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, to) = (acceptor.clone(), to.clone());
            tokio::spawn(async move {
                let (Ok(mut inner), Ok(mut outer)) =
                    (acceptor.accept(stream).await, TcpStream::connect(to).await)
                else {
                    return;
                };
                let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
            });
        }
    });
    port
}

fn provider(name: &str, base: &str, more: &str) -> String {
    format!(
        "[[provider]]\nname = \"{name}\"\ndialect = \"chat\"\nbase_url = \"{base}\"\nfree = true\nallow = [\"*\"]\n{more}\n[cli.{name}]\nprovider = \"{name}\"\n"
    )
}

async fn open(world: &World, cli: &str) -> Run {
    let run = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&run, cli, "chat", None).await;
    let grant = world.answered(&run).await;
    assert!(grant.is_open(), "{grant:?}");
    run
}

#[tokio::test]
async fn a_provider_has_to_prove_who_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let scripted = Scripted::start(None).await;
    let good = terminator(certificate(folder.path(), "localhost"), &scripted).await;
    let other = terminator(certificate(folder.path(), "elsewhere.example"), &scripted).await;
    let more = provider("good", &format!("https://localhost:{good}"), "")
        + &provider("other", &format!("https://localhost:{other}"), "");
    let authority = folder.path().join("ca.pem").display().to_string();
    let body = request(Dialect::Chat, "hello", true);
    let trusting = World::with(&more, &[("KAGE_GATEWAY_CA_FILE", &authority)]).await;
    let wary = World::with(&more, &[]).await;
    for (world, cli, status) in [(&trusting, "good", 200), (&trusting, "other", 503), (&wary, "good", 503)] {
        let run = open(world, cli).await;
        let before = scripted.requests().len();
        let answer = world.call(run.id, Dialect::Chat, &body).await;
        assert_eq!(answer.status, status, "{cli}: {answer:?}");
        assert_eq!(scripted.requests().len() - before, usize::from(status == 200), "{cli}");
    }
}

#[tokio::test]
async fn a_certificate_file_that_is_none_keeps_the_gateway_from_starting() {
    let mut world = World::without_gateway("", &[]).await;
    let file = world.folder().join("none.pem");
    std::fs::write(&file, "nothing").unwrap();
    world.settings.insert("KAGE_GATEWAY_CA_FILE".to_owned(), file.display().to_string());
    let settings = kage::config::settings::Settings::from_parts(world.settings.clone(), None);
    let config = kage::config::gateway::GatewayConfig::from_settings(&mut settings.unwrap()).unwrap();
    let pool = world.pool_of(kage::db::Zone::Gateway).await;
    let error = kage::gateway::start(pool, config, &kage::lifecycle::Lifecycle::new(), false).unwrap_err();
    assert!(error.to_string().contains("none.pem"), "{error}");
}

#[tokio::test]
async fn the_operators_proxy_is_used_and_no_other() {
    // It gets requests for a name that nobody knows, as a proxy does.
    let proxy = Scripted::start(None).await;
    let base = "http://models.invalid";
    let more = provider("far", base, "allow_plain_http = true")
        + &provider("own", base, &format!("allow_plain_http = true\nproxy = \"{}\"", proxy.url()))
        + &provider("straight", base, "allow_plain_http = true\nproxy = \"none\"");
    let world = World::with(&more, &[("KAGE_GATEWAY_PROXY", &proxy.url())]).await;
    let body = request(Dialect::Chat, "hello", false);
    for (cli, status) in [("far", 200), ("own", 200), ("straight", 503)] {
        let run = open(&world, cli).await;
        let before = proxy.requests().len();
        assert_eq!(world.call(run.id, Dialect::Chat, &body).await.status, status, "{cli}");
        assert_eq!(proxy.requests().len() - before, usize::from(status == 200), "{cli}");
    }
}

#[tokio::test]
async fn a_proxy_in_the_environment_counts_for_nothing() {
    let world = World::without_gateway("", &[]).await;
    let trap = Scripted::start(None).await;
    let mut command = crate::credentials::command(&world, &["gateway"]);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(name, trap.url());
    }
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let _gateway = crate::credentials::Ended(command.spawn().unwrap());
    let run = world.open("chat", NONE, NONE).await;
    let body = request(Dialect::Chat, "hello", false);
    assert_eq!(world.call(run.id, Dialect::Chat, &body).await.status, 200);
    assert!(trap.requests().is_empty());
    assert_eq!(world.provider.requests().len(), 1);
}
