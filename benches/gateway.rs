//! What the gateway adds to a call: to the time until its first byte, to the time of a long stream, and how much
//! memory many streams take. The peer is the same client that talks to the same scripted model server without it.
//!
//! `cargo bench --bench gateway`. Needs root and PostgreSQL's programs. `BENCH_ROUNDS` sets the pairs (300).

#[path = "support/figures.rs"]
mod figures;
#[path = "support/memory.rs"]
mod memory;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kage::db;
use kage::db::grants::Wish;
use kage::db::private::Cluster;
use kage_model_server::script::{Script, Turn};
use kage_model_server::server::{Listen, Options, Server};
use reqwest::Client;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::figures::Pairs;

const STREAMS: usize = 200;
/// Streams of one run.
const STREAMS_A_RUN: usize = 8;
/// A long answer, as a model gives one: each piece of text an event, each event a write of its own.
const LONG_TEXT: usize = 1 << 20;
/// One that comes as fast as memory can be copied, which no model does.
const FLOOD_BYTES: usize = 32 << 20;
const LONG_ROUNDS: usize = 15;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(bench())
}

async fn bench() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut world = World::start().await?;
    let measured = measure(&world).await;
    world.end().await?;
    measured
}

async fn measure(world: &World) -> Result<()> {
    let (run, direct) = (world.run().await?, Client::builder().no_proxy().build()?);
    let through = world.client(run)?;
    let straight = world.server.clone();

    let mut first = Pairs::new("time to the first byte, short answer", "ms", 0.0);
    let mut added = Vec::new();
    let short = request(&script(&json!([{ "text": "one line of text" }])));
    for round in 0..figures::rounds(300) + 20 {
        let ours = first_byte(&through, "http://gateway", &short).await?;
        let peer = first_byte(&direct, &straight, &short).await?;
        // The first fill caches and pools, on both sides.
        if round >= 20 {
            first.push(millis(ours), millis(peer));
            added.push(millis(ours) - millis(peer));
        }
    }
    let mut long = Pairs::new("a stream of 1 MB of text, event by event", "ms", 0.8);
    let mut flood = Pairs::new("a flood of 32 MB", "ms", 0.0);
    // The server's own script.
    let events = request("write at length");
    let flooded = request(&script(&json!([{ "text": "x", "fault": format!("huge:bytes={FLOOD_BYTES}") }])));
    for (pairs, body) in [(&mut long, &events), (&mut flood, &flooded)] {
        for _ in 0..LONG_ROUNDS {
            let ours = whole(&through, "http://gateway", body).await?;
            let peer = whole(&direct, &straight, body).await?;
            pairs.push(millis(ours), millis(peer));
        }
    }
    Pairs::header();
    first.print();
    long.print();
    flood.print();
    added.sort_by(f64::total_cmp);
    let at = |percent: usize| added[(added.len() - 1) * percent / 100];
    println!(
        "added to the first byte: {:.2} ms at the median, {:.2} ms at the 95th percentile (goal: <= 5 at the median)",
        at(50),
        at(95)
    );
    many(world).await
}

/// Many streams at once, slow and steady; the gateway's memory before, while and after.
async fn many(world: &World) -> Result<()> {
    let mut clients = Vec::new();
    for _ in 0..STREAMS / STREAMS_A_RUN {
        clients.push(world.client(world.run().await?)?);
    }
    let text = "word ".repeat(400);
    let body = request(&script(&json!([{ "text": text, "fault": "drip:bytes=256,ms=50" }])));
    let resident = || memory::field(world.gateway.id(), "VmRSS").map(memory::megabytes);
    let (before, began) = (resident()?, Instant::now());
    let streams = clients.iter().cycle().take(STREAMS).map(|client| whole(client, "http://gateway", &body));
    let streams = try_join_all(streams);
    tokio::pin!(streams);
    let mut while_running = Vec::new();
    let times = loop {
        tokio::select! {
            ended = &mut streams => break ended?,
            () = tokio::time::sleep(Duration::from_millis(500)) => while_running.push(resident()?),
        }
    };
    let (low, high) =
        while_running.iter().fold((f64::MAX, 0.0_f64), |(low, high), mb| (low.min(*mb), high.max(*mb)));
    println!(
        "{STREAMS} streams at once, {:.1} s (the slowest {:.1} s): gateway {before:.1} MB before, {low:.1} to {high:.1} MB \
         while they ran, {:.1} MB after",
        began.elapsed().as_secs_f64(),
        times.iter().max().map_or(0.0, Duration::as_secs_f64),
        resident()?
    );
    let ok: i64 = sqlx::query_scalar("SELECT count(*) FROM model_calls WHERE outcome = 'ok'")
        .fetch_one(&world.pool)
        .await?;
    let all: i64 = sqlx::query_scalar("SELECT count(*) FROM model_calls").fetch_one(&world.pool).await?;
    println!("calls in the books: {all}, of them ended well: {ok}");
    ensure!(ok == all, "some calls did not end well");
    Ok(())
}

async fn first_byte(client: &Client, base: &str, body: &Value) -> Result<Duration> {
    let began = Instant::now();
    let mut answer = client.post(format!("{base}/v1/messages")).json(body).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.status());
    answer.chunk().await?.context("an empty answer")?;
    let first = began.elapsed();
    while answer.chunk().await?.is_some() {}
    Ok(first)
}

async fn whole(client: &Client, base: &str, body: &Value) -> Result<Duration> {
    let began = Instant::now();
    let mut answer = client.post(format!("{base}/v1/messages")).json(body).send().await?;
    ensure!(answer.status().is_success(), "{}: {}", answer.status(), answer.text().await?);
    let mut last = bytes::Bytes::new();
    while let Some(chunk) = answer.chunk().await? {
        last = chunk;
    }
    let end = String::from_utf8_lossy(&last).into_owned();
    ensure!(end.contains("message_stop"), "it ends with {end}");
    Ok(began.elapsed())
}

fn request(prompt: &str) -> Value {
    json!({ "model": "m-1", "max_tokens": 1000, "stream": true, "messages": [{ "role": "user", "content": prompt }] })
}

fn script(turns: &Value) -> String {
    format!("KAGE-SCRIPT: {turns}")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A database, the scripted model server, and a gateway as a process of its own.
struct World {
    folder: PathBuf,
    pool: PgPool,
    /// The scripted server's URL.
    server: String,
    gateway: Child,
    cluster: Option<Cluster>,
    task: Uuid,
}

impl World {
    async fn start() -> Result<Self> {
        let parent = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let folder = tempfile::Builder::new().prefix("kage-bench-").tempdir_in(parent)?.keep();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(&folder, open)?;
        std::fs::create_dir(folder.join("model"))?;
        let cluster = Cluster::start(&folder).await.context("the database")?;
        let url = cluster.url().expose_secret().to_owned();
        let pool = PgPool::connect(&url).await?;
        db::migrate(&pool).await?;
        let at_length = Turn { text: Some("a word or two ".repeat(LONG_TEXT / 14)), ..Turn::default() };
        let options = Options::new(Script { turns: vec![at_length], repeat: false });
        let server = Server::bind(Listen::Tcp(([127, 0, 0, 1], 0).into()), options).await?;
        let base = format!("http://{}", server.address().context("a port")?);
        tokio::spawn(server.serve(std::future::pending()));
        let gateway = gateway(&folder, &url, &base)?;
        let task = Uuid::now_v7();
        sqlx::query(
            "INSERT INTO tasks (id, description, repository, assignments, max_retries, retry_delay, merge_strategy, submitted_by)
             VALUES ($1, '', '', '[]', 0, 1, 'auto', '')",
        )
        .bind(task)
        .execute(&pool)
        .await?;
        Ok(Self { folder, pool, server: base, gateway, cluster: Some(cluster), task })
    }

    /// A run with an open socket.
    async fn run(&self) -> Result<Uuid> {
        let run = Uuid::now_v7();
        sqlx::query(
            "INSERT INTO runs (id, task_id, name, position, cli_name, image_digest, manifest, context, timeout_secs,
                               allow_no_changes, state, attempt, lease_expires_at)
             VALUES ($1, $2, $1::text, 0, 'cli', '', '{}', '[]', 60, false, 'running', 1, now() + interval '1 hour')",
        )
        .bind(run)
        .bind(self.task)
        .execute(&self.pool)
        .await?;
        std::fs::create_dir(self.folder.join("model").join(run.to_string()))?;
        let wish = Wish {
            run,
            task: self.task,
            attempt: 1,
            cli_name: "cli",
            dialect: "anthropic",
            model_asked: None,
            model_default: "m-1",
            traceparent: None,
        };
        db::grants::want(&mut *self.pool.acquire().await?, &wish).await?;
        db::notify::send(&self.pool, db::notify::GRANTS, "").await?;
        let grant = db::grants::wait_row(&self.pool, run, Duration::from_secs(30)).await?;
        ensure!(grant.as_ref().is_some_and(|grant| grant.is_open()), "{grant:?}");
        Ok(run)
    }

    fn client(&self, run: Uuid) -> Result<Client> {
        let socket = self.folder.join("model").join(run.to_string()).join("model.sock");
        Ok(Client::builder().unix_socket(socket).no_proxy().build()?)
    }

    async fn end(&mut self) -> Result<()> {
        self.gateway.kill()?;
        self.gateway.wait()?;
        self.pool.close().await;
        if let Some(cluster) = self.cluster.take() {
            cluster.stop().await?;
        }
        Ok(std::fs::remove_dir_all(&self.folder)?)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.gateway.kill();
        let _ = self.gateway.wait();
    }
}

fn gateway(folder: &Path, url: &str, base: &str) -> Result<Child> {
    let providers = folder.join("providers.toml");
    std::fs::write(
        &providers,
        format!(
            r#"
            [[provider]]
            name = "scripted"
            dialect = "anthropic"
            base_url = "{base}"
            [[provider.model]]
            name = "m-*"
            input_usd_per_mtok = 1.0
            output_usd_per_mtok = 10.0
            as_of = "2026-01-01"
            "#
        ),
    )?;
    std::fs::write(folder.join("kage.toml"), "")?;
    let environment = BTreeMap::from([
        ("KAGE_CONFIG", folder.join("kage.toml").display().to_string()),
        ("KAGE_DATA_DIR", folder.display().to_string()),
        ("KAGE_DATABASE_URL", url.to_owned()),
        ("KAGE_GATEWAY_PROVIDERS", providers.display().to_string()),
        ("KAGE_GATEWAY_REQUESTS_PER_MINUTE", "1000000".to_owned()),
        ("KAGE_GATEWAY_ANSWER_BYTES", (1u64 << 30).to_string()),
        ("KAGE_LOG", "warn".to_owned()),
    ]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kage"));
    command.arg("gateway").env_clear().envs(environment).stdin(Stdio::null());
    Ok(command.spawn()?)
}
