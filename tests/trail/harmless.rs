//! Crashes, races, slow writers and strange entries: the log is gapless and holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kage::db::trail::Filter;
use kage::db::trail_export::{Export, Form};
use kage::db::{self, Zone};
use kage::domain::audit::Actor;
use kage::sequencer::batch::Sequencer;
use kage::trail::{checkpoint, export};
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::support::{Trail, entry, public};

async fn drain(sequencer: &mut Sequencer) -> usize {
    let mut taken = 0;
    loop {
        match sequencer.step().await {
            Ok(Some(step)) => taken += step.entries,
            Ok(None) => return taken,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

/// Probe 80: 50 writers of 200 entries, two sequencers at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_writers_and_two_sequencers_leave_no_gap() {
    const WRITERS: u64 = 50;
    const EACH: u64 = 200;
    let trail = Trail::new().await;
    let pool = trail.as_zone(Zone::Runner, 50).await;
    let writers = (0..WRITERS).map(|writer| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for number in 0..EACH {
                let mut entry = entry(number, json!({ "writer": writer, "n": number }));
                entry.actor = Actor::Runner(writer.to_string());
                let mut transaction = pool.begin().await.expect("begins");
                db::audit::append(&mut transaction, &entry).await.expect("appends");
                // Every tenth is undone: it must not be in the log.
                if number % 10 == 9 { transaction.rollback().await } else { transaction.commit().await }
                    .expect("ends");
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let done = Arc::new(AtomicBool::new(false));
    let mut sequencers = Vec::new();
    for _ in 0..2 {
        let (mut sequencer, done) = (trail.sequencer(1, 300, Vec::new()).await, done.clone());
        sequencers.push(tokio::spawn(async move {
            let mut taken = 0;
            while !done.load(Ordering::SeqCst) {
                taken += drain(&mut sequencer).await;
                tokio::task::yield_now().await;
            }
            taken + drain(&mut sequencer).await
        }));
    }
    for writer in writers {
        writer.await.expect("no panic");
    }
    done.store(true, Ordering::SeqCst);
    let mut taken = 0;
    for sequencer in sequencers {
        taken += sequencer.await.expect("no panic");
    }
    assert_eq!(taken as u64, WRITERS * EACH / 10 * 9);
    let found = trail.verify(Vec::new()).await.expect("holds");
    assert_eq!((found.size, found.waiting), (WRITERS * EACH / 10 * 9, 0));
    pool.close().await;
}

#[tokio::test]
async fn a_slow_transaction_is_taken_later_and_never_lost() {
    let trail = Trail::new().await;
    let mut slow = trail.pool().begin().await.expect("begins");
    db::audit::append(&mut slow, &entry(0, json!({ "slow": true }))).await.expect("appends");
    trail.log(1..4).await;
    let mut sequencer = trail.sequencer(1, 10, Vec::new()).await;
    assert_eq!(drain(&mut sequencer).await, 3);
    slow.commit().await.expect("commits");
    assert_eq!(drain(&mut sequencer).await, 1);
    let last: String = sqlx::query_scalar(
        "SELECT object FROM audit_entries JOIN audit_leaves ON entry_id = id ORDER BY index DESC LIMIT 1",
    )
    .fetch_one(trail.pool())
    .await
    .expect("reads");
    assert_eq!(last, "task:0");
    assert_eq!(trail.verify(Vec::new()).await.expect("holds").size, 4);
}

/// The transaction dies before, after and between its statements, and at its commit.
#[tokio::test]
async fn a_crash_between_any_two_steps_is_harmless() {
    let trail = Trail::grown(300, 100).await;
    let mut running = trail.sequencer(1, 1000, Vec::new()).await;
    let mut number = 300;
    for table in ["audit_queue", "audit_leaves", "audit_nodes", "audit_checkpoints"] {
        for at in ["BEFORE", "AFTER"] {
            // So many that each step stores a hash above the leaves.
            trail.log(number..number + 256).await;
            number += 256;
            let act = if table == "audit_queue" { "DELETE" } else { "INSERT" };
            let when = if at == "AFTER" { "DEFERRABLE INITIALLY DEFERRED" } else { "" };
            let kind = if at == "AFTER" { "CONSTRAINT TRIGGER" } else { "TRIGGER" };
            let die = format!(
                "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
                   'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END' SECURITY DEFINER;
                 CREATE {kind} die {at} {act} ON {table} {when} FOR EACH ROW EXECUTE FUNCTION die()"
            );
            sqlx::raw_sql(AssertSqlSafe(die)).execute(trail.pool()).await.expect("a trap");
            let error = running.step().await.expect_err("its backend died");
            assert!(error.is_transient(), "{at} {table}: {error}");
            let undo = format!("DROP TRIGGER die ON {table}; DROP FUNCTION die()");
            sqlx::raw_sql(AssertSqlSafe(undo)).execute(trail.pool()).await.expect("undone");
            assert_eq!(drain(&mut running).await, 256, "{at} {table}");
            assert_eq!(trail.verify(Vec::new()).await.expect("holds").size, number);
        }
    }
    // The commit was made and its answer lost: the next step begins from what the database has. So does a new process.
    let mut stale = trail.sequencer(1, 1000, vec![trail.checkpoint(number).await]).await;
    stale.check().await.expect("holds");
    for _ in 0..2 {
        trail.log(number..number + 10).await;
        number += 10;
        assert_eq!(drain(&mut running).await, 10);
        trail.log(number..number + 10).await;
        number += 10;
        assert_eq!(drain(&mut stale).await, 10);
    }
    assert_eq!(trail.verify(Vec::new()).await.expect("holds").size, number);
}

#[tokio::test]
async fn what_a_hostile_writer_stores_neither_stops_nor_confuses_the_log() {
    let trail = Trail::new().await;
    let pool = trail.as_zone(Zone::Runner, 2).await;
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let many = format!("\"{}\"", "x".repeat(1 << 20));
    for details in [
        deep.as_str(),
        &many,
        "1e400",
        "null",
        "\"\\u001f\u{ffff}\"",
        "9007199254740993",
        "{\"\": -0.0}",
        "[1e-999]",
    ] {
        sqlx::query("INSERT INTO audit_entries (actor_kind, action, object, outcome, details) VALUES ('runner', '', '', 'done', $1::jsonb)")
            .bind(details)
            .execute(&pool)
            .await
            .expect("the runner may");
    }
    let mut sequencer = trail.sequencer(1, 100, Vec::new()).await;
    assert_eq!(drain(&mut sequencer).await, 8);
    assert_eq!(trail.verify(Vec::new()).await.expect("holds").size, 8);
    // Two numbers that no double tells apart.
    trail
        .tamper("UPDATE audit_entries SET details = '9007199254740992' WHERE details = '9007199254740993'")
        .await;
    assert_eq!(trail.fault(Vec::new()).await, "entry 5");
}

#[tokio::test]
async fn an_export_is_verified_by_the_public_key_alone() {
    let trail = Trail::grown(300, 70).await;
    let mut connection = trail.pool().acquire().await.expect("a connection");
    let note = db::trail::note(&mut connection, None).await.expect("reads").expect("is there");
    let verify = |bytes: &[u8]| {
        let mut reader = export::Reader::new(public(), Vec::new());
        bytes
            .strip_suffix(b"\n")
            .expect("ends")
            .split(|byte| *byte == b'\n')
            .try_for_each(|line| reader.line(line))?;
        reader.end()
    };
    let mut all = async |filter: Filter, form: Form| {
        let checkpoint = checkpoint::open_by_any(&note, &public()).expect("opens");
        let mut export = Export::new(checkpoint, note.clone(), filter, form);
        let mut bytes = Vec::new();
        while let Some(lines) = export.page(&mut connection).await.expect("reads") {
            bytes.extend(lines);
        }
        bytes
    };
    let found = verify(&all(Filter::default(), Form::Whole).await).expect("holds");
    assert_eq!((found.entries, found.whole, found.checkpoint.size), (300, true, 300));
    let one = Filter { object: Some("task:257".to_owned()), ..Filter::default() };
    let part = all(one.clone(), Form::Part).await;
    assert_eq!(verify(&part).expect("holds").entries, 1);
    let changed = String::from_utf8(part).expect("text").replace("\"n\":257", "\"n\":258");
    assert!(verify(changed.as_bytes()).is_err());
    let events = all(one, Form::Ocsf).await;
    let event: serde_json::Value = serde_json::from_slice(&events).expect("JSON");
    assert_eq!((&event["class_uid"], &event["unmapped"]["index"]), (&json!(6003), &json!(257)));
}
