//! A socket lives exactly as long as its run, and who serves it is decided before the run begins.

use std::os::unix::fs::PermissionsExt;

use kage::domain::model::Dialect;
use tokio::net::UnixStream;

use crate::support::runs::{NONE, Run};
use crate::support::{World, eventually, fault, request};

async fn refused(world: &World, cli: &str, dialect: &str, model: Option<&str>) -> (Run, String) {
    let run = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&run, cli, dialect, model).await;
    let grant = world.answered(&run).await;
    assert!(grant.is_closed() && !world.socket(run.id).exists(), "{grant:?}");
    let audit = world.audit(&run, "model.open").await;
    assert_eq!((audit.len(), audit[0].0.as_str()), (1, "refused"));
    let error = grant.error.unwrap();
    (run, error)
}

#[tokio::test]
async fn a_run_that_cannot_be_served_is_told_why() {
    let more = r#"
        [[provider]]
        name = "keyless"
        dialect = "chat"
        base_url = "http://127.0.0.1:1"
        credential = "env:KAGE_TEST_THERE_IS_NO_SUCH_KEY"
        free = true
        allow = ["*"]
        [cli.keyless]
        provider = "keyless"
        [cli.narrow]
        models = ["m-small"]
        [cli.wrong]
        provider = "scripted-ollama"
    "#;
    let world = World::with(more, &[]).await;
    for (cli, dialect, model, words) in [
        ("keyless", "chat", None, "KAGE_TEST_THERE_IS_NO_SUCH_KEY is not set"),
        ("narrow", "anthropic", None, "the model m-default is not allowed for narrow"),
        ("narrow", "anthropic", Some("m-large"), "the model m-large is not allowed"),
        ("any", "anthropic", Some("claude"), "not allowed"),
        ("any", "anthropic", Some("M-default"), "not allowed"),
        ("any", "cobol", None, "there is no dialect"),
        ("wrong", "anthropic", None, "does not speak anthropic"),
    ] {
        let (_, error) = refused(&world, cli, dialect, model).await;
        assert!(error.contains(words), "{cli} {dialect} {model:?}: {error}");
    }
    // What the task asks for goes before what the operator says, and that before the manifest.
    let run = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&run, "narrow", "anthropic", Some("m-small")).await;
    let grant = world.answered(&run).await;
    assert_eq!(
        (grant.model.as_deref(), grant.provider.as_deref()),
        (Some("m-small"), Some("scripted-anthropic"))
    );
}

#[tokio::test]
async fn a_socket_ends_with_its_run_and_takes_its_calls_along() {
    let world = World::new().await;
    let run = world.open("anthropic", NONE, NONE).await;
    let mode = std::fs::metadata(world.socket(run.id)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let other = world.open("anthropic", NONE, NONE).await;
    let stall = request(Dialect::Anthropic, &fault("stall"), true);
    let mut answer = world.client(run.id).post("http://any/v1/messages").json(&stall).send().await.unwrap();
    assert!(answer.chunk().await.unwrap().is_some());
    let grant = world.close(&run).await;
    // Closed means settled.
    assert_eq!(grant.error, None);
    let open: i64 =
        sqlx::query_scalar("SELECT count(*) FROM model_calls WHERE run_id = $1 AND outcome = 'open'")
            .bind(run.id)
            .fetch_one(world.pool())
            .await
            .unwrap();
    assert_eq!(open, 0);
    let calls = world.calls(&run).await;
    assert_eq!((calls[0].outcome.as_str(), calls[0].estimated), ("aborted", true));
    assert!(!world.socket(run.id).exists());
    assert!(UnixStream::connect(world.socket(run.id)).await.is_err());
    assert_eq!(world.audit(&run, "model.close").await.len(), 1);
    // Another run's socket is not concerned.
    let body = request(Dialect::Anthropic, "hello", false);
    assert_eq!(world.call(other.id, Dialect::Anthropic, &body).await.status, 200);
}

#[tokio::test]
async fn a_run_whose_runner_forgot_it_loses_its_socket() {
    let world = World::new().await;
    for change in [
        "UPDATE runs SET state = 'failed', finished_at = now() WHERE id = $1",
        "UPDATE runs SET state = 'queued', lease_expires_at = NULL WHERE id = $1",
        "UPDATE runs SET lease_expires_at = now() - interval '1 day' WHERE id = $1",
    ] {
        let run = world.open("chat", NONE, NONE).await;
        sqlx::query(change).bind(run.id).execute(world.pool()).await.unwrap();
        world
            .until("it is closed", "SELECT state = 'closed' FROM model_grants WHERE run_id = $1", run.id)
            .await;
        eventually("the socket is gone", async || (!world.socket(run.id).exists()).then_some(())).await;
        sqlx::query("UPDATE runs SET lease_expires_at = NULL WHERE id = $1")
            .bind(run.id)
            .execute(world.pool())
            .await
            .unwrap();
    }
    // A lease that ran out a moment ago may be taken up: the CLI works on.
    let run = world.open("chat", NONE, NONE).await;
    sqlx::query("UPDATE runs SET lease_expires_at = now() - interval '1 minute' WHERE id = $1")
        .bind(run.id)
        .execute(world.pool())
        .await
        .unwrap();
    let other = world.open("chat", NONE, NONE).await;
    world.close(&other).await;
    let body = request(Dialect::Chat, "hello", false);
    assert_eq!(world.call(run.id, Dialect::Chat, &body).await.status, 200);
}

#[tokio::test]
async fn another_attempt_gets_a_socket_of_its_own() {
    let world = World::new().await;
    let run = world.open("chat", NONE, NONE).await;
    sqlx::query("UPDATE runs SET attempt = 2 WHERE id = $1")
        .bind(run.id)
        .execute(world.pool())
        .await
        .unwrap();
    // As the runner does: the folder is made anew.
    let folder = world.socket(run.id);
    let folder = folder.parent().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::create_dir(folder).unwrap();
    world.want(&run, "cli", "chat", None).await;
    let grant = world.answered(&run).await;
    assert!(grant.is_open() && grant.attempt == 2, "{grant:?}");
    let body = request(Dialect::Chat, "hello", false);
    assert_eq!(world.call(run.id, Dialect::Chat, &body).await.status, 200);
    let attempt: i32 = sqlx::query_scalar("SELECT attempt FROM model_calls WHERE run_id = $1")
        .bind(run.id)
        .fetch_one(world.pool())
        .await
        .unwrap();
    assert_eq!(attempt, 2);
}

#[tokio::test]
async fn a_gateway_that_starts_anew_serves_on() {
    let mut world = World::new().await;
    let run = world.open("gemini", NONE, NONE).await;
    world.stop().await;
    assert!(!world.socket(run.id).exists());
    // Wanted while nobody was there.
    let second = world.run_of(world.task(NONE).await, NONE).await;
    world.want(&second, "cli", "gemini", None).await;
    world.start().await;
    assert!(world.answered(&second).await.is_open());
    eventually("the first socket is back", async || UnixStream::connect(world.socket(run.id)).await.ok())
        .await;
    let body = request(Dialect::Gemini, "hello", true);
    for run in [run, second] {
        assert_eq!(world.call(run.id, Dialect::Gemini, &body).await.status, 200);
    }
}

#[tokio::test]
async fn a_run_of_another_machine_is_left_alone() {
    let world = World::new().await;
    let away = world.run_of(world.task(NONE).await, NONE).await;
    std::fs::remove_dir(world.folder().join("model").join(away.id.to_string())).unwrap();
    world.want(&away, "cli", "chat", None).await;
    // One that came later has been served meanwhile.
    world.open("chat", NONE, NONE).await;
    let grant = kage::db::grants::find(world.pool(), away.id).await.unwrap().unwrap();
    assert_eq!(grant.state, "wanted");
}
