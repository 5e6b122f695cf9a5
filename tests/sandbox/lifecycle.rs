//! Containers as values: made, ended, removed, found again; and what can go wrong.

use std::time::Duration;

use kage::sandbox::container::{ContainerState, Sandbox, list};
use kage::sandbox::error::SandboxError;
use kage::sandbox::seccomp::SeccompProfile;

use crate::support::{World, eventually, is_running, remove_raw};

#[tokio::test]
async fn a_container_ends_with_its_status_and_leaves_nothing() {
    let world = World::new().await;
    let spec = world.spec("exit 42");
    let mut sandbox = world.create(&spec).await;
    assert_eq!(sandbox.inspect().await.expect("inspects").state, ContainerState::Created);
    sandbox.start().await.expect("starts");
    let ended = sandbox.wait().await.expect("ends");
    assert_eq!((ended.exit_code, ended.oom_killed, ended.error.as_str()), (42, false, ""));
    assert_eq!(sandbox.wait().await.expect("has ended"), ended, "asking again is allowed");
    sandbox.remove().await.expect("is removed");
    sandbox.remove().await.expect("nothing is left to do");
    assert!(matches!(sandbox.inspect().await, Err(SandboxError::Gone { .. })));
    assert!(list(&world.engine, &world.instance).await.expect("lists").is_empty());
}

#[tokio::test]
async fn kill_and_remove_end_what_ignores_signals() {
    let world = World::new().await;
    let spec =
        world.spec("trap '' TERM INT HUP; (setsid sleep 1000 &); touch begun; while :; do sleep 1; done");
    let mut sandbox = world.started(&spec).await;
    eventually("it runs", async || spec.workspace.join("begun").exists()).await;
    sandbox.kill().await.expect("is killed");
    assert_eq!(sandbox.wait().await.expect("ends").exit_code, 137);
    sandbox.kill().await.expect("killing what has ended does nothing");
    sandbox.remove().await.expect("is removed");
    assert!(matches!(sandbox.kill().await, Err(SandboxError::Gone { .. })));
}

#[tokio::test]
async fn list_sees_this_instance_alone_and_what_it_finds_can_be_adopted() {
    let (mine, other) = (World::new().await, World::new().await);
    let spec = mine.spec("sleep 1000");
    let mut waiting = mine.create(&mine.spec("true")).await;
    let id = mine.started(&spec).await.leave();
    let mut foreign = other.started(&other.spec("sleep 1000")).await;

    let found = list(&mine.engine, &mine.instance).await.expect("lists");
    assert_eq!(found.len(), 2);
    let running = found.iter().find(|found| found.state == ContainerState::Running).expect("one runs");
    assert_eq!((running.id.as_str(), running.run_id, running.attempt), (id.as_str(), spec.run_id, 1));
    let cgroup =
        std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid.expect("a pid"))).expect("reads");
    assert!(cgroup.contains(&id), "the pid is the container's");

    let mut adopted = Sandbox::adopt(&mine.engine, &id).await.expect("adopts");
    adopted.remove().await.expect("is removed");
    waiting.remove().await.expect("is removed");
    foreign.remove().await.expect("is removed");
    assert!(matches!(Sandbox::adopt(&mine.engine, &id).await, Err(SandboxError::Gone { .. })));
}

#[tokio::test]
async fn removal_by_somebody_else_is_noticed() {
    let world = World::new().await;
    let mut sandbox = world.started(&world.spec("sleep 1000")).await;
    let (ended, ()) = tokio::join!(sandbox.wait(), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        remove_raw(&world.engine, sandbox.id()).await;
    });
    // It may be seen between its end and its removal.
    let killed = matches!(&ended, Ok(ended) if ended.exit_code == 137);
    assert!(killed || matches!(ended, Err(SandboxError::Gone { .. })), "{ended:?}");
    assert!(matches!(sandbox.wait().await, Err(SandboxError::Gone { .. })));
    assert!(matches!(sandbox.start().await, Err(SandboxError::Gone { .. })));
    sandbox.remove().await.expect("it is gone, as it should be");
}

#[tokio::test]
async fn what_cannot_be_made_is_told_apart() {
    let world = World::new().await;
    let seccomp = SeccompProfile::built_in();
    let spec = world.spec("true");

    let mut missing = spec.clone();
    missing.image = format!("sha256:{}", "0".repeat(64)).parse().expect("a digest");
    let error = Sandbox::create(&world.engine, &missing, &seccomp).await.expect_err("no such image");
    assert!(matches!(error, SandboxError::ImageMissing { .. }), "{error}");

    let mut first = world.create(&spec).await;
    let error = Sandbox::create(&world.engine, &spec, &seccomp).await.expect_err("the name is taken");
    assert!(matches!(&error, SandboxError::NameTaken { name } if *name == spec.container_name()), "{error}");
    first.remove().await.expect("is removed");

    let mut homeless = spec.clone();
    homeless.workspace = world.path("not-there");
    let error = Sandbox::create(&world.engine, &homeless, &seccomp).await.expect_err("no such folder");
    assert!(matches!(&error, SandboxError::CreateRefused(why) if why.contains("not-there")), "{error}");
    assert!(!homeless.workspace.exists(), "the engine must not make it");

    let mut unknown = spec.clone();
    unknown.runtime = Some("no-such-runtime".to_owned());
    let error = Sandbox::create(&world.engine, &unknown, &seccomp).await.expect_err("no such runtime");
    assert!(matches!(error, SandboxError::CreateRefused(_)), "{error}");

    let mut limitless = spec.clone();
    limitless.limits.pids = 0;
    let error =
        Sandbox::create(&world.engine, &limitless, &seccomp).await.expect_err("0 would mean no limit");
    assert!(matches!(error, SandboxError::Spec(_)), "{error}");

    let broken = world.spec("");
    std::fs::set_permissions(&broken.shim, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("chmod");
    let mut sandbox = world.create(&broken).await;
    let error = sandbox.start().await.expect_err("cannot be executed");
    assert!(matches!(error, SandboxError::StartRefused(_)), "{error}");
    sandbox.remove().await.expect("is removed");
    assert!(list(&world.engine, &world.instance).await.expect("lists").is_empty());
}

#[tokio::test]
async fn a_copy_of_the_output_is_kept_only_if_asked_for() {
    use bollard::query_parameters::LogsOptionsBuilder;
    use futures::StreamExt;
    let world = World::new().await;
    let mut spec = world.spec("echo said");
    for (copy, expected) in [(None, ""), (Some(65536), "said\n")] {
        spec.log_copy_bytes = copy;
        let mut sandbox = world.started(&spec).await;
        sandbox.wait().await.expect("ends");
        let options = LogsOptionsBuilder::new().stdout(true).build();
        let logs: Vec<_> = world.engine.api().logs(sandbox.id(), Some(options)).collect().await;
        let text: String = logs.into_iter().filter_map(Result::ok).map(|line| line.to_string()).collect();
        assert_eq!(text, expected);
        assert!(!is_running(&sandbox.inspect().await.expect("inspects")));
        sandbox.remove().await.expect("is removed");
    }
}
