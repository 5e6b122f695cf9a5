//! An engine that is away, silent, broken, or that loses our calls; and images that are refused.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::query_parameters::RemoveImageOptions;
use kage::image::build::{BuildRequest, build};
use kage::image::error::ImageError;
use kage::sandbox::container::Sandbox;
use kage::sandbox::engine::{Deadlines, Engine};
use kage::sandbox::error::SandboxError;
use kage::sandbox::image_check::inspect_image;
use kage::sandbox::seccomp::SeccompProfile;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};

use crate::support::{LABEL, LABEL_VALUE, World, engine_uri, eventually, image_name};

const SOON: Deadlines = Deadlines {
    ask: Duration::from_millis(300),
    create: Duration::from_millis(300),
    start: Duration::from_millis(300),
    kill: Duration::from_millis(300),
    remove: Duration::from_millis(300),
};

#[tokio::test]
async fn the_engine_says_what_it_is() {
    let engine = Engine::connect(&engine_uri()).await.expect("connects");
    engine.ping().await.expect("answers");
    let info = engine.info().await.expect("answers");
    assert!(!info.version.is_empty() && info.api.starts_with("1."), "{info:?}");
    assert!(info.runtimes.contains(&info.default_runtime), "{info:?}");
    assert!(info.security_options.iter().any(|option| option.contains("seccomp")), "{info:?}");
    assert!(["1", "2"].contains(&info.cgroup_version.as_str()), "{info:?}");
}

#[tokio::test]
async fn no_engine_says_what_to_do() {
    let folder = tempfile::tempdir().expect("tempdir");
    let nowhere = folder.path().join("no.sock");
    let stale = folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).expect("binds"));
    for path in [&nowhere, &stale] {
        let error = Engine::connect(&format!("unix://{}", path.display())).await.expect_err("nobody there");
        let text = error.to_string();
        assert!(matches!(error, SandboxError::EngineUnavailable { .. }), "{text}");
        assert!(text.contains("no Docker Engine answers at") && text.contains("./quickstart"), "{text}");
        assert!(error.is_transient());
    }
    for uri in ["tcp://127.0.0.1:2375", "docker.sock", "", "unix://relative"] {
        let error = Engine::connect(uri).await.expect_err("not an address");
        assert!(matches!(error, SandboxError::EngineAddress { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_silent_engine_meets_a_deadline() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("silent.sock");
    let listener = UnixListener::bind(&path).expect("binds");
    let keep = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    let error = Engine::connect_with(&format!("unix://{}", path.display()), SOON).await.expect_err("silent");
    assert!(matches!(error, SandboxError::Deadline { call: "version", .. }), "{error}");
    keep.abort();
}

#[tokio::test]
async fn an_engine_that_talks_nonsense_is_an_error() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("nonsense.sock");
    let listener = UnixListener::bind(&path).expect("binds");
    let serve = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n[1,{").await;
        }
    });
    let connected = Engine::connect_with(&format!("unix://{}", path.display()), SOON).await;
    assert!(connected.is_err());
    serve.abort();
}

/// An engine that leaves out a limit says so in a warning. Its container must not be used.
#[tokio::test]
async fn a_limit_that_is_not_enforced_refuses_the_sandbox() {
    let world = World::new().await;
    let path = world.path("lax.sock");
    let listener = UnixListener::bind(&path).expect("binds");
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, image) = (requests.clone(), world.image.to_string());
    let serve = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 64 * 1024];
            let length = stream.read(&mut head).await.unwrap_or_default();
            let line = String::from_utf8_lossy(&head[..length]).lines().next().unwrap_or_default().to_owned();
            let (status, body) = match line.as_str() {
                line if line.contains("/version") => ("200 OK", "{\"ApiVersion\":\"1.45\"}".to_owned()),
                line if line.contains("/images/") => ("200 OK", format!("{{\"Id\":\"{image}\"}}")),
                line if line.contains("/create") => {
                    let warning =
                        "Your kernel does not support swap limit capabilities. Memory limited without swap.";
                    ("201 Created", format!("{{\"Id\":\"c0ffee\",\"Warnings\":[\"{warning}\"]}}"))
                }
                line if line.starts_with("DELETE") => ("204 No Content", String::new()),
                _ => ("404 Not Found", "{\"message\":\"no such container\"}".to_owned()),
            };
            seen.lock().expect("not poisoned").push(line);
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let engine = Engine::connect(&format!("unix://{}", path.display())).await.expect("connects");
    let made = Sandbox::create(&engine, &world.spec("true"), &SeccompProfile::built_in()).await;
    let error = made.expect_err("swap is not limited");
    assert!(matches!(&error, SandboxError::Unenforced(why) if why.contains("swap")), "{error}");
    let requests = requests.lock().expect("not poisoned");
    assert!(
        requests.iter().any(|line| line.starts_with("DELETE") && line.contains("c0ffee")),
        "{requests:?}"
    );
    serve.abort();
}

/// Stands before the real engine and swallows requests whose first line contains one of `words`, while `on`.
async fn engine_that_swallows(world: &World, words: &'static [&'static str], on: Arc<AtomicBool>) -> Engine {
    let path = world.path("front.sock");
    let listener = UnixListener::bind(&path).expect("binds");
    let real = engine_uri().trim_start_matches("unix://").to_owned();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (real, on) = (real.clone(), on.clone());
            tokio::spawn(async move {
                let mut head = vec![0; 64 * 1024];
                let length = client.read(&mut head).await.unwrap_or_default();
                let line = String::from_utf8_lossy(&head[..length.min(512)])
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                if on.load(Ordering::SeqCst) && words.iter().any(|word| line.contains(word)) {
                    if line.contains("/wait") {
                        // This one loses the connection instead.
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(600)).await;
                }
                let mut server = UnixStream::connect(&real).await.expect("the engine is there");
                server.write_all(&head[..length]).await.expect("writes");
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let deadlines = Deadlines { kill: SOON.kill, remove: SOON.remove, ..Deadlines::default() };
    Engine::connect_with(&format!("unix://{}", path.display()), deadlines).await.expect("connects")
}

#[tokio::test]
async fn a_lost_wait_call_does_not_lose_the_end() {
    let world = World::new().await;
    let front = engine_that_swallows(&world, &["/wait"], Arc::new(AtomicBool::new(true))).await;
    let spec = world.spec("sleep 1; exit 5");
    let mut sandbox = Sandbox::create(&front, &spec, &SeccompProfile::built_in()).await.expect("creates");
    sandbox.start().await.expect("starts");
    assert_eq!(sandbox.wait().await.expect("ends").exit_code, 5);
    sandbox.remove().await.expect("is removed");
}

#[tokio::test]
async fn a_container_is_ended_on_the_host_when_the_engine_does_not_answer() {
    let world = World::new().await;
    let stuck = Arc::new(AtomicBool::new(true));
    let front = engine_that_swallows(&world, &["/kill", "DELETE "], stuck.clone()).await;
    for by_removal in [false, true] {
        let spec = world.spec("trap '' TERM; touch begun; while :; do sleep 1; done");
        stuck.store(true, Ordering::SeqCst);
        let mut sandbox = Sandbox::create(&front, &spec, &SeccompProfile::built_in()).await.expect("creates");
        sandbox.start().await.expect("starts");
        eventually("it runs", async || spec.workspace.join("begun").exists()).await;
        if by_removal {
            let error = sandbox.remove().await.expect_err("the engine does not answer");
            assert!(matches!(error, SandboxError::StillThere { .. }), "{error}");
        } else {
            sandbox.kill().await.expect("the second way works");
        }
        let ended = sandbox.wait().await.expect("has ended");
        assert_eq!(ended.exit_code, 137);
        stuck.store(false, Ordering::SeqCst);
        // On a busy machine a removal can take longer than the short deadline of this test.
        eventually("the engine answers again", async || sandbox.remove().await.is_ok()).await;
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("write");
}

#[tokio::test]
async fn images_are_built_and_those_that_weaken_a_sandbox_are_refused() {
    let world = World::new().await;
    let base = image_name();
    let tag = format!("kage-test-{}:dev", world.instance);
    let folder = tempfile::tempdir().expect("tempdir");
    let request = BuildRequest {
        folder: folder.path(),
        tag: &tag,
        args: &[("BASE_IMAGE", &base)],
        labels: &[(LABEL, LABEL_VALUE)],
        certificates: None,
        network: Some("none"),
        deadline: Duration::from_secs(300),
    };
    write(
        folder.path(),
        "Dockerfile",
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY hello /hello\nRUN cat /hello\n",
    );
    write(folder.path(), "hello", "greetings\n");
    let mut lines = Vec::new();
    let facts = build(&world.engine, &request, |line| lines.push(line.to_owned())).await.expect("builds");
    assert!(lines.iter().any(|line| line == "greetings"), "{lines:?}");
    assert_eq!(inspect_image(&world.engine, &tag).await.expect("inspects"), Some(facts.clone()));
    assert!(facts.tags.contains(&tag) && facts.size > 0);

    write(
        folder.path(),
        "Dockerfile",
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nVOLUME /data\nONBUILD RUN true\n",
    );
    let error = build(&world.engine, &request, |_| {}).await.expect_err("refused");
    assert!(error.to_string().contains("VOLUME /data") && error.to_string().contains("ONBUILD"), "{error}");
    let refused =
        inspect_image(&world.engine, &tag).await.expect("inspects").expect("it exists all the same");
    let mut spec = world.spec("true");
    spec.image = refused.digest.clone();
    let error =
        Sandbox::create(&world.engine, &spec, &SeccompProfile::built_in()).await.expect_err("refused");
    assert!(matches!(error, SandboxError::ImageRefused { .. }), "{error}");

    write(folder.path(), "Dockerfile", "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo why >&2; exit 3\n");
    let error = build(&world.engine, &request, |_| {}).await.expect_err("fails");
    assert!(matches!(&error, ImageError::Build(why) if why.contains("exit 3")), "{error}");

    assert_eq!(inspect_image(&world.engine, "kage-no-such-image:dev").await.expect("inspects"), None);
    for digest in [facts.digest, refused.digest] {
        world
            .engine
            .api()
            .remove_image(digest.as_str(), None::<RemoveImageOptions>, None)
            .await
            .expect("is removed");
    }
}
