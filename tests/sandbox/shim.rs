//! The real shim in the real sandbox, driven from the runner's end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use kage::image::manifest::Manifest;
use kage::sandbox::container::Sandbox;
use kage::sandbox::shim_link::{LinkError, ShimLink, new_session};
use kage::sandbox::shim_listener::ShimListener;
use kage::sandbox::spec::Spec;
use kage_shim::protocol::{EndedBy, Exited, FromShim, Job, JobLimits, Offsets, Stream};

use crate::support::{World, eventually};

pub const LONG: Duration = Duration::from_secs(60);

/// The shim as it is shipped: static, so that it runs in any image.
pub fn shim() -> PathBuf {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        if let Some(path) = std::env::var_os("KAGE_TEST_SHIM") {
            return PathBuf::from(path);
        }
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shim");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "kage-shim", "--profile", "shim", "--target", &target])
            .arg("--target-dir")
            .arg(&folder)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.expect("cargo runs").success(), "the shim does not compile");
        folder.join(target).join("shim/kage-shim")
    };
    SHIM.get_or_init(build).clone()
}

fn manifest() -> Manifest {
    let text = "name = \"shell\"\ncommand = [\"/bin/bash\", \"-s\"]\nprompt = \"stdin\"\n";
    Manifest::parse(Path::new("cli.toml"), text).expect("a manifest")
}

fn job(session: &str, script: &str) -> Job {
    let launch = manifest().launch(script, None).expect("launches");
    let mut env: BTreeMap<String, String> = launch.env;
    env.insert("API_TOKEN".to_owned(), "placeholder-4711".to_owned());
    Job {
        session: session.to_owned(),
        argv: launch.argv,
        env,
        cwd: "/workspace".to_owned(),
        stdin: launch.stdin,
        file: None,
        bridge: None,
        places: Vec::new(),
        copy_output: false,
        limits: JobLimits { wall_secs: 120, orphan_secs: 60, grace_ms: 500, buffer_bytes: 1 << 20 },
    }
}

pub struct Run {
    pub sandbox: Sandbox,
    pub link: ShimLink,
    pub spec: Spec,
    pub session: String,
}

pub async fn run(world: &World, script: &str) -> Run {
    let mut spec = world.spec("");
    spec.shim = shim();
    let session = new_session();
    let listener = ShimListener::bind(&spec.io_dir, spec.user).expect("listens");
    let sandbox = world.started(&spec).await;
    let (mut link, _) = listener.accept_first(LONG).await.expect("links");
    link.give(job(&session, script)).await.expect("takes the job");
    Run { sandbox, link, spec, session }
}

/// Reads to the end, acknowledging as it goes. Standard output, standard error, and how it ended.
pub async fn read_to_end(link: &mut ShimLink) -> (Vec<u8>, Vec<u8>, Exited) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match link.recv().await.expect("receives") {
            FromShim::Output { stream: Stream::Stdout, bytes, .. } => out.extend(bytes),
            FromShim::Output { stream: Stream::Stderr, bytes, .. } => err.extend(bytes),
            FromShim::Exited(exited) => return (out, err, exited),
            FromShim::Started | FromShim::Hello(_) => {}
        }
        link.ack(link.received()).await.expect("acknowledges");
    }
}

pub async fn finish(mut run: Run) -> i64 {
    run.link.release().await.expect("releases");
    let ended = tokio::time::timeout(LONG, run.sandbox.wait()).await.expect("ends in time").expect("ends");
    run.sandbox.remove().await.expect("is removed");
    ended.exit_code
}

#[tokio::test]
async fn a_job_runs_and_the_engine_never_sees_it() {
    let world = World::new().await;
    let script = "echo \"out $API_TOKEN\"; echo err >&2; env | cut -d= -f1 | sort | tr '\\n' ' '; pwd; id -u
        grep -hE '^(CapEff|NoNewPrivs|Seccomp):' /proc/1/status /proc/self/status
        cat /proc/1/environ /proc/1/maps 2>&1 | head -c 100; ls -la /run/kage /run/kage/run.sock 2>&1; sleep 1; exit 3";
    let mut run = run(&world, script).await;

    let seen = world.engine.api().inspect_container(run.sandbox.id(), None).await.expect("inspects");
    let seen = serde_json::to_string(&seen).expect("JSON");
    for secret in ["placeholder-4711", "API_TOKEN", "echo", &run.session] {
        assert!(!seen.contains(secret), "the engine knows {secret:?}");
    }
    let (out, err, exited) = read_to_end(&mut run.link).await;
    let out = String::from_utf8(out).expect("text");
    assert!(out.starts_with("out placeholder-4711\nAPI_TOKEN HOME LANG "), "{out}");
    assert!(out.contains("/workspace\n10001\n"), "{out}");
    assert_eq!(out.matches("CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n").count(), 2, "{out}");
    // PID 1 is not dumpable: its environment and memory are closed to the CLI, which is the same user.
    assert!(out.contains("/proc/1/environ: Permission denied"), "{out}");
    assert!(out.contains("/run/kage': Permission denied"), "the folder can be listed: {out}");
    assert!(out.contains("run.sock': No such file"), "the socket is gone before the CLI begins: {out}");
    assert_eq!(err, b"err\n");
    assert_eq!((exited.code, exited.ended_by), (Some(3), EndedBy::Itself));
    assert_eq!(finish(run).await, 3);
}

#[tokio::test]
async fn a_successor_goes_on_without_loss_while_the_cli_pretends_to_be_the_shim() {
    let world = World::new().await;
    // Writes numbers, and connects to every socket that appears, as the shim would.
    let script = "
        perl -MSocket -e 'while (1) { for my $at (\"/run/kage/run.sock\", glob(\"/run/kage/*\")) { -S $at or next; socket(S, PF_UNIX, SOCK_STREAM, 0);
            if (connect(S, sockaddr_un($at))) { push @held, S; open(F, \">/workspace/found\");
                my $hello = \"\\x01{\\\"version\\\":1,\\\"session\\\":null,\\\"acked\\\":{\\\"stdout\\\":0,\\\"stderr\\\":0}}\";
                syswrite(S, pack(\"N\", length $hello) . $hello); sysread(S, my $answer, 100);
                if (length $answer) { open(F, \">/workspace/fooled\"); print F $answer } } }
            select(undef, undef, undef, 0.01) }' &
        for i in $(seq 1 20000); do echo line $i; done; touch written; while ! test -e /workspace/go; do sleep 0.1; done; cat /proc/net/unix >named; echo last; kill %1";
    let mut run = run(&world, script).await;
    let mut out = Vec::new();
    // Half of it, of which the last part is not acknowledged; then the runner is gone.
    let mut committed = Offsets::default();
    while out.len() < 60_000 {
        if let FromShim::Output { stream: Stream::Stdout, bytes, .. } =
            run.link.recv().await.expect("receives")
        {
            out.extend(bytes);
            if out.len() < 30_000 {
                committed = run.link.received();
                run.link.ack(committed).await.expect("acknowledges");
            }
        }
    }
    out.truncate(usize::try_from(committed.stdout).expect("fits"));
    drop(run.link);
    eventually("all is written", async || run.spec.workspace.join("written").exists()).await;

    let (folder, user) = (&run.spec.io_dir, run.spec.user);
    let listener = ShimListener::bind_again(folder, user, &run.session).expect("listens");
    run.link = listener.accept_resumed(&run.session, committed, LONG).await.expect("links");
    std::fs::write(run.spec.workspace.join("go"), "").expect("write");
    let (rest, _, exited) = read_to_end(&mut run.link).await;
    out.extend(rest);
    let expected: String = (1..=20_000).map(|i| format!("line {i}\n")).chain(["last\n".to_owned()]).collect();
    assert!(out == expected.as_bytes(), "{} bytes of {}", out.len(), expected.len());
    assert_eq!(exited.code, Some(0));
    assert!(!run.spec.workspace.join("fooled").exists(), "the CLI was taken for the shim");
    assert!(!run.spec.workspace.join("found").exists(), "the CLI has found where the runner waits");
    let named = std::fs::read_to_string(run.spec.workspace.join("named")).expect("is written");
    let secret = &run.session[..run.session.len() / 2];
    assert!(named.contains("Flags") && !named.contains(secret), "{named}");
    assert_eq!(finish(run).await, 0);
}

#[tokio::test]
async fn a_flood_is_complete_and_a_slow_reader_slows_it() {
    let world = World::new().await;
    let mut run = run(&world, "seq 1 1000000; touch done").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!run.spec.workspace.join("done").exists(), "nobody reads, so the CLI must wait");
    let (out, _, _) = read_to_end(&mut run.link).await;
    let expected: String = (1..=1_000_000).map(|i| format!("{i}\n")).collect();
    assert!(out == expected.as_bytes(), "{} bytes of {}", out.len(), expected.len());
    assert_eq!(finish(run).await, 0);
}

#[tokio::test]
async fn termination_and_memory_are_reported_by_the_shim() {
    let world = World::new().await;
    let mut stubborn =
        run(&world, "trap '' TERM; (setsid sleep 1000 &); echo ready; while :; do sleep 1; done").await;
    while !matches!(stubborn.link.recv().await.expect("receives"), FromShim::Output { .. }) {}
    stubborn.link.ack(stubborn.link.received()).await.expect("acknowledges");
    stubborn.link.terminate().await.expect("asks");
    let (_, _, exited) = read_to_end(&mut stubborn.link).await;
    assert_eq!((exited.ended_by, exited.signal), (EndedBy::Runner, Some(9)));
    assert_eq!(finish(stubborn).await, 137);

    let mut greedy =
        run(&world, "exec perl -e '$x = \"a\" x (1 << 20); push @y, $x . $_ for 1..10000'").await;
    let (_, _, exited) = read_to_end(&mut greedy.link).await;
    assert_eq!(exited.signal, Some(9));
    assert!(exited.oom_kills >= 1, "{exited:?}");
    greedy.link.release().await.expect("releases");
    assert!(greedy.sandbox.wait().await.expect("ends").oom_killed);
    greedy.sandbox.remove().await.expect("is removed");
}

#[tokio::test]
async fn a_killed_container_closes_the_link() {
    let world = World::new().await;
    let mut run = run(&world, "sleep 1000").await;
    assert_eq!(run.link.recv().await.expect("starts"), FromShim::Started);
    run.sandbox.kill().await.expect("is killed");
    assert!(matches!(run.link.recv().await, Err(LinkError::Closed)));
    run.sandbox.remove().await.expect("is removed");
}
