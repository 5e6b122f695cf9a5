//! A key that is revoked while its request is under way, tried on every operation that writes.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::access::{Ids, Operation, SCOPES, body, described};
use crate::support::http::{Answer, send};
use crate::support::{TestKage, eventually};

/// The answer to a request whose key is revoked between its being known and its act.
async fn revoked_meanwhile(kage: &TestKage, operation: &Operation) -> Answer {
    let (id, key) = kage.key_with(&json!({ "scopes": SCOPES })).await;
    // Its use is noted now, and so not again during the request.
    assert_eq!(kage.get_as("/api/v1/keys/self", &key).await.status, 200);
    let mut revocation = kage.pool().begin().await.expect("a transaction");
    let sql = "UPDATE api_keys SET revoked_at = now() WHERE id = $1";
    sqlx::query(sql).bind(&id).execute(&mut *revocation).await.expect("revoked");
    let ids = Ids::absent();
    let request = kage.with_key(operation.method.clone(), &ids.fill(&operation.path), &key);
    let mut wish = body(operation, &ids.repository);
    if operation.path.ends_with("/repositories") {
        wish = Some(json!({ "name": "another", "source": kage.sources.join("another") }));
    }
    let request = if let Some(body) = &wish { request.json(body) } else { request };
    let mut request = Box::pin(send(request));
    let waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid)";
    loop {
        tokio::select! {
            answer = &mut request => return answer,
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        if sqlx::query_scalar(waiting).fetch_one(&mut *revocation).await.expect("an answer") {
            break;
        }
    }
    revocation.commit().await.expect("committed");
    let answer = request.await;
    let acts = "SELECT count(*) FROM audit_entries WHERE actor_id = $1 AND outcome = 'done'";
    let acts: i64 = sqlx::query_scalar(acts).bind(&id).fetch_one(kage.pool()).await.expect("a number");
    assert_eq!(acts, 0, "{} {}", operation.method, operation.path);
    answer
}

#[tokio::test]
async fn what_is_revoked_before_its_act_does_not_act() {
    let mut kage = TestKage::new().await;
    kage.start("api").await;
    let operations = described(&kage).await;
    // Signing out ends what asks, and nothing else.
    let writing = operations
        .iter()
        .filter(|one| one.scopes.is_some() && one.method != Method::GET && one.path != "/auth/logout");
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for operation in writing {
        let status = revoked_meanwhile(&kage, operation).await.status;
        if status != 401 {
            wrong.push(format!("{} {}: {status}", operation.method, operation.path));
        }
        tried += 1;
    }
    assert!(wrong.is_empty() && tried >= 11, "{tried} tried: {wrong:#?}");
}

#[tokio::test]
async fn an_export_breaks_off_when_its_key_is_revoked() {
    let kage = TestKage::serving(&[]).await;
    let (id, key) = kage.key_with(&json!({ "scopes": ["audit:read"] })).await;
    eventually("a checkpoint", async || {
        (kage.get_as("/api/v1/audit/checkpoint", &key).await.status == 200).then_some(())
    })
    .await;
    // Its first page waits here.
    let mut held = kage.pool().begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE audit_leaves").execute(&mut *held).await.expect("locked");
    let request = kage.with_key(Method::GET, "/api/v1/audit/export", &key);
    let whole = tokio::spawn(async move { request.send().await.expect("an answer").bytes().await });
    let waiting = "SELECT EXISTS (SELECT FROM pg_locks l WHERE NOT l.granted AND l.relation = 'audit_leaves'::regclass AND l.mode = 'AccessShareLock')";
    eventually("an export that waits", async || {
        let waits: bool = sqlx::query_scalar(waiting).fetch_one(kage.pool()).await.expect("an answer");
        waits.then_some(())
    })
    .await;
    let sql = "UPDATE api_keys SET revoked_at = now() WHERE id = $1";
    sqlx::query(sql).bind(&id).execute(kage.pool()).await.expect("revoked");
    held.commit().await.expect("ended");
    let whole = whole.await.expect("no panic");
    assert!(whole.is_err(), "{} bytes and an end", whole.map_or(0, |bytes| bytes.len()));
}
