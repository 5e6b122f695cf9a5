//! Every act leaves its entry, no entry is ever changed, and no role may do more than its zone needs.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::database::as_role;
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

type Entry = (String, Option<String>, String, String, String, Value);

async fn entries(pool: &PgPool) -> Vec<Entry> {
    sqlx::query_as(
        "SELECT actor_kind, actor_id, action, object, outcome, details FROM audit_entries ORDER BY at",
    )
    .fetch_all(pool)
    .await
    .expect("the owner may read")
}

#[tokio::test]
async fn every_act_and_every_state_has_its_entry() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_GRACE_SECS", "1")]).await;
    let key = kage.key.split('_').nth(1).expect("kage_ID_SECRET")[..10].to_owned();
    kage.demo().await;
    kage.post("/api/v1/repositories/demo/fetch", &json!({})).await;
    kage.fetched("demo").await;
    let done = kage.run(&shell("echo x > x")).await;
    let gone = kage.submit(&shell("echo begun; sleep 1000")).await;
    let gone_id = string(&gone["id"]);
    kage.says(gone_id, "shell", "begun").await;
    kage.delete(&format!("/api/v1/tasks/{gone_id}")).await;
    let gone = kage.ended(gone_id).await;
    let made: Value =
        serde_json::from_str(&kage.host(&["key", "create", "--admin", "--json", "--name", "gone"]))
            .expect("JSON");
    kage.host(&["key", "revoke", string(&made["id"])]);
    assert!(kage.client(&["repo", "rm", "demo"]).await.status.success());

    let all = entries(kage.pool()).await;
    let (done_id, done_run) = (string(&done["id"]), &done["runs"][0]);
    let task = |id: &str| format!("task:{id}");
    let by_key = ("key", Some(key.as_str()));
    let (host, sequencer) = (("host", None), ("sequencer", None));
    for ((kind, id), action, object) in [
        (host, "key.create", format!("key:{key}")),
        (sequencer, "sequencer.start", "trail".to_owned()),
        (host, "image.register", "image:shell".to_owned()),
        (by_key, "repository.register", "repository:demo".to_owned()),
        (by_key, "repository.fetch", "repository:demo".to_owned()),
        (by_key, "task.submit", task(done_id)),
        (by_key, "task.submit", task(gone_id)),
        (by_key, "task.cancel", task(gone_id)),
        (host, "key.create", format!("key:{}", string(&made["id"]))),
        (host, "key.revoke", format!("key:{}", string(&made["id"]))),
        (by_key, "repository.remove", "repository:demo".to_owned()),
    ] {
        let found = all.iter().filter(|entry| {
            (entry.0.as_str(), entry.1.as_deref()) == (kind, id)
                && entry.2 == action
                && entry.3 == object
                && entry.4 == "done"
        });
        assert_eq!(found.count(), 1, "{action} {object}: {all:#?}");
    }
    let runner: BTreeSet<Option<String>> =
        all.iter().filter(|entry| entry.0 == "runner").map(|entry| entry.1.clone()).collect();
    assert_eq!(runner.len(), 1, "one runner, by its id");
    for (action, count) in
        [("repository.fetched", 2), ("repository.removed", 1), ("task.end", 2), ("runner.host", 1)]
    {
        let of_runner = all.iter().filter(|entry| entry.0 == "runner" && entry.2 == action).count();
        assert_eq!(of_runner, count, "{action}: {all:#?}");
    }
    for (run, last) in [(done_run, &["run.harvest", "succeeded"][..]), (&gone["runs"][0], &["cancelled"])] {
        let object = format!("run:{}", string(&run["id"]));
        let of_run = all.iter().filter(|entry| entry.3 == object);
        let acts: Vec<&str> = of_run
            .map(|entry| if entry.2 == "run.state" { string(&entry.5["state"]) } else { entry.2.as_str() })
            .collect();
        assert_eq!(acts, [&["preparing", "running", "sandbox.contained", "harvesting"], last].concat());
    }
    // What was harvested is named with its hashes: those that git itself gives.
    let harvest = all.iter().find(|entry| entry.2 == "run.harvest").expect("one");
    let file = &harvest.5["files"][0];
    assert_eq!(
        (&harvest.5["commit"], &harvest.5["files_total"]),
        (&done_run["commit_hash"], &json!(1)),
        "{harvest:#?}"
    );
    assert_eq!(
        (&file["path"], &file["blob"]),
        (&json!("x"), &json!("587be6b4c3f93f93c489c0111bba5596147a26cb"))
    );
    for role in ["sequencer", "api", "gateway", "runner", "retention", "keeper"] {
        let object = format!("role:{role}");
        let starts = all.iter().filter(|entry| entry.2 == "role.start" && entry.3 == object);
        assert_eq!(starts.count(), 1, "{role}: {all:#?}");
    }
    // What the sandbox was is part of the record: its image, its walls, its limits.
    let record =
        all.iter().find(|entry| entry.3.starts_with("run:") && entry.5["state"] == "running").expect("one");
    let record = record.5["facts"]["sandbox"].to_string();
    assert!(record.contains(string(&done_run["image"])) && record.contains("seccomp"), "{record}");
    assert_eq!(all.iter().filter(|entry| !entry.0.is_empty()).count(), all.len());
    let known: usize = 11 + 2 + 1 + 2 + 1 + 10 + 1 + 6;
    assert_eq!(all.len(), known, "{all:#?}");
}

/// Whoever has a key with `audit:read` and the log's public key needs no database, and need not believe the server.
#[tokio::test]
async fn the_trail_is_read_and_verified_through_the_server() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let done = kage.run(&shell("echo x > x")).await;
    let (id, run) = (string(&done["id"]), string(&done["runs"][0]["id"]));
    let public = kage.host(&["audit", "key"]);
    let public = public.trim_end();
    let client = async |args: &[&str]| {
        let output = kage.client(args).await;
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let story = eventually("the task's end has its place", async || {
        let (_, story) = client(&["audit", "show", "--task", id]).await;
        story.contains("task.end").then_some(story)
    });
    let story = story.await;
    for act in ["task.submit", &format!("run.harvest  run:{run}")] {
        assert!(story.contains(act), "{story}");
    }
    let database = kage.host(&["audit", "show", "--task", id]);
    assert_eq!(story, database, "the same story wherever it is read");

    let (code, note) = client(&["audit", "checkpoint"]).await;
    let earlier = kage.folder.join("checkpoint");
    std::fs::write(&earlier, note).expect("a folder of ours");
    let verify = ["audit", "verify", "--key", public, "--anchor", earlier.to_str().expect("a name")];
    assert_eq!(code, Some(0));
    let (code, said) = client(&verify).await;
    assert!(code == Some(0) && said.contains("1 checkpoints from elsewhere asked"), "{said}");
    let (code, part) = client(&["audit", "export", "--task", id]).await;
    let file = kage.folder.join("part.jsonl");
    std::fs::write(&file, &part).expect("a folder of ours");
    let offline = ["audit", "verify", "--key", public, "--export", file.to_str().expect("a name")];
    assert_eq!((code, client(&offline).await.0), (Some(0), Some(0)), "{part}");
    let stranger = kage.folder.join("stranger");
    let stranger = kage.host(&[
        "audit",
        "keygen",
        "--name",
        public.split('+').next().expect("a name"),
        "--out",
        stranger.to_str().expect("a name"),
    ]);
    let (code, said) = client(&["audit", "verify", "--key", stranger.trim_end()]).await;
    assert!(code == Some(1) && said.starts_with("NOT verified"), "{said}");

    let changed = sqlx::raw_sql(
        "SET session_replication_role = replica;
         UPDATE audit_entries SET outcome = 'failed' WHERE action = 'task.submit';
         RESET session_replication_role",
    );
    let mut owner = kage.pool().acquire().await.expect("a connection");
    changed.execute(&mut *owner).await.expect("the owner may do anything");
    let (code, said) = client(&verify).await;
    assert!(code == Some(1) && said.contains("NOT verified: entry "), "{said}");
}

#[tokio::test]
async fn entries_are_never_changed_by_anybody() {
    let kage = TestKage::new().await;
    let before = entries(kage.pool()).await;
    assert!(before.len() >= 2, "the key and the image");
    for role in [None, Some("kage_api"), Some("kage_runner")] {
        for statement in [
            "UPDATE audit_entries SET outcome = 'refused'",
            "UPDATE audit_entries SET details = '{}' WHERE false",
            "DELETE FROM audit_entries",
            "TRUNCATE audit_entries",
            "TRUNCATE audit_entries CASCADE",
            "INSERT INTO audit_entries (id, actor_kind, action, object, outcome, details)
             SELECT id, 'x', 'x', 'x', 'done', '{}' FROM audit_entries ON CONFLICT (id) DO UPDATE SET outcome = 'failed'",
        ] {
            let refused = as_role(kage.pool(), role, statement).await;
            // The owner is told first that the tree's leaves refer to it.
            let alone = role.is_none() && statement == "TRUNCATE audit_entries";
            let code = if alone { "0A000" } else { "42501" };
            assert_eq!(refused.as_deref(), Some(code), "{role:?}: {statement}");
        }
    }
    // The roles that write it may not take the guard away.
    for role in ["kage_api", "kage_runner"] {
        for statement in [
            "DROP TRIGGER audit_entries_append_only ON audit_entries",
            "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
            "DROP TABLE audit_entries",
            "SET session_replication_role = replica",
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        ] {
            let refused = as_role(kage.pool(), Some(role), statement).await;
            assert_eq!(refused.as_deref(), Some("42501"), "{role}: {statement}");
        }
    }
    let refused = as_role(kage.pool(), Some("kage_runner"), "SELECT * FROM audit_entries").await;
    assert_eq!(refused.as_deref(), Some("42501"), "the API answers with entries, a runner only writes them");
    assert_eq!(entries(kage.pool()).await, before);
}

const NOT_OF_THE_API: [&str; 23] = [
    "UPDATE api_keys SET scopes = '{admin}'",
    "UPDATE api_keys SET repositories = NULL, clis = NULL",
    "UPDATE api_keys SET expires_at = NULL",
    "UPDATE api_keys SET runs_at_once = NULL, runs_a_day = NULL, micros_a_day = NULL, charged = '{}'",
    "UPDATE api_keys SET revoked_at = NULL",
    "DELETE FROM api_keys",
    "DELETE FROM key_days",
    "INSERT INTO cli_images (name, digest, manifest) VALUES ('x', 'sha256:' || repeat('0', 64), '{}')",
    "UPDATE cli_images SET digest = 'sha256:' || repeat('0', 64)",
    "UPDATE runs SET image_digest = 'sha256:' || repeat('0', 64)",
    "UPDATE runs SET lease_id = NULL",
    "UPDATE runs SET branch = 'main'",
    "UPDATE runs SET manifest = '{}'",
    "UPDATE tasks SET description = 'other'",
    "UPDATE tasks SET submitted_by = 'other'",
    "DELETE FROM tasks",
    "UPDATE events SET payload = '{}'",
    "DELETE FROM events",
    "INSERT INTO run_results (run_id, patch, patch_truncated, files, warnings) SELECT id, '', false, '[]', '[]' FROM runs",
    "UPDATE attempts SET state = 'x'",
    "UPDATE repositories SET refs = '{}'",
    "INSERT INTO runners (id, instance, host, version, concurrency, engine, engine_ok)
     VALUES (gen_random_uuid(), '', '', '', 1, '', true)",
    "CREATE TABLE loot (x text)",
];

const NOT_OF_THE_RUNNER: [&str; 14] = [
    "SELECT * FROM api_keys",
    "UPDATE api_keys SET revoked_at = NULL",
    "SELECT * FROM idempotency_keys",
    "INSERT INTO tasks SELECT * FROM tasks",
    "UPDATE tasks SET description = 'other'",
    "UPDATE tasks SET repository = 'other'",
    "UPDATE tasks SET cancel_requested_at = NULL",
    "DELETE FROM tasks",
    "INSERT INTO runs SELECT * FROM runs",
    "DELETE FROM runs",
    "UPDATE events SET payload = '{}'",
    "DELETE FROM events",
    "INSERT INTO repositories (name, source) VALUES ('x', '/')",
    "CREATE TABLE loot (x text)",
];

#[tokio::test]
async fn a_role_may_do_what_its_zone_needs_and_no_more() {
    let kage = TestKage::new().await;
    for (role, forbidden) in [("kage_api", &NOT_OF_THE_API[..]), ("kage_runner", &NOT_OF_THE_RUNNER)] {
        for statement in forbidden {
            let refused = as_role(kage.pool(), Some(role), statement).await;
            assert_eq!(refused.as_deref(), Some("42501"), "{role}: {statement}");
        }
        let roles: Vec<String> = sqlx::query_scalar(
            "SELECT rolname::text FROM pg_roles WHERE rolname <> $1 AND pg_has_role($1, oid, 'MEMBER')",
        )
        .bind(role)
        .fetch_all(kage.pool())
        .await
        .expect("reads");
        assert_eq!(roles, Vec::<String>::new(), "{role} is nobody else");
        let own: (bool, bool, bool) =
            sqlx::query_as("SELECT rolsuper, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname = $1")
                .bind(role)
                .fetch_one(kage.pool())
                .await
                .expect("reads");
        assert_eq!(own, (false, false, false), "{role}");
    }
    // The list is of things that could be done: the owner may, save for what refers to rows that are not there.
    for statement in NOT_OF_THE_API.iter().chain(&NOT_OF_THE_RUNNER) {
        let refused = as_role(kage.pool(), None, statement).await;
        assert_ne!(refused.as_deref(), Some("42601"), "{statement} is no SQL");
        assert_ne!(refused.as_deref(), Some("42501"), "{statement} is refused to all");
        assert!(!refused.as_deref().is_some_and(|code| code.starts_with("427")), "{statement}: {refused:?}");
    }
}
