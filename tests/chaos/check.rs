//! What must be so when a storm is over. Each of these gives what is wrong, and goes on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::driver::Followed;
use crate::support::git::git;
use crate::support::leftovers;
use crate::support::sse::Event;
use crate::work::{FILES, Job, RETRIES, Work};
use crate::world::World;

/// The sweep comes again after half a minute where something was left.
const SWEPT_WITHIN: Duration = Duration::from_secs(100);

/// One attempt, as the database has it.
#[derive(sqlx::FromRow)]
struct Attempt {
    number: i32,
    state: Option<String>,
    finished: bool,
}

/// One task: its end, its events, its output, its branch, its trail. The run's state, for the summary.
pub async fn task(
    world: &World,
    job: &Job,
    followed: &Followed,
    taken: bool,
    wrong: &mut Vec<String>,
) -> String {
    let task = world.kage.task(&followed.id).await;
    let run = &task["runs"][0];
    let mut say = |what: String| {
        wrong.push(format!("task {} ({:?}, {}): {what}", job.number, job.work, followed.id));
    };
    if let Err(why) = job.judge(run, taken) {
        say(why);
    }
    let state = run["state"].as_str().unwrap_or("none").to_owned();
    if state != job.work.end() {
        println!(
            "task {} ({:?}) ended as {state} in attempt {}: {}",
            job.number, job.work, run["attempt"], run["error"]
        );
    }
    if task["completed_at"].is_null() {
        say("is not over".to_owned());
    }
    let stored = world.kage.events(&followed.id, "").await;
    if stored != followed.seen.events {
        say("its client has seen other events than those that are stored".to_owned());
    }
    let attempts = attempts(world, run).await;
    for why in attempts_are_right(job, run, &attempts) {
        say(why);
    }
    match outputs(&stored) {
        Ok(outputs) => {
            for attempt in &attempts {
                let bytes = outputs.get(&i64::from(attempt.number)).map_or(&[][..], Vec::as_slice);
                let natural = attempt.state.as_deref() == Some(job.work.end());
                // A cancel can come before the first word, and so can a limit of time.
                let whole = natural && !matches!(job.work, Work::Cancelled | Work::TimesOut | Work::Silent);
                if let Err(why) = job.judge_output(i64::from(attempt.number), bytes, whole) {
                    say(why);
                }
            }
            if outputs
                .keys()
                .any(|number| !attempts.iter().any(|attempt| i64::from(attempt.number) == *number))
            {
                say("output of an attempt that is not known".to_owned());
            }
        }
        Err(why) => say(why),
    }
    if let Err(why) = branch(world, job, run, &state) {
        say(why);
    }
    for why in trail(world, &followed.id, run).await {
        say(why);
    }
    if job.work == Work::Asks {
        for attempt in &attempts {
            let words = format!("run {} attempt {}", followed.id, attempt.number);
            let calls = world
                .provider
                .seen()
                .iter()
                .filter(|(_, body)| body["messages"][0]["content"] == words)
                .count();
            if calls > 1 {
                say(format!(
                    "attempt {} asked its model {calls} times: it ran more than once",
                    attempt.number
                ));
            }
        }
    }
    state
}

async fn attempts(world: &World, run: &Value) -> Vec<Attempt> {
    let id: Uuid = run["id"].as_str().and_then(|id| id.parse().ok()).expect("a run has an id");
    let statement = "SELECT number, state, finished_at IS NOT NULL AS finished FROM attempts WHERE run_id = $1 ORDER BY number";
    sqlx::query_as(statement).bind(id).fetch_all(&world.pool).await.expect("reads")
}

fn attempts_are_right(job: &Job, run: &Value, attempts: &[Attempt]) -> Vec<String> {
    let mut wrong = Vec::new();
    let numbers: Vec<i32> = attempts.iter().map(|attempt| attempt.number).collect();
    if numbers != (1..=numbers.len() as i32).collect::<Vec<_>>() || run["attempt"] != numbers.len() {
        wrong.push(format!("attempts {numbers:?}, and the run says {}", run["attempt"]));
    }
    if numbers.len() as i64 > RETRIES + 1 {
        wrong.push(format!("{} attempts", numbers.len()));
    }
    for attempt in attempts {
        if !attempt.finished || attempt.state.is_none() {
            wrong.push(format!("attempt {} has no end", attempt.number));
        }
    }
    // Whoever succeeded was not tried again, and one that fails by itself is not either.
    for attempt in attempts.iter().rev().skip(1) {
        let ended = attempt.state.as_deref().unwrap_or("");
        let may = match ended {
            "lost" | "sandbox_error" | "idle_timeout" | "timed_out" => true,
            "failed" => matches!(job.work, Work::Retried | Work::Asks),
            _ => false,
        };
        if !may {
            wrong.push(format!("attempt {} ended as {ended}, and there was another", attempt.number));
        }
    }
    wrong
}

/// The standard output of each attempt, and that no attempt wrote after the next had begun to.
fn outputs(events: &[Event]) -> Result<BTreeMap<i64, Vec<u8>>, String> {
    let mut outputs = BTreeMap::<i64, Vec<u8>>::new();
    let mut latest = 0;
    for event in events.iter().filter(|event| event.name == "log") {
        let attempt = event.data["attempt"].as_i64().unwrap_or(0);
        if attempt < latest {
            return Err(format!("attempt {attempt} wrote after attempt {latest} had begun to"));
        }
        latest = attempt;
        if event.data["stream"] != "stdout" {
            continue;
        }
        let output = outputs.entry(attempt).or_default();
        if event.data["offset"] != output.len() {
            return Err(format!(
                "attempt {attempt}: offset {} after {} bytes",
                event.data["offset"],
                output.len()
            ));
        }
        output.extend(event.bytes());
    }
    Ok(outputs)
}

/// The branch of a run that succeeded is there with the right content, and so is whatever another left.
fn branch(world: &World, job: &Job, run: &Value, state: &str) -> Result<(), String> {
    let Some(name) = run["branch"].as_str() else {
        return if state == "succeeded" { Err("succeeded without a branch".to_owned()) } else { Ok(()) };
    };
    let mirrors = [world.kage.mirror("demo"), world.second().join("repos/demo.git")];
    // Of an attempt that was lost while it was harvested, the other runner may have a branch too.
    let at = |mirror: &Path| {
        mirror.join(format!("refs/heads/{name}")).exists().then(|| git(mirror, ["rev-parse", name]))
    };
    let found: Vec<_> = mirrors.iter().filter_map(|mirror| Some((mirror, at(mirror)?))).collect();
    let Some((mirror, _)) = found.iter().find(|(_, commit)| run["commit_hash"] == **commit) else {
        return Err(format!("its branch is nowhere at {}, but {found:?}", run["commit_hash"]));
    };
    let show = |path: &str| git(mirror, ["show", &format!("{name}:{path}")]);
    if run["attempt"] != show("attempt").parse::<i64>().unwrap_or(0) {
        return Err(format!("its branch is of attempt {}", show("attempt")));
    }
    if state != "succeeded" {
        return Ok(());
    }
    if show("result") != job.number.to_string() {
        return Err(format!("its result is {:?}", show("result")));
    }
    if job.work == Work::Files {
        let listed = git(mirror, ["ls-tree", "-r", "--name-only", name]);
        let many = listed.lines().filter(|line| line.starts_with("many/")).count();
        if many != FILES || listed.lines().any(|line| line == "data.bin") {
            return Err(format!("its branch has {many} of {FILES} new files:\n{listed}"));
        }
        let all = git(mirror, ["grep", "--no-color", "-h", "", name, "--", "many/"]);
        let mut all: Vec<&str> = all.lines().collect();
        all.sort_unstable();
        let mut wanted: Vec<String> = (1..=FILES).map(|file| format!("{} {file}", job.number)).collect();
        wanted.sort_unstable();
        if all != wanted {
            return Err(format!("its new files hold {all:?}"));
        }
    }
    git(mirror, ["fsck", "--strict", "--no-dangling"]);
    Ok(())
}

/// What was done is in the trail, once.
async fn trail(world: &World, task: &str, run: &Value) -> Vec<String> {
    let count = async |action: &str, object: String, state: Option<&str>| -> i64 {
        let statement = "SELECT count(*) FROM audit_entries WHERE action = $1 AND object = $2
                         AND ($3::text IS NULL OR details->>'state' = $3)";
        let query = sqlx::query_scalar(statement).bind(action).bind(object).bind(state);
        query.fetch_one(&world.pool).await.expect("reads")
    };
    let (id, state) = (run["id"].as_str().unwrap_or(""), run["state"].as_str());
    let mut wrong = Vec::new();
    for (action, object, state) in [
        ("task.submit", format!("task:{task}"), None),
        ("task.end", format!("task:{task}"), None),
        ("run.state", format!("run:{id}"), state),
    ] {
        let found = count(action, object, state).await;
        if found != 1 {
            wrong.push(format!("{found} audit entries {action} {}", state.unwrap_or("")));
        }
    }
    wrong
}

/// What is left that nobody owns, once sweeps have had their time.
pub async fn nothing_is_left(world: &World, wrong: &mut Vec<String>) {
    let until = Instant::now() + SWEPT_WITHIN;
    loop {
        let mut left = left(world);
        left.extend(left_in_the_database(world).await);
        if left.is_empty() {
            return;
        }
        if Instant::now() > until {
            wrong.extend(left.into_iter().map(|what| format!("left over: {what}")));
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

fn left(world: &World) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(world.engine.containers().into_iter().map(|id| format!("container {id}")));
    for data in [world.kage.data.clone(), world.second()] {
        let mounts = leftovers::mounts(&data).into_iter().filter(|mount| *mount != data);
        left.extend(mounts.map(|mount| format!("mount {}", mount.display())));
        for folder in ["runs", "model"] {
            let found = fs::read_dir(data.join(folder)).into_iter().flatten().flatten();
            left.extend(found.map(|entry| format!("folder {}", entry.path().display())));
        }
        left.extend(loop_devices(&data));
    }
    left
}

/// Devices that hold a file below a folder.
fn loop_devices(folder: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let backing =
        devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    let below = backing.filter(|file| Path::new(file.trim()).starts_with(folder));
    below.map(|file| format!("a loop device on {}", file.trim())).collect()
}

async fn left_in_the_database(world: &World) -> Vec<String> {
    let mut left = Vec::new();
    for (what, statement) in [
        ("run that is not over", "SELECT id::text || ' ' || state FROM runs WHERE finished_at IS NULL"),
        ("task that is not over", "SELECT id::text FROM tasks WHERE completed_at IS NULL"),
        (
            "lease",
            "SELECT id::text FROM runs WHERE finished_at IS NOT NULL AND lease_id IS NOT NULL AND lease_expires_at > now()",
        ),
        ("model grant", "SELECT run_id::text || ' ' || state FROM model_grants WHERE state <> 'closed'"),
    ] {
        let found: Vec<String> = sqlx::query_scalar(statement).fetch_all(&world.pool).await.expect("reads");
        left.extend(found.into_iter().map(|row| format!("{what} {row}")));
    }
    left
}

/// The fence's witness has seen nothing, and the audit log is whole.
pub async fn the_record_is_whole(world: &World, wrong: &mut Vec<String>) {
    let seen: Vec<String> = sqlx::query_scalar(
        "SELECT at::text || ' ' || who || ': ' || what || ' ' || run::text FROM chaos_fence ORDER BY at",
    )
    .fetch_all(&world.pool)
    .await
    .expect("reads");
    wrong.extend(seen.into_iter().map(|what| format!("from behind the fence: {what}")));
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let mut command = world.kage.server_command(&["audit", "verify", "--key", &world.audit_key]);
        let output = command.output().expect("kage starts");
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() && said.contains("; 0 wait") {
            return;
        }
        // One that does not verify now never will; places are given out a little later.
        if Instant::now() > until || !output.status.success() {
            wrong.push(format!("the audit log: {said}"));
            return;
        }
        sleep(Duration::from_millis(300)).await;
    }
}
