//! Each thing that somebody with all rights in the database can do to the past, and where it is found.

use kage::sequencer::error::SequencerError;
use kage::trail::canonical;
use kage::trail::tree::leaf_hash;
use sqlx::AssertSqlSafe;

use crate::support::Trail;

const OF_13: &str = "(SELECT entry_id FROM audit_leaves WHERE index = 13)";

#[tokio::test]
async fn what_an_administrator_changes_is_named() {
    let whole = Trail::grown(40, 10).await;
    assert_eq!(whole.verify(Vec::new()).await.expect("holds").size, 40);
    for (statement, place) in [
        (format!("UPDATE audit_entries SET details = '{{\"n\": 14}}' WHERE id = {OF_13}"), "entry 13"),
        (format!("UPDATE audit_entries SET at = at + interval '1 microsecond' WHERE id = {OF_13}"), "entry 13"),
        (format!("UPDATE audit_entries SET request_id = 'another' WHERE id = {OF_13}"), "entry 13"),
        (format!("UPDATE audit_entries SET address = '192.0.2.1' WHERE id = {OF_13}"), "entry 13"),
        (format!("UPDATE audit_entries SET route = 'GET /' WHERE id = {OF_13}"), "entry 13"),
        ("UPDATE audit_leaves SET hash = sha256('x') WHERE index = 13".to_owned(), "entry 13"),
        (format!("DELETE FROM audit_entries WHERE id = {OF_13}"), "entry 13"),
        ("DELETE FROM audit_leaves WHERE index = 13".to_owned(), "entry 13"),
        // The gap closed again.
        ("DELETE FROM audit_leaves WHERE index = 13; UPDATE audit_leaves SET index = index + 1000 WHERE index > 13;
          UPDATE audit_leaves SET index = index - 1001 WHERE index > 1000".to_owned(), "entries 10 to 19"),
        // Swapped, with and without their hashes.
        ("UPDATE audit_leaves SET index = 99 WHERE index = 13; UPDATE audit_leaves SET index = 13 WHERE index = 14;
          UPDATE audit_leaves SET index = 14 WHERE index = 99".to_owned(), "entries 10 to 19"),
        ("ALTER TABLE audit_leaves DROP CONSTRAINT audit_leaves_entry_id_key;
          UPDATE audit_leaves SET entry_id = (SELECT entry_id FROM audit_leaves WHERE index = 13) WHERE index = 14".to_owned(), "entry 14"),
        // Twice.
        ("ALTER TABLE audit_leaves DROP CONSTRAINT audit_leaves_entry_id_key;
          INSERT INTO audit_leaves SELECT 40, entry_id, hash FROM audit_leaves WHERE index = 13".to_owned(), "entry 40"),
        // One more, in the middle.
        ("UPDATE audit_leaves SET index = index + 1000 WHERE index >= 13; UPDATE audit_leaves SET index = index - 999 WHERE index > 1000;
          INSERT INTO audit_entries (id, actor_kind, action, object, outcome, details)
          VALUES ('00000000-0000-0000-0000-000000000001', 'host', 'x', 'x', 'done', '{}');
          INSERT INTO audit_leaves VALUES (13, '00000000-0000-0000-0000-000000000001', sha256('x'))".to_owned(), "entry 13"),
        ("DELETE FROM audit_checkpoints WHERE size = 40".to_owned(), "entry 30"),
        ("UPDATE audit_checkpoints SET size = 15 WHERE size = 20".to_owned(), "checkpoint of 15 entries"),
        ("UPDATE audit_checkpoints SET root = sha256('x') WHERE size = 20".to_owned(), "checkpoint of 20 entries"),
        ("UPDATE audit_checkpoints SET note = replace(note, 'kage.test', 'kage.best') WHERE size = 20".to_owned(), "checkpoint of 20 entries"),
    ] {
        let copy = whole.copy().await;
        copy.tamper(&statement).await;
        assert_eq!(copy.fault(Vec::new()).await, place, "{statement}");
    }
}

#[tokio::test]
async fn a_change_that_fits_in_itself_is_found_by_the_signatures() {
    let whole = Trail::grown(40, 10).await;
    // The entry and its recorded hash.
    let copy = whole.copy().await;
    copy.tamper(&format!("UPDATE audit_entries SET details = '{{\"n\": 99}}' WHERE id = {OF_13}")).await;
    let row: String = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT to_jsonb(e)::text FROM audit_entries e WHERE id = {OF_13}"
    )))
    .fetch_one(copy.pool())
    .await
    .expect("reads");
    let hash = hex::encode(leaf_hash(&canonical::leaf(&row).expect("a leaf")));
    copy.tamper(&format!("UPDATE audit_leaves SET hash = '\\x{hash}' WHERE index = 13")).await;
    assert_eq!(copy.fault(Vec::new()).await, "entries 10 to 19");
    // And it is not signed on.
    let refused = copy.sequencer(1, 10, Vec::new()).await.check().await.expect_err("another tree");
    assert!(matches!(refused, SequencerError::Refused(_)), "{refused}");

    // All of it made again, and signed by another key.
    let copy = whole.copy().await;
    copy.tamper("DELETE FROM audit_leaves; DELETE FROM audit_checkpoints; INSERT INTO audit_queue (entry_id) SELECT id FROM audit_entries").await;
    let mut forger = copy.sequencer(2, 10, Vec::new()).await;
    while forger.step().await.expect("steps").is_some() {}
    assert_eq!(copy.fault(Vec::new()).await, "checkpoint of 10 entries");
    let refused = copy.sequencer(1, 10, Vec::new()).await.check().await.expect_err("another's signature");
    assert!(refused.to_string().contains("no signature by kage.test/audit"), "{refused}");
}

#[tokio::test]
async fn what_is_kept_outside_finds_a_cut_and_an_old_copy() {
    let whole = Trail::grown(40, 10).await;
    let (at_30, at_40) = (whole.checkpoint(30).await, whole.checkpoint(40).await);
    let cut = "DELETE FROM audit_entries WHERE id IN (SELECT entry_id FROM audit_leaves WHERE index >= 30);
        DELETE FROM audit_leaves WHERE index >= 30; DELETE FROM audit_checkpoints WHERE size > 30";
    let copy = whole.copy().await;
    copy.tamper(cut).await;
    // In itself it is whole: nothing in the database can tell.
    assert_eq!(copy.verify(vec![at_30.clone()]).await.expect("an older state").size, 30);
    assert_eq!(copy.fault(vec![at_40.clone()]).await, "entry 30");
    let refused = copy.sequencer(1, 10, vec![at_40.clone()]).await.check().await.expect_err("cut");
    assert!(
        refused.to_string().contains("a checkpoint of 40 entries is known, and the database has 30"),
        "{refused}"
    );
    // It went on from the old copy, with the log's own key, past what was there.
    copy.log(100..120).await;
    let mut other = copy.sequencer(1, 10, Vec::new()).await;
    while other.step().await.expect("steps").is_some() {}
    assert_eq!(copy.verify(Vec::new()).await.expect("in itself").size, 50);
    assert_eq!(copy.fault(vec![at_30.clone(), at_40.clone()]).await, "entries 30 to 39");
    let refused = copy.sequencer(1, 10, vec![at_40]).await.check().await.expect_err("another past");
    assert!(refused.to_string().contains("first 40 entries are not those"), "{refused}");
    // One that runs meanwhile sees it at its next step, before it signs.
    let copy = whole.copy().await;
    let mut running = copy.sequencer(1, 10, Vec::new()).await;
    copy.log(200..201).await;
    running.step().await.expect("steps").expect("one entry");
    copy.tamper(cut).await;
    copy.log(201..202).await;
    let refused = running.step().await.expect_err("cut below it");
    assert!(matches!(refused, SequencerError::Refused(_)), "{refused}");
    let signed: i64 = sqlx::query_scalar("SELECT max(size) FROM audit_checkpoints")
        .fetch_one(copy.pool())
        .await
        .expect("reads");
    assert_eq!(signed, 30, "nothing was signed");
}

#[tokio::test]
async fn an_entry_that_is_kept_from_the_tree_is_found() {
    let trail = Trail::grown(5, 10).await;
    trail
        .tamper(
            "INSERT INTO audit_entries (id, actor_kind, action, object, outcome, details)
        VALUES ('00000000-0000-0000-0000-000000000001', 'host', 'x', 'x', 'done', '{}')",
        )
        .await;
    assert_eq!(trail.fault(Vec::new()).await, "entry 00000000-0000-0000-0000-000000000001");
    let refused = trail.sequencer(1, 10, Vec::new()).await.check().await.expect_err("a stray");
    assert!(refused.to_string().contains("neither has a place nor waits"), "{refused}");
    // One that waits, and is removed.
    let trail = Trail::grown(5, 10).await;
    trail.log(5..6).await;
    assert_eq!(trail.verify(Vec::new()).await.expect("it waits").waiting, 1);
    trail.tamper("DELETE FROM audit_entries WHERE object = 'task:5'").await;
    let refused = trail.sequencer(1, 10, Vec::new()).await.step().await.expect_err("gone");
    assert!(refused.to_string().contains("was removed before it had a place"), "{refused}");
}

#[tokio::test]
async fn stored_hashes_above_the_leaves_are_held_too() {
    let trail = Trail::grown(600, 1000).await;
    assert_eq!(trail.verify(Vec::new()).await.expect("holds").size, 600);
    for statement in [
        "UPDATE audit_nodes SET hash = sha256('x') WHERE index = 1",
        "DELETE FROM audit_nodes WHERE index = 0",
    ] {
        let copy = trail.copy().await;
        copy.tamper(statement).await;
        assert_eq!(copy.fault(Vec::new()).await, "entries 0 to 599");
        let refused = copy.sequencer(1, 10, Vec::new()).await.check().await.expect_err("the edge is broken");
        assert!(matches!(refused, SequencerError::Refused(_)), "{refused}");
    }
}

#[tokio::test]
async fn what_is_known_outlasts_a_look_that_broke_off() {
    let trail = Trail::grown(40, 10).await;
    let at_30 = trail.checkpoint(30).await;
    let mut sequencer = trail.sequencer(1, 10, vec![at_30]).await;
    sequencer.check().await.expect("is whole");
    // The database goes away while the tree is held against what is known.
    trail.tamper("ALTER TABLE audit_leaves RENAME COLUMN hash TO away").await;
    sequencer.check().await.expect_err("there is nothing to read");
    trail.tamper("ALTER TABLE audit_leaves RENAME COLUMN away TO hash").await;
    trail
        .tamper(
            "DELETE FROM audit_entries WHERE id IN (SELECT entry_id FROM audit_leaves WHERE index >= 20);
             DELETE FROM audit_leaves WHERE index >= 20; DELETE FROM audit_checkpoints WHERE size > 20",
        )
        .await;
    let refused = sequencer.check().await.expect_err("cut");
    assert!(
        refused.to_string().contains("a checkpoint of 30 entries is known, and the database has 20"),
        "{refused}"
    );
}
