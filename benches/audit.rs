//! How fast entries get their place, and what that costs who writes them. On the cluster that DATABASE_URL names.
//!
//! `cargo bench --bench audit`: entries a second of a full queue, and the time of a request's write (a transaction with one
//! entry) with a sequencer beside it and without one. The two take turns, so that what else the machine does meets both.

use std::time::{Duration, Instant};

use kage::config::database::DatabaseConfig;
use kage::db::{self, Zone};
use kage::domain::audit::{Actor, Entry, Outcome};
use kage::sequencer::batch::Sequencer;
use kage::sequencer::keep::Keys;
use kage::trail::note::{Kind, SignerKey};
use secrecy::{SecretBox, SecretString};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

const ENTRIES: u64 = 50_000;
const BATCH: u64 = 10_000;
const PAIRS: usize = 30;
/// Long enough for two steps of the sequencer.
const TURN: Duration = Duration::from_millis(1200);

fn entry(number: u64) -> Entry {
    let details = json!({ "n": number, "repository": "demo", "revision": "0123456789abcdef0123456789abcdef01234567",
        "limits": { "memory_bytes": 2_147_483_648_u64, "pids": 256 }, "assignments": ["claude-code", "codex"] });
    Entry {
        actor: Actor::Host,
        action: "task.submit",
        object: format!("task:{number}"),
        outcome: Outcome::Done,
        details,
    }
}

async fn pool(url: &str, zone: Zone) -> PgPool {
    let url = Some(SecretString::from(url.to_owned()));
    let config = DatabaseConfig { url, password: None, connections: 4, acquire_secs: 60, start_secs: 60 };
    db::connect(&config, zone).await.expect("a pool")
}

async fn sequencer(url: &str) -> Sequencer {
    let key = SignerKey::new("bench/audit", Kind::Log, &SecretBox::new(Box::new([1; 32]))).expect("a key");
    Sequencer::new(pool(url, Zone::Sequencer).await, Keys::new(key, Vec::new()), BATCH, Vec::new())
}

async fn write(pool: &PgPool, number: u64) {
    let mut transaction = pool.begin().await.expect("begins");
    db::audit::append(&mut transaction, &entry(number)).await.expect("appends");
    transaction.commit().await.expect("commits");
}

/// The times of one turn's writes, median and 95th percentile, in seconds.
async fn turn(pool: &PgPool) -> [f64; 2] {
    let mut times = Vec::new();
    let turn = Instant::now();
    while turn.elapsed() < TURN {
        let begun = Instant::now();
        write(pool, times.len() as u64).await;
        times.push(begun.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    [times[times.len() / 2], times[times.len() * 95 / 100]]
}

/// Quartiles.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let cluster =
        std::env::var("DATABASE_URL").expect("DATABASE_URL: scripts/cluster start FOLDER prints it");
    let name = format!("kage_bench_{}", std::process::id());
    let mut owner = PgConnection::connect(&cluster).await.expect("a cluster");
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut owner)
        .await
        .expect("a database");
    let mut url = url::Url::parse(&cluster).expect("a URL");
    url.set_path(&name);
    let url = url.to_string();
    let writer = pool(&url, Zone::Owner).await;
    db::migrate(&writer).await.expect("migrates");

    let mut transaction = writer.begin().await.expect("begins");
    for number in 0..ENTRIES {
        db::audit::append(&mut transaction, &entry(number)).await.expect("appends");
    }
    transaction.commit().await.expect("commits");
    let mut this = sequencer(&url).await;
    let begun = Instant::now();
    let mut taken = 0;
    while let Some(step) = this.step().await.expect("steps") {
        taken += step.entries;
    }
    assert_eq!(taken as u64, ENTRIES);
    let rate = ENTRIES as f64 / begun.elapsed().as_secs_f64();
    println!("sequenced: {ENTRIES} entries, {rate:.0} a second");

    let mut turns = Vec::with_capacity(PAIRS);
    for _ in 0..PAIRS {
        let alone = turn(&writer).await;
        let stop = CancellationToken::new();
        let (stopped, mut this) = (stop.clone(), sequencer(&url).await);
        let running = tokio::spawn(async move {
            // As the role does it: a step, then its pause.
            while !stopped.is_cancelled() {
                this.step().await.expect("steps");
                stopped.run_until_cancelled(tokio::time::sleep(Duration::from_millis(500))).await;
            }
            while this.step().await.expect("steps").is_some() {}
        });
        let beside = turn(&writer).await;
        stop.cancel();
        running.await.expect("no panic");
        turns.push((alone, beside));
    }
    for (index, name) in ["median", "95th percentile"].into_iter().enumerate() {
        let [_, alone, _] = quartiles(turns.iter().map(|(alone, _)| alone[index] * 1e3).collect());
        let [_, beside, _] = quartiles(turns.iter().map(|(_, beside)| beside[index] * 1e3).collect());
        let [low, ratio, high] =
            quartiles(turns.iter().map(|(alone, beside)| beside[index] / alone[index]).collect());
        println!(
            "a write, {name}: {alone:.2} ms alone, {beside:.2} ms beside the sequencer, ratio {ratio:.2} \
             (quartiles {low:.2} to {high:.2} of {PAIRS} pairs)"
        );
    }
    writer.close().await;
    let drop = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
    sqlx::raw_sql(drop).execute(&mut owner).await.expect("drops");
}
