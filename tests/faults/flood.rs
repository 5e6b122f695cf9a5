//! All roles of a world are flooded at once, and none of them grows: what goes through is not what stays.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use futures::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::backpressure::{field, forget_peak};
use crate::keeper::BPF;
use crate::support::receiver::{Receiver, Reply};
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually, leftovers};
use crate::watcher::Watcher;
use crate::{flood_model, flood_rows};

const MIB: u64 = 1 << 20;
/// Of one run's output.
const OUTPUT: u64 = 6 * MIB;
/// Clients of one task that do not read.
const DEAF: usize = 20;

/// A role, what compose.yaml gives it in MiB with the settings that it has here, and what the second half of a flood may need
/// beyond the first: a heap that is cut up otherwise, and no part of what comes through.
const ROLES: [(&str, u64, u64); 7] = [
    ("api", 512, 12),
    ("runner", 4096, 20),
    ("keeper", 256, 4),
    ("gateway", 1024, 16),
    ("sequencer", 512, 24),
    ("notifier", 256, 6),
    ("retention", 128, 4),
];

struct World {
    kage: TestKage,
    pids: BTreeMap<&'static str, u32>,
    /// Of three runs that go on.
    sockets: Vec<PathBuf>,
    asker: String,
    _provider: flood_model::Provider,
    _receivers: [Receiver; 3],
}

impl World {
    async fn new() -> Self {
        let mut kage = TestKage::new().await;
        let provider = flood_model::Provider::start().await;
        provider.of(&mut kage);
        let receivers = [
            Receiver::start([]).await,
            Receiver::start(vec![Reply::Silence; 100_000]).await,
            Receiver::start(vec![Reply::Endless; 100_000]).await,
        ];
        let hooks = ["good", "silent", "endless"].iter().zip(&receivers).map(|(name, receiver)| {
            format!(
                "[[hook]]\nname = \"{name}\"\nurl = \"{}\"\nsecrets = [\"env:HOOK_SECRET\"]\n",
                receiver.url()
            )
        });
        let file = kage.folder.join("webhooks.toml");
        std::fs::write(&file, hooks.collect::<String>()).expect("writes");
        for (name, value) in [
            ("KAGE_WEBHOOKS_FILE", file.to_str().expect("UTF-8")),
            ("HOOK_SECRET", "whsec_a2FnZSBrYWdlIGthZ2Uga2FnZSBrYWdlIGthZ2U="),
            ("KAGE_WEBHOOKS_WITHIN_SECS", "2"),
            ("KAGE_RUNNER_CONCURRENCY", "5"),
            ("KAGE_LIMIT_OUTPUT_BYTES", &OUTPUT.to_string()),
            ("KAGE_GATEWAY_CALLS", "32"),
            ("KAGE_GATEWAY_REQUESTS_PER_MINUTE", "100000"),
            ("KAGE_GATEWAY_MEMORY_BYTES", &(128 * MIB).to_string()),
            ("KAGE_GATEWAY_BODY_BYTES", &(8 * MIB).to_string()),
            ("KAGE_RETENTION_LOG_DAYS", "7"),
            ("KAGE_RETENTION_EVENTS_DAYS", "7"),
            ("KAGE_RETENTION_POLL_SECS", "1"),
        ] {
            kage.set(name, value);
        }
        let mut pids = BTreeMap::new();
        for role in ["api", "runner", "gateway", "sequencer", "notifier", "retention"] {
            let index = kage.spawn_with(role, &[]);
            pids.insert(role, kage.process(index).pid());
            if ["api", "runner"].contains(&role) {
                kage.ready(index).await;
            }
        }
        let keeper = leftovers::keeper(&kage.data).expect("it came with the runner");
        pids.insert("keeper", keeper.as_raw_nonzero().get().unsigned_abs());
        kage.demo().await;
        let mut task = shell("while echo .; do sleep 5; done");
        task["cli_assignments"] =
            json!([{ "cli_name": "asker" }, { "cli_name": "asker" }, { "cli_name": "asker" }]);
        let asker = string(&kage.submit(&task).await["id"]).to_owned();
        let mut sockets = Vec::new();
        for (number, name) in ["asker", "asker-2", "asker-3"].into_iter().enumerate() {
            kage.reaches(&asker, number, "running").await;
            let statement = "SELECT id FROM runs WHERE task_id = $1::uuid AND name = $2";
            let run = sqlx::query_scalar(statement).bind(&asker).bind(name).fetch_one(kage.pool()).await;
            let run: Uuid = run.expect("a run");
            sockets.push(kage.data.join(format!("model/{run}/model.sock")));
        }
        Self { kage, pids, sockets, asker, _provider: provider, _receivers: receivers }
    }

    /// Everything at once; the peak of each role, in bytes.
    async fn round(&self, number: u32) -> BTreeMap<&'static str, u64> {
        for pid in self.pids.values() {
            forget_peak(*pid);
        }
        let pool = self.kage.pool();
        tokio::join!(
            timed("output", self.output()),
            timed("calls", flood_model::calls(&self.sockets)),
            timed("entries", flood_rows::entries(pool)),
            timed("events", flood_rows::events(pool)),
            timed("due", flood_rows::due(pool, number)),
        );
        self.pids.iter().map(|(role, pid)| (*role, field(*pid, "VmHWM"))).collect()
    }

    /// Two runs: refused calls and then output without end; a large result. Who reads it, and many who do not.
    async fn output(&self) {
        let noisy = shell(&format!("perl -e 'for (1 .. 10000) {{ {BPF} }}'; yes 'as fast as it can'"));
        let large = shell("base64 -w 200 /dev/urandom | head -c 4000000 > result; find / 2>&1; echo done");
        let (noisy, large) = (self.kage.submit(&noisy).await, self.kage.submit(&large).await);
        let (noisy, large) = (string(&noisy["id"]), string(&large["id"]));
        let watcher = Watcher::follow(&self.kage, noisy);
        let stream = format!("/api/v1/tasks/{noisy}/progress");
        let deaf = join_all((0..DEAF).map(|_| self.deaf(&stream))).await;
        let seen = watcher.end().await;
        let ended = self.kage.ended(noisy).await;
        assert_eq!(ended["runs"][0]["state"], "output_limit", "{ended}");
        let bytes: usize =
            seen.events.iter().filter(|event| event.name == "log").map(|event| event.bytes().len()).sum();
        assert_eq!(bytes as u64, OUTPUT, "all of it comes");
        let log = format!("/api/v1/tasks/{noisy}/runs/shell/log");
        let logs = join_all((0..DEAF).map(|_| self.deaf(&log))).await;
        assert_eq!(self.kage.get(&log).await.body.len() as u64, OUTPUT);
        let ended = self.kage.ended(large).await;
        assert_eq!(ended["status"], "completed", "{ended}");
        drop((deaf, logs));
    }

    /// A client that asks and does not read on.
    async fn deaf(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.kage.address()).await.expect("connects");
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {}\r\n\r\n", self.kage.key);
        stream.write_all(head.as_bytes()).await.expect("is taken");
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    }
}

async fn timed(what: &str, flood: impl Future<Output = ()>) {
    let began = Instant::now();
    flood.await;
    println!("  {what}: {} s", began.elapsed().as_secs());
}

/// The most of some rounds.
fn most(rounds: &[BTreeMap<&'static str, u64>], role: &str) -> u64 {
    rounds.iter().map(|round| round[role]).max().expect("some rounds")
}

/// `KAGE_TEST_FLOOD_ROUNDS=40` is the long form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_grows_under_flood() {
    let rounds = std::env::var("KAGE_TEST_FLOOD_ROUNDS").map_or(2, |text| text.parse().expect("a number"));
    let world = World::new().await;
    let idle: BTreeMap<&str, u64> =
        world.pids.iter().map(|(role, pid)| (*role, field(*pid, "VmRSS"))).collect();
    let mut peaks = Vec::new();
    for number in 0..rounds {
        let began = Instant::now();
        let round = world.round(number).await;
        let told: Vec<String> = round.iter().map(|(role, peak)| format!("{role} {}", peak / MIB)).collect();
        println!("round {number} in {} s, peaks in MiB: {}", began.elapsed().as_secs(), told.join(", "));
        peaks.push(round);
    }
    let (first, second) = peaks.split_at(peaks.len() / 2);
    println!(
        "{:<10}{:>8}{:>8}{:>8}  MiB when idle, and at the most in each half",
        "", "idle", "first", "second"
    );
    let mut grown = Vec::new();
    for (role, most_ever, more) in ROLES {
        let halves = (most(first, role), most(second, role));
        println!("{role:<10}{:>8}{:>8}{:>8}", idle[role] / MIB, halves.0 / MIB, halves.1 / MIB);
        if halves.1 > halves.0 + more * MIB || halves.0.max(halves.1) > most_ever * MIB {
            grown.push((role, halves));
        }
    }
    assert!(grown.is_empty(), "{grown:?}");
    world.kage.delete(&format!("/api/v1/tasks/{}", world.asker)).await;
    world.kage.ended(&world.asker).await;
    eventually("the gateway has closed them", async || {
        leftovers::run_folders(&world.kage.folder).is_empty().then_some(())
    })
    .await;
}
