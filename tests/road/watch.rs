//! What a server tells those who watch it: figures, lines of its log.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::http::send;
use crate::support::provider::{CREDENTIAL, Provider};
use crate::support::tasks::string;
use crate::support::{TestKage, eventually, free_port};

/// `ask MODEL`: one call; whatever comes of it is no matter.
const ASK: &str = r#"
ask() {
  python3 - "$1" <<'END'
import json, os, sys, urllib.request
body = {"model": sys.argv[1], "max_tokens": 1000, "messages": [{"role": "user", "content": "x"}]}
headers = {"content-type": "application/json", "x-api-key": os.environ["KEY"], "anthropic-version": "2023-06-01"}
request = urllib.request.Request(os.environ["URL"] + "/v1/messages", json.dumps(body).encode(), headers)
try:
    urllib.request.urlopen(request).read()
except urllib.error.HTTPError as error:
    error.read()
END
}
"#;

/// Two calls that are booked, the second under a name of the CLI's own, and many of models that there are not.
const CALLS: &str =
    "ask good; ask status-418; for n in $(seq 5); do ask made-up-$n; done; ask good; date +%N > new.txt";

pub fn asker(script: &str) -> Value {
    json!({
        "description": format!("{ASK}\n{script}\nexit 0\n"),
        "repository": "demo",
        "max_retries": 0,
        "cli_assignments": [{ "cli_name": "asker" }],
    })
}

/// Series by name with labels.
struct Page(BTreeMap<String, f64>);

impl Page {
    async fn of(kage: &TestKage, url: &str) -> Self {
        let answer = kage.http.get(url).send().await.expect("the page is there");
        assert_eq!(answer.status(), 200);
        let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
        assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
        let text = answer.text().await.expect("text");
        assert!(text.ends_with("# EOF\n"), "it is whole");
        let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            (name.to_owned(), value.parse().expect("a number"))
        });
        Self(series.collect())
    }

    /// What is shown of one series; 0 if there is none.
    fn of_series(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }
}

#[tokio::test]
async fn a_run_shows_in_the_figures_and_nothing_of_whose_it_is() {
    let (mut kage, provider, port) = (TestKage::new().await, Provider::start().await, free_port());
    provider.of(&mut kage);
    kage.set("KAGE_METRICS_LISTEN", &format!("127.0.0.1:{port}"));
    kage.set("KAGE_LOG_FORMAT", "json");
    // Every statement is a line.
    kage.set("KAGE_LOG", "info,sqlx=debug");
    kage.start("serve").await;
    kage.demo().await;
    let url = format!("http://127.0.0.1:{port}/metrics");
    let before = Page::of(&kage, &url).await;
    assert_eq!(before.of_series("kage_runs_ended_total{state=\"succeeded\"}"), 0.0);

    let ended = kage.run(&asker(CALLS)).await;
    assert_eq!(ended["runs"][0]["state"], "succeeded", "{ended}");
    // What somebody makes up: paths, methods, keys.
    for number in 0..20 {
        let path = format!("/api/v1/made-up-{number}/{}", string(&ended["id"]));
        assert_eq!(kage.get(&path).await.status, 404);
    }
    let made_up =
        kage.http.request(reqwest::Method::from_bytes(b"MADEUP").expect("a token"), kage.url.clone());
    assert_eq!(send(made_up).await.status, 405);
    let nobody = kage.http.get(format!("{}/api/v1/tasks", kage.url)).header("x-api-key", "kage_made_up");
    assert_eq!(send(nobody).await.status, 401);

    // What is asked for follows within seconds, what is counted is there at once.
    let page = eventually("the figures are of now", async || {
        let page = Page::of(&kage, &url).await;
        (page.of_series("kage_runners_alive") == 1.0 && page.of_series("kage_trail_entries") > 0.0)
            .then_some(page)
    })
    .await;
    let exactly = [
        ("kage_runs_ended_total{state=\"succeeded\"}", 1.0),
        ("kage_run_phase_duration_seconds_count{phase=\"queue\"}", 1.0),
        ("kage_run_phase_duration_seconds_count{phase=\"prepare\"}", 1.0),
        ("kage_run_phase_duration_seconds_count{phase=\"run\"}", 1.0),
        ("kage_run_phase_duration_seconds_count{phase=\"harvest\"}", 1.0),
        ("kage_engine_calls_total{call=\"create\",outcome=\"ok\"}", 1.0),
        ("kage_model_calls_total{provider=\"near\",model=\"good\",outcome=\"ok\"}", 2.0),
        ("kage_model_calls_total{provider=\"near\",model=\"other\",outcome=\"upstream_error\"}", 1.0),
        ("kage_model_tokens_total{provider=\"near\",model=\"good\",kind=\"input\"}", 200.0),
        ("kage_model_tokens_total{provider=\"near\",model=\"good\",kind=\"output\"}", 1800.0),
        ("kage_model_cost_usd_total{provider=\"near\",model=\"good\"}", 2.0),
        ("kage_model_refusals_total{provider=\"near\",kind=\"model_not_allowed\"}", 5.0),
        ("kage_model_calls_open", 0.0),
        ("kage_queue_length", 0.0),
        ("kage_runs{state=\"running\"}", 0.0),
        ("kage_http_requests_total{method=\"POST\",route=\"/api/v1/tasks\",status=\"201\"}", 1.0),
        ("kage_http_requests_total{method=\"GET\",route=\"other\",status=\"404\"}", 20.0),
        ("kage_auth_failures_total", 1.0),
        ("kage_containment_refusals_total", 0.0),
        ("kage_database_connections_max{zone=\"api\"}", 10.0),
        (&format!("kage_build_info{{version=\"{}\",role=\"serve\"}}", env!("CARGO_PKG_VERSION")), 1.0),
    ];
    for (series, value) in exactly {
        assert_eq!(page.of_series(series), value, "{series}:\n{:#?}", page.0);
    }
    for series in
        ["kage_trail_checkpoint_timestamp_seconds", "kage_figures_timestamp_seconds{zone=\"runner\"}"]
    {
        assert!(page.of_series(series) > 1e9, "{series}");
    }

    let secrets = [kage.key.as_str(), CREDENTIAL, "made-up", "MADEUP", "demo", "status-418", "asker"];
    let ids = [string(&ended["id"]), string(&ended["runs"][0]["id"])];
    for series in page.0.keys() {
        assert!(!secrets.iter().chain(&ids).any(|text| series.contains(text)), "{series}");
    }
    assert!(page.0.len() < 1200, "{} series", page.0.len());
    let elsewhere = kage.http.get(format!("http://127.0.0.1:{port}/api/v1/tasks"));
    assert_eq!(send(elsewhere).await.status, 404, "figures and nothing else");

    let probe = kage.request(reqwest::Method::GET, "/api/v1/tasks").header("x-request-id", "probe-1");
    assert_eq!(send(probe).await.status, 200);
    let path = format!("/api/v1/tasks/{}/progress", ids[0]);
    let stream = kage.request(reqwest::Method::GET, &path).header("x-request-id", "probe-2");
    assert_eq!(send(stream).await.status, 200);
    lines_have_their_ids(kage.process(0).log(), ids[0], ids[1]);
}

fn lines_have_their_ids(log: String, task: &str, run: &str) {
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(lines.len() > 100 && !log.contains("otel."), "{} lines", lines.len());
    let of = |field: &str, id: &str| lines.iter().filter(|line| line[field] == id).collect::<Vec<_>>();
    // A short statement is its own summary.
    let statement = |line: &&Value, part: &str| {
        let said = |field: &str| line[field].as_str().is_some_and(|text| text.contains(part));
        line["target"] == "sqlx::query" && (said("db.statement") || said("summary"))
    };
    // Of the request: the look for its key, and its answer. Of the stream: what it reads while it is sent.
    for (id, part) in [("probe-1", "api_keys"), ("probe-1", "FROM tasks"), ("probe-2", "FROM events")] {
        let lines = of("request_id", id);
        assert!(lines.iter().any(|line| statement(line, part)), "{id} {part}: {lines:#?}");
    }
    // Of the run: its runner's writes, its gateway's, and what each says of it.
    let of_run = of("run_id", run);
    for part in [
        "UPDATE runs SET state",
        "INSERT INTO attempts",
        "model_calls",
        "UPDATE model_grants SET state = 'open'",
    ] {
        assert!(of_run.iter().any(|line| statement(line, part)), "{part}: {of_run:#?}");
    }
    assert!(of_run.iter().all(|line| line["task_id"] == task && line["attempt"] == 1), "{of_run:#?}");
    // Whatever names the run in a field of its own is in its span.
    let named = of("run", run);
    assert!(named.iter().any(|line| line["message"] == "gateway.opened"), "{named:#?}");
    assert!(named.iter().any(|line| line["message"] == "gateway.closed"), "{named:#?}");
    for line in named {
        assert_eq!((&line["run_id"], &line["task_id"]), (&json!(run), &json!(task)), "{line}");
    }
}
