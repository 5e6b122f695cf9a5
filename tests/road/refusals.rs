//! What a sandbox refuses is seen by whoever watches the run: an event, a row, an audit entry.

use serde_json::{Value, json};

use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

/// A call by its number, with perl, which every Debian has: bpf(2).
#[cfg(target_arch = "x86_64")]
const BPF: &str = "perl -e 'syscall(321, 5, 0, 0)'";
#[cfg(target_arch = "aarch64")]
const BPF: &str = "perl -e 'syscall(280, 5, 0, 0)'";

/// As `call form`, with the counts.
fn refused(run: &Value) -> Vec<(String, u64)> {
    let calls = run["refused_calls"].as_array().cloned().unwrap_or_default();
    let alarming = calls.iter().filter(|call| call["expected"] == json!(false));
    let one = |call: &Value| {
        let form = call["form"].as_str().unwrap_or_default();
        (
            format!("{} {form}", string(&call["call"])).trim().to_owned(),
            call["count"].as_u64().expect("a count"),
        )
    };
    alarming.map(one).collect()
}

#[tokio::test]
async fn a_refused_call_is_an_event_a_row_and_an_audit_entry() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let script = format!("{BPF}; {BPF}; perl -e 'socket(S, 17, 3, 0)'; echo tried; sleep 1000");
    let id = string(&kage.submit(&shell(&script)).await["id"]).to_owned();
    kage.says(&id, "shell", "tried").await;

    // While it still runs.
    let mut stream = kage.stream(&id, "").await;
    let mut left = 2;
    let seen = stream
        .until(|event| {
            left -= i32::from(event.name == "security");
            left == 0
        })
        .await;
    let mut told: Vec<Value> =
        seen.iter().filter(|event| event.name == "security").map(|event| event.data.clone()).collect();
    told.sort_by_key(|event| event["call"].to_string());
    assert_eq!(
        (&told[0]["call"], &told[0]["run"], &told[0]["attempt"]),
        (&json!("bpf"), &json!("shell"), &json!(1))
    );
    assert_eq!(told[0]["arguments"][0], "0x5");
    assert_eq!(
        (&told[1]["call"], &told[1]["form"]),
        (&json!("socket"), &json!("AF_PACKET, SOCK_RAW, protocol 0"))
    );
    assert!(string(&told[1]["message"]).contains("socket (AF_PACKET"), "{told:#?}");
    let expected = [("bpf".to_owned(), 2), ("socket AF_PACKET, SOCK_RAW, protocol 0".to_owned(), 1)];
    eventually("both are counted", async || {
        (refused(&kage.task(&id).await["runs"][0]) == expected).then_some(())
    })
    .await;

    kage.delete(&format!("/api/v1/tasks/{id}")).await;
    let ended = kage.ended(&id).await;
    assert_eq!(refused(&ended["runs"][0]), expected);
    let all = kage.events(&id, "").await;
    let result = all.iter().find(|event| event.name == "result").expect("a result");
    assert_eq!(refused(&result.data["run"]), expected);
    assert_eq!(all.iter().filter(|event| event.name == "security").count(), 2, "one event a kind");

    let run = string(&ended["runs"][0]["id"]);
    let entries: Vec<(String, String, Value)> = sqlx::query_as(
        "SELECT actor_kind, outcome, details FROM audit_entries WHERE action = 'sandbox.refuse' AND object = $1
         ORDER BY details->>'call'",
    )
    .bind(format!("run:{run}"))
    .fetch_all(kage.pool())
    .await
    .expect("the owner may read");
    assert_eq!(entries.len(), 2, "{entries:#?}");
    assert_eq!((entries[0].0.as_str(), entries[0].1.as_str()), ("runner", "refused"));
    assert_eq!((&entries[0].2["call"], &entries[0].2["attempt"]), (&json!("bpf"), &json!(1)));
    let record: Value = sqlx::query_scalar("SELECT sandbox FROM attempts WHERE run_id = $1::uuid")
        .bind(run)
        .fetch_one(kage.pool())
        .await
        .expect("one attempt");
    assert_eq!(record["refused_calls"], "recorded");
}

#[tokio::test]
async fn a_hundred_thousand_refusals_are_a_row_an_event_and_an_entry() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let many = BPF.replace("syscall", "for (1..100000) { syscall").replace("0)'", "0) }'");
    let done = kage.run(&shell(&format!("{many}; echo x > x"))).await;
    assert_eq!(done["runs"][0]["state"], "succeeded", "{done:#}");
    assert_eq!(refused(&done["runs"][0]), [("bpf".to_owned(), 100_000)]);
    let rows: (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM refused_calls WHERE NOT expected), (SELECT count(*) FROM events WHERE kind = 'security'),
                (SELECT count(*) FROM audit_entries WHERE action = 'sandbox.refuse')",
    )
    .fetch_one(kage.pool())
    .await
    .expect("counts");
    assert_eq!(rows, (1, 1, 1));
}

#[tokio::test]
async fn where_a_program_wants_to_connect_is_told_with_its_address_by_default() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let script = "for to in 169.254.169.254/80 1.1.1.1/443 127.0.0.1/9; do (exec 3<>/dev/tcp/$to) || echo \"no $to\"; done; echo x > x";
    let done = kage.run(&shell(script)).await;
    let id = string(&done["id"]);
    assert_eq!(done["runs"][0]["state"], "succeeded", "{done:#}");
    let log = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await.text();
    for outside in ["169.254.169.254/80", "1.1.1.1/443"] {
        let refused = format!("/dev/tcp/{outside}: Network is unreachable");
        assert!(log.contains(&refused), "the kernel refuses by itself: {log}");
    }
    let expected =
        [("connect to 1.1.1.1:443".to_owned(), 1), ("connect to 169.254.169.254:80".to_owned(), 1)];
    assert_eq!(refused(&done["runs"][0]), expected);
    let events = kage.events(id, "").await;
    let told: Vec<&str> = events
        .iter()
        .filter(|event| event.name == "security")
        .map(|event| string(&event.data["message"]))
        .collect();
    assert!(told.len() == 2 && told.iter().all(|message| message.contains("wants to reach")), "{told:?}");
}

#[tokio::test]
async fn addresses_are_not_recorded_where_the_operator_does_not_want_them() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_RECORD_ADDRESSES", "false")]).await;
    kage.demo().await;
    let done = kage.run(&shell(&format!("(exec 3<>/dev/tcp/1.1.1.1/443); {BPF}; echo x > x"))).await;
    assert_eq!(refused(&done["runs"][0]), [("bpf".to_owned(), 1)]);
}
