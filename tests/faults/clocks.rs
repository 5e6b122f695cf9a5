//! Clocks that are wrong: what counts is the database's alone.

use crate::faketime;
use crate::support::eventually;
use crate::support::sse::output;
use crate::support::tasks::{shell, string};
use crate::world::apart;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_runs_out_by_a_runners_own_clock() {
    let (mut kage, roles) = apart(&[("KAGE_RUNNER_LEASE_SECS", "5"), ("KAGE_RUNNER_CONCURRENCY", "2")]).await;
    let (own, settings) =
        (kage.folder.join("elsewhere").display().to_string(), faketime::settings(3 * 3_600));
    assert!(!settings.is_empty(), "this test needs what `scripts/host faketime` installs");
    let mut settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.push(("KAGE_DATA_DIR", &own));
    let ahead = kage.start_with("runner", &settings).await;
    // Longer than a lease, with both at work.
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(kage.submit(&shell("echo once; sleep 8; echo 1 > result")).await);
    }
    for task in &tasks {
        let ended = kage.ended(string(&task["id"])).await;
        assert_eq!(
            (&ended["status"], &ended["runs"][0]["attempt"]),
            (&"completed".into(), &1.into()),
            "{ended}"
        );
        assert_eq!(output(&kage.events(string(&task["id"]), "").await, "shell", "stdout"), b"once\n");
    }
    let shares: Vec<i64> = sqlx::query_scalar("SELECT count(*) FROM attempts GROUP BY runner_id")
        .fetch_all(kage.pool())
        .await
        .expect("selects");
    assert_eq!((shares.len(), shares.iter().sum::<i64>()), (2, 4), "{shares:?}");
    // Its clock was another one, or this proves nothing.
    let today = chrono::Utc::now().timestamp();
    let log = kage.process(ahead).log();
    let mut said = log
        .lines()
        .filter_map(|line| line.split_once("\"timestamp\":\"")?.1.get(..20)?.get(..19).map(str::to_owned));
    let latest = said.next_back().expect("it logs");
    let latest = chrono::NaiveDateTime::parse_from_str(&latest, "%Y-%m-%dT%H:%M:%S").expect("a date");
    assert!(latest.and_utc().timestamp() > today + 3_600, "{latest}");
    kage.process(roles.runner).assert_alive();
}

/// What ended a moment ago is not a year old, whatever the date of who lets go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_ages_by_retentions_own_clock() {
    let (mut kage, _) = apart(&[]).await;
    let task = kage.run(&shell("echo once; echo 1 > result")).await;
    let id = string(&task["id"]);
    let fake = faketime::settings(800 * 86_400);
    assert!(!fake.is_empty(), "this test needs what `scripts/host faketime` installs");
    let mut settings: Vec<(&str, &str)> = fake.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.extend([
        ("KAGE_RETENTION_LOG_DAYS", "365"),
        ("KAGE_RETENTION_EVENTS_DAYS", "365"),
        // By size something goes, so that it is known to have looked; results come last.
        ("KAGE_RETENTION_RESULTS_BYTES", "1"),
        ("KAGE_RETENTION_POLL_SECS", "1"),
    ]);
    kage.spawn_with("retention", &settings);
    let gone = eventually("the result is let go", async || {
        let gone = kage.task(id).await["let_go"].clone();
        gone.is_array().then_some(gone)
    })
    .await;
    assert_eq!(
        (gone[0]["what"].clone(), gone.as_array().map(Vec::len)),
        ("results".into(), Some(1)),
        "{gone}"
    );
    assert_eq!(output(&kage.events(id, "").await, "shell", "stdout"), b"once\n");
}

/// A run is no older than it is for a runner that was started anew with another date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_keeps_its_time_when_its_runner_comes_back_with_another_date() {
    let (mut kage, roles) = apart(&[]).await;
    let task = kage.submit(&shell("echo begun; sleep 12; echo 1 > result")).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    kage.process(roles.runner).kill_9();
    let fake = faketime::settings(2 * 3_600);
    let settings: Vec<(&str, &str)> = fake.iter().map(|(name, value)| (*name, value.as_str())).collect();
    kage.start_with("runner", &settings).await;
    let run = kage.ended(id).await["runs"][0].clone();
    assert_eq!((&run["state"], &run["attempt"]), (&"succeeded".into(), &1.into()), "{run}");
}
