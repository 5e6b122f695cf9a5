//! Webhooks against receivers that fail in every way, and notifiers that are killed.

use std::collections::BTreeMap;

use kage::db::{self, Zone};
use kage::domain::security_event::{SecurityEvent, SecurityEventKind};
use serde_json::{Value, json};

use crate::events::{SECRET, hook};
use crate::support::database::as_role;
use crate::support::receiver::{Receiver, Reply};
use crate::support::tasks::string;
use crate::support::{TestKage, eventually};

const OTHER: &str = "whsec_YW5vdGhlci1zZWNyZXQtb2Yta2FnZS10ZXN0cy0wMg==";

/// Events as they are written with an act.
async fn happen(kage: &TestKage, kind: SecurityEventKind, count: usize) {
    let mut transaction = kage.pool().begin().await.expect("begins");
    for number in 0..count {
        let event = SecurityEvent::new(kind, "trail", &json!({ "number": number }));
        db::security_events::append(&mut transaction, &event).await.expect("appends");
    }
    transaction.commit().await.expect("commits");
}

/// The table knows the kinds that the program knows, and no other.
#[tokio::test]
async fn each_kind_can_be_written() {
    let kage = TestKage::new().await;
    for kind in SecurityEventKind::ALL {
        happen(&kage, kind, 1).await;
    }
    let unknown = sqlx::query(
        "INSERT INTO security_events (id, kind, severity, subject, details) VALUES (gen_random_uuid(), 'budget.nonsense', 1, 'x', '{}')",
    );
    assert!(unknown.execute(kage.pool()).await.is_err());
}

/// By hook, of the only event.
async fn deliveries(kage: &TestKage) -> BTreeMap<String, Value> {
    let events = kage.security_events("").await;
    let all = events[0]["deliveries"].as_array().expect("a list");
    all.iter().map(|delivery| (string(&delivery["hook"]).to_owned(), delivery.clone())).collect()
}

#[tokio::test]
async fn receivers_that_fail_are_tried_again_and_hold_nobody_up() {
    let mut kage = TestKage::new().await;
    let good = Receiver::start([Reply::Status(500), Reply::Endless]).await;
    let gone = Receiver::start([Reply::Status(410)]).await;
    let slow = Receiver::start([Reply::Silence, Reply::Silence, Reply::Silence]).await;
    let astray = Receiver::start(vec![Reply::Elsewhere(good.url()); 3]).await;
    let nobody = Receiver::start([]).await;
    let dead = nobody.url();
    drop(nobody);
    kage.webhooks(
        &[
            hook("good", &good.url(), ""),
            hook("gone", &gone.url(), ""),
            hook("slow", &slow.url(), ""),
            hook("astray", &astray.url(), ""),
            hook("dead", &dead, ""),
            hook("picky", &good.url(), "min_severity = \"critical\""),
        ]
        .concat(),
    );
    kage.set("KAGE_WEBHOOKS_TRIES", "2");
    kage.start("api").await;
    let notifier = kage.spawn_with("notifier", &[]);
    happen(&kage, SecurityEventKind::AnchorFailed, 1).await;

    let told = eventually("all are done with", async || {
        if kage.security_events("").await[0]["deliveries"].as_array()?.len() < 5 {
            return None;
        }
        let told = deliveries(&kage).await;
        told.values().all(|delivery| delivery["state"] != "pending").then_some(told)
    })
    .await;
    let seen = |hook: &str| {
        let delivery = &told[hook];
        (string(&delivery["state"]), delivery["attempts"].as_u64(), delivery["last_status"].as_u64())
    };
    // A body without an end is no failure: what counts is the status.
    assert_eq!(seen("good"), ("delivered", Some(2), Some(200)));
    assert_eq!(seen("gone"), ("given_up", Some(1), Some(410)));
    assert_eq!(seen("slow"), ("given_up", Some(2), None));
    assert_eq!(seen("astray"), ("given_up", Some(2), Some(307)));
    assert_eq!(seen("dead"), ("given_up", Some(2), None));
    assert!(!told.contains_key("picky"));
    assert!(string(&told["slow"]["problem"]).contains("no answer within 2 s"), "{told:#?}");
    assert!(string(&told["astray"]["problem"]).contains("redirects are not followed"), "{told:#?}");
    assert!(string(&told["dead"]["problem"]).contains("refused"), "{told:#?}");
    assert!(told.values().all(|delivery| delivery.get("next_try_at").is_none()));

    // The same message each time, signed anew; nothing came by the redirect.
    let came = good.told();
    assert_eq!((came.len(), came[0].path.as_str()), (2, "/hook"));
    assert_eq!((came[0].header("webhook-id"), &came[0].body), (came[1].header("webhook-id"), &came[1].body));
    assert!(came.iter().all(|told| told.signed_by(SECRET) == 1 && told.signed_by(OTHER) == 0));

    // Who is gone hears nothing more; the others do.
    happen(&kage, SecurityEventKind::AnchorFailed, 1).await;
    eventually("the second one is told", async || (good.told().len() == 3).then_some(())).await;
    let waiting = &deliveries(&kage).await["gone"];
    assert_eq!((&waiting["state"], &waiting["attempts"]), (&json!("pending"), &json!(0)), "{waiting}");
    assert_eq!(gone.told().len(), 1);
    // No secret, and no URL, in what is stored or logged.
    let log = kage.process(notifier).log();
    let stored = crate::support::database::stored(kage.pool()).await;
    assert!(log.contains("webhook.gone") && stored.contains("trail.anchor_failed"));
    for text in [&log, &stored] {
        assert!(!text.contains("whsec_") && !text.contains(&good.address.to_string()), "{text}");
    }
    // A new start asks it again.
    kage.process(notifier).terminate().await;
    kage.spawn_with("notifier", &[]);
    eventually("it is told", async || (gone.told().len() == 2).then_some(())).await;
}

/// What ends `kage serve` is the first that its receivers must hear, and its exit status says that it was no order.
#[tokio::test]
async fn a_log_that_was_cut_is_told_although_it_ends_the_process() {
    let mut kage = TestKage::new().await;
    let ops = Receiver::start([]).await;
    kage.webhooks(&hook("ops", &ops.url(), "min_severity = \"critical\""));
    let serve = kage.start("serve").await;
    eventually("there is a checkpoint", async || {
        let all: Vec<i64> = sqlx::query_scalar("SELECT size FROM audit_checkpoints")
            .fetch_all(kage.pool())
            .await
            .expect("reads");
        (!all.is_empty()).then_some(())
    })
    .await;
    let cut = "SET session_replication_role = replica;
        DELETE FROM audit_leaves WHERE index >= 1; DELETE FROM audit_checkpoints;
        RESET session_replication_role;
        INSERT INTO audit_entries (actor_kind, action, object, outcome, details) VALUES ('host', 'x', 'x', 'done', '{}')";
    let mut owner = kage.pool().acquire().await.expect("a connection");
    sqlx::raw_sql(cut).execute(&mut *owner).await.expect("the owner may do anything");
    drop(owner);
    assert_eq!(kage.process(serve).wait().await.code(), Some(1), "{}", kage.process(serve).log_tail());
    let told: Vec<String> = ops.told().iter().map(|told| string(&told.json()["type"]).to_owned()).collect();
    assert_eq!(told, ["trail.inconsistent"]);
    // Nor does it begin again.
    let serve = kage.spawn_with("serve", &[]);
    assert_eq!(kage.process(serve).wait().await.code(), Some(1));
}

#[tokio::test]
async fn a_killed_notifier_loses_nothing_and_two_send_nothing_twice() {
    let mut kage = TestKage::new().await;
    let receiver = Receiver::start([Reply::Silence]).await;
    kage.webhooks(&hook("ops", &receiver.url(), ""));
    kage.start("api").await;
    let notifier = kage.spawn_with("notifier", &[("KAGE_WEBHOOKS_WITHIN_SECS", "5")]);
    happen(&kage, SecurityEventKind::TrailInconsistent, 1).await;
    eventually("it has sent", async || (receiver.told().len() == 1).then_some(())).await;
    // Between the sending and the record of it.
    kage.process(notifier).kill_9();
    let begun = &deliveries(&kage).await["ops"];
    assert_eq!((&begun["state"], &begun["attempts"]), (&json!("pending"), &json!(1)), "{begun}");
    let both = [kage.spawn_with("notifier", &[]), kage.spawn_with("notifier", &[])];
    eventually("it is told", async || (deliveries(&kage).await["ops"]["state"] == "delivered").then_some(()))
        .await;
    let told = receiver.told();
    assert_eq!(told.len(), 2, "once more, by one of the two");
    assert_eq!(told[0].header("webhook-id"), told[1].header("webhook-id"));
    assert_eq!(told[0].body, told[1].body);
    assert_eq!(deliveries(&kage).await["ops"]["attempts"], 2);

    // Side by side they share the work.
    happen(&kage, SecurityEventKind::Flood, 60).await;
    let all = "SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'";
    eventually("all are told", async || {
        let told: i64 = sqlx::query_scalar(all).fetch_one(kage.pool()).await.expect("counts");
        (told == 61).then_some(())
    })
    .await;
    let mut ids: Vec<String> =
        receiver.told().iter().map(|told| told.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 62);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 61);
    for notifier in both {
        assert!(kage.process(notifier).terminate().await.success());
    }
}

#[tokio::test]
async fn a_test_event_a_rotation_and_files_that_are_refused() {
    let mut kage = TestKage::new().await;
    let receiver = Receiver::start([Reply::Status(200), Reply::Status(404)]).await;
    let rotating = hook("ops", &receiver.url(), "")
        .replace("[\"env:HOOK_SECRET\"]", "[\"env:HOOK_NEW\", \"env:HOOK_SECRET\"]");
    kage.webhooks(&rotating);
    kage.set("HOOK_NEW", OTHER);
    let test = |kage: &TestKage, name: &str| {
        let mut command = kage.server_command(&["webhook", "test", name]);
        tokio::task::spawn_blocking(move || {
            let output = command.output().expect("starts");
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        })
    };
    let (good, said) = test(&kage, "ops").await.expect("no panic");
    assert!(good && said.contains("200") && said.contains("\\x1b[2Jthanks"), "{said}");
    let told = &receiver.told()[0];
    assert_eq!(
        (told.signed_by(SECRET), told.signed_by(OTHER)),
        (1, 1),
        "while secrets are exchanged both sign"
    );
    assert_eq!(told.json()["type"], "webhook.test");
    let (good, said) = test(&kage, "ops").await.expect("no panic");
    assert!(!good && said.contains("404"), "{said}");
    let (good, said) = test(&kage, "other").await.expect("no panic");
    assert!(!good && said.contains("it has: ops"), "{said}");
    let made = kage.host(&["webhook", "keygen"]);
    assert!(kage::config::webhooks::key(made.trim()).is_some(), "{made}");

    let refused = async |kage: &TestKage| {
        let (good, said) = test(kage, "ops").await.expect("no panic");
        assert!(!good, "{said}");
        said
    };
    kage.set("HOOK_NEW", "whsec_hush");
    let said = refused(&kage).await;
    assert!(
        said.contains("webhook.ops.secret") && said.contains("kage webhook keygen") && !said.contains("hush"),
        "{said}"
    );
    kage.webhooks(&rotating.replace("http://127.0.0.1", "http://192.0.2.1"));
    assert!(refused(&kage).await.contains("https"));
    assert_eq!(receiver.told().len(), 2);
}

#[tokio::test]
async fn a_secret_that_is_replaced_signs_what_comes_next() {
    let mut kage = TestKage::new().await;
    let receiver = Receiver::start([]).await;
    let file = kage.folder.join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).expect("writes");
    let place = format!("file:{}", file.display());
    kage.webhooks(&hook("ops", &receiver.url(), "").replace("env:HOOK_SECRET", &place));
    let notifier = kage.spawn_with("notifier", &[]);
    happen(&kage, SecurityEventKind::AnchorFailed, 1).await;
    eventually("the first is told", async || (receiver.told().len() == 1).then_some(())).await;
    // As secrets are rotated, and then as they are broken.
    std::fs::write(kage.folder.join("new"), OTHER).expect("writes");
    std::fs::rename(kage.folder.join("new"), &file).expect("moves");
    happen(&kage, SecurityEventKind::AnchorFailed, 1).await;
    eventually("the second is told", async || (receiver.told().len() == 2).then_some(())).await;
    std::fs::write(&file, "whsec_hush").expect("writes");
    happen(&kage, SecurityEventKind::AnchorFailed, 1).await;
    eventually("the third is told", async || (receiver.told().len() == 3).then_some(())).await;
    let signed: Vec<_> =
        receiver.told().iter().map(|told| (told.signed_by(SECRET), told.signed_by(OTHER))).collect();
    assert_eq!(signed, [(1, 0), (0, 1), (0, 1)], "what cannot be used leaves the old one in force");
    // By the notifier's own role.
    let reloads =
        "SELECT object, outcome FROM audit_entries WHERE action = 'secret.reload' AND outcome = 'failed'";
    let (object, _): (String, String) = eventually("it is in the trail", async || {
        sqlx::query_as(reloads).fetch_optional(kage.pool()).await.expect("reads")
    })
    .await;
    assert_eq!(object, "setting:webhook.ops.secret");
    assert!(!kage.process(notifier).log().contains("hush"));
}

#[tokio::test]
async fn each_role_tells_of_what_is_its_own_and_changes_nothing() {
    let kage = TestKage::new().await;
    happen(&kage, SecurityEventKind::Flood, 2).await;
    let denied = Some("42501");
    let roles = ["kage_api", "kage_runner", "kage_gateway", "kage_sequencer", "kage_notifier"];
    for role in roles {
        for (kind, whose) in [
            ("auth.repeated_failures", "kage_api"),
            ("sandbox.flood", "kage_runner"),
            ("repository.quarantined", "kage_runner"),
            ("host.danger_refused", "kage_runner"),
            ("budget.exhausted", "kage_gateway"),
            ("trail.inconsistent", "kage_sequencer"),
            ("sandbox.unheard_of", "nobody"),
        ] {
            let own = role == whose;
            let insert = format!(
                "INSERT INTO security_events (id, kind, severity, subject, details)
                 VALUES (gen_random_uuid(), '{kind}', 1, 'x', '{{}}') ON CONFLICT DO NOTHING"
            );
            assert_eq!(as_role(kage.pool(), Some(role), &insert).await.is_none(), own, "{role}: {kind}");
        }
        let notifier = role == "kage_notifier";
        for (statement, may) in [
            ("UPDATE security_events SET subject = 'x'", false),
            ("DELETE FROM security_events", false),
            ("TRUNCATE security_events CASCADE", false),
            ("SELECT * FROM security_events", notifier || role == "kage_api"),
            ("SELECT * FROM webhook_deliveries", notifier || role == "kage_api"),
            (
                "INSERT INTO webhook_deliveries (event, hook) SELECT min(ordinal), 'x' FROM security_events",
                notifier,
            ),
            ("UPDATE webhook_deliveries SET state = 'given_up'", notifier),
            ("DELETE FROM webhook_deliveries", false),
            ("SELECT * FROM security_event_queue", notifier),
            ("INSERT INTO security_event_queue VALUES (1)", false),
            ("DELETE FROM security_event_queue", notifier),
        ] {
            let refused = as_role(kage.pool(), Some(role), statement).await;
            assert_eq!(refused.as_deref(), if may { None } else { denied }, "{role}: {statement}");
        }
    }
    // Of the rest the notifier sees nothing, and of the trail it writes what it does itself.
    for statement in [
        "SELECT * FROM tasks",
        "SELECT * FROM runs",
        "SELECT * FROM events",
        "SELECT * FROM api_keys",
        "SELECT * FROM audit_entries",
        "INSERT INTO audit_entries (actor_kind, action, object, outcome, details) VALUES ('runner', 'x', 'x', 'done', '{}')",
        "CREATE TABLE loot (x text)",
    ] {
        assert_eq!(
            as_role(kage.pool(), Some("kage_notifier"), statement).await.as_deref(),
            denied,
            "{statement}"
        );
    }
    let reload = "INSERT INTO audit_entries (actor_kind, action, object, outcome, details)
                  VALUES ('host', 'secret.reload', 'setting:webhook.x.secret', 'done', '{}')";
    assert_eq!(as_role(kage.pool(), Some("kage_notifier"), reload).await, None);
    // Not even the owner changes what was told; who writes cannot leave the queue out.
    let owner: String =
        sqlx::query_scalar("SELECT current_user::text").fetch_one(kage.pool()).await.expect("a name");
    let changed = as_role(kage.pool(), Some(&owner), "UPDATE security_events SET subject = 'x'").await;
    assert_eq!(changed.as_deref(), denied);
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM security_event_queue")
        .fetch_one(kage.pool())
        .await
        .expect("counts");
    assert_eq!(waiting, 2);
}

#[tokio::test]
async fn an_event_is_undone_with_its_act_and_told_once() {
    let kage = TestKage::new().await;
    let event = |number: u8| {
        // What PostgreSQL would refuse, and so undo the act, is spelled out before.
        let details = json!({ "path": "a\u{0}b", "number": number });
        SecurityEvent::new(SecurityEventKind::RefusedBurst, "run:1\u{0}", &details).once("run:1".to_owned())
    };
    let url = Some(secrecy::SecretString::from(kage.settings["KAGE_DATABASE_URL"].clone()));
    let config = kage::config::database::DatabaseConfig {
        url,
        password: None,
        connections: 2,
        acquire_secs: 60,
        start_secs: 60,
    };
    let runner = db::connect(&config, Zone::Runner).await.expect("a pool");
    let count = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM security_events")
            .fetch_one(kage.pool())
            .await
            .expect("counts")
    };
    let mut undone = runner.begin().await.expect("begins");
    db::security_events::append(&mut undone, &event(0)).await.expect("as the runner's role");
    undone.rollback().await.expect("rolls back");
    assert_eq!(count().await, 0);
    for number in 1..4 {
        let mut transaction = runner.begin().await.expect("begins");
        db::security_events::append(&mut transaction, &event(number)).await.expect("appends");
        transaction.commit().await.expect("commits");
    }
    assert_eq!(count().await, 1);
    let (subject, details): (String, Value) = sqlx::query_as("SELECT subject, details FROM security_events")
        .fetch_one(kage.pool())
        .await
        .expect("one");
    assert_eq!(
        (subject.as_str(), &details["path"], &details["number"]),
        ("run:1\\u{0}", &json!("a\\u{0}b"), &json!(1))
    );
    runner.close().await;
}
