//! The program: command line, sockets, records.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::client;

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kage-model-server"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The first line of its output says that it listens.
fn start(arguments: &[&str]) -> (Program, String) {
    let mut child = program(arguments).spawn().unwrap();
    let mut line = String::new();
    if arguments.contains(&"--print-port") {
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    } else {
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    }
    (Program(child), line.trim().to_owned())
}

#[tokio::test]
async fn it_plays_a_file_and_records_what_it_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.toml");
    std::fs::write(&script, "[[turn]]\ntext = \"from the file\"\n").unwrap();
    let record = folder.path().join("requests.jsonl");
    let (_program, port) =
        start(&["--print-port", "--script", script.to_str().unwrap(), "--record", record.to_str().unwrap()]);
    let url = format!("http://127.0.0.1:{port}");
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let response = client()
        .post(format!("{url}/v1/chat/completions"))
        .header("authorization", "Bearer secret")
        .body(body)
        .send()
        .await
        .unwrap();
    assert!(response.text().await.unwrap().contains("from the file"));
    client().post(format!("{url}/elsewhere")).body(&b"\xff\x00"[..]).send().await.unwrap();

    let served: Value =
        client().get(format!("{url}/__kage/requests")).send().await.unwrap().json().await.unwrap();
    let lines = std::fs::read_to_string(&record).unwrap();
    let written: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(served, Value::Array(written.clone()));
    assert_eq!(written[0]["json"], serde_json::from_str::<Value>(body).unwrap());
    assert_eq!(written[0]["dialect"], "chat");
    let headers = written[0]["headers"].as_array().unwrap();
    assert!(headers.iter().any(|pair| pair[0] == "authorization" && pair[1] == "Bearer secret"));
    assert_eq!((&written[1]["path"], &written[1]["base64"]), (&"/elsewhere".into(), &"/wA=".into()));
    assert_eq!(record.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    client().delete(format!("{url}/__kage/requests")).send().await.unwrap();
    let served: Value =
        client().get(format!("{url}/__kage/requests")).send().await.unwrap().json().await.unwrap();
    assert_eq!(served, Value::Array(Vec::new()));
}

#[test]
fn it_listens_on_a_unix_socket_and_takes_it_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.sock");
    let listen = format!("unix:{}", path.display());
    let (mut program, _) = start(&["--listen", &listen, "--socket-mode", "666"]);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o666);
    assert!(ask(&path).starts_with("HTTP/1.1 200"));
    // One that died leaves its socket behind; the next one takes the name.
    program.0.kill().unwrap();
    program.0.wait().unwrap();
    assert!(path.exists());
    let (mut program, _) = start(&["--listen", &listen]);
    assert!(ask(&path).starts_with("HTTP/1.1 200"));
    let pid = program.0.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    assert!(program.0.wait().unwrap().success());
    assert!(!path.exists());
}

fn ask(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"GET /api/version HTTP/1.1\r\nhost: kage\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn it_refuses_what_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "keep").unwrap();
    let in_the_way = format!("unix:{}", plain.display());
    for (arguments, reason) in [
        (vec!["--listen", "0.0.0.0:0"], "--listen-any"),
        (vec!["--listen", &in_the_way], "is no socket"),
        (vec!["--scenario", "nothing"], "write-hello"),
        (vec!["--fault", "200"], "not one of"),
        (vec!["--script", "/nonexistent.toml"], "/nonexistent.toml"),
    ] {
        let output = program(&arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    assert_eq!(std::fs::read_to_string(&plain).unwrap(), "keep");
}
