//! One trace from a client's request to the container and the model, told by three processes to a collector.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::http::send;
use crate::support::provider::{CREDENTIAL, Provider};
use crate::support::tasks::string;
use crate::support::{TestKage, eventually};
use crate::watch::asker;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";
/// In the prompt, and so nowhere in a span.
const PROMPT: &str = "planted-prompt-77c1";

#[derive(Debug, Clone)]
struct Span {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: BTreeMap<String, String>,
}

/// Spans, and all the bytes that they came in.
type Got = Arc<Mutex<(Vec<Span>, Vec<u8>)>>;

/// Takes OTLP over HTTP as a collector does.
struct Collector {
    url: String,
    got: Got,
    server: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let got = Got::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&got));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { url, got, server }
    }

    fn of_trace(&self, trace: &str) -> Vec<Span> {
        let got = self.got.lock().expect("no panic");
        got.0.iter().filter(|span| span.trace == trace).cloned().collect()
    }
}

async fn take(State(got): State<Got>, headers: HeaderMap, body: Bytes) -> (StatusCode, Bytes) {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("OTLP");
    let mut got = got.lock().expect("no panic");
    got.1.extend_from_slice(&body);
    for resource in request.resource_spans {
        let of = attributes(resource.resource.expect("a resource").attributes);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            got.0.push(Span {
                service: of["service.name"].clone(),
                name: span.name,
                trace: hex::encode(span.trace_id),
                id: hex::encode(span.span_id),
                parent: hex::encode(span.parent_span_id),
                attributes: attributes(span.attributes),
            });
        }
    }
    (StatusCode::OK, Bytes::new())
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.clone().and_then(|value| value.value) {
        Some(AnyValue::StringValue(text)) => text,
        Some(AnyValue::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    list.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

impl TestKage {
    async fn submit_traced(&self, task: &serde_json::Value, traceparent: &str) -> String {
        let request = self.request(reqwest::Method::POST, "/api/v1/tasks").json(task);
        let answer = send(request.header("traceparent", traceparent)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        string(&answer.json()["id"]).to_owned()
    }
}

#[tokio::test]
async fn a_trace_leads_from_the_request_to_the_container_and_the_model() {
    let (mut kage, provider, collector) =
        (TestKage::new().await, Provider::start().await, Collector::start().await);
    provider.of(&mut kage);
    kage.set("KAGE_OTLP_ENDPOINT", &collector.url);
    // The log's filter has no say in it.
    kage.set("KAGE_LOG", "warn,kage=info");
    let api = kage.start("api").await;
    kage.spawn_with("gateway", &[]);
    kage.start("runner").await;
    kage.demo().await;

    // Not sampled, says the client: that is not its to say.
    let task = asker(&format!(": {PROMPT}; ask made-up; ask good; date +%N > new.txt"));
    let id = kage.submit_traced(&task, &format!("00-{TRACE}-{CLIENT}-00")).await;
    let ended = kage.ended(&id).await;
    assert_eq!(ended["runs"][0]["state"], "succeeded", "{ended}");
    let spans = eventually("all of the trace is there", async || {
        let spans = collector.of_trace(TRACE);
        let named = |name: &str| spans.iter().filter(|span| span.name == name).count();
        (named("run") == 1 && named("model call") == 2 && named("/api/v1/tasks") == 1).then_some(spans)
    })
    .await;

    let services: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
    assert_eq!(services, BTreeSet::from(["kage-api", "kage-gateway", "kage-runner"]), "{spans:#?}");
    let one = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no span {name:?}: {spans:#?}"))
    };
    let (request, run) = (one("/api/v1/tasks"), one("run"));
    assert_eq!((request.service.as_str(), request.parent.as_str()), ("kage-api", CLIENT));
    assert_eq!(request.attributes["http.response.status_code"], "201");
    assert_eq!((run.service.as_str(), run.parent.as_str()), ("kage-runner", request.id.as_str()));
    assert_eq!(run.attributes["run_id"], string(&ended["runs"][0]["id"]));
    assert_eq!(run.attributes["run.state"], "succeeded");
    for step in ["prepare", "start", "cli", "harvest"] {
        assert_eq!((one(step).service.as_str(), &one(step).parent), ("kage-runner", &run.id), "{step}");
    }
    for (call, step) in
        [("engine create", "prepare"), ("engine start", "start"), ("engine remove", "harvest")]
    {
        assert_eq!(one(call).parent, one(step).id, "{call}");
    }
    let calls: Vec<&Span> = spans.iter().filter(|span| span.name == "model call").collect();
    for call in &calls {
        assert_eq!((call.service.as_str(), &call.parent), ("kage-gateway", &run.id));
        assert_eq!(call.attributes["model.provider"], "near");
    }
    let told: BTreeSet<_> = calls
        .iter()
        .map(|call| (call.attributes.get("model.outcome"), call.attributes.get("model.refusal")))
        .collect();
    let (ok, refused) = ("ok".to_owned(), "model_not_allowed".to_owned());
    assert_eq!(told, BTreeSet::from([(Some(&ok), None), (None, Some(&refused))]));

    // The vendor is told nothing of it, and what one makes up begins a trace of its own.
    assert!(provider.seen().iter().all(|(headers, _)| !headers.contains_key("traceparent")));
    let hostile = format!("00-{}-{CLIENT}-01", "0".repeat(32));
    let id = kage.submit_traced(&asker("date +%N > new.txt"), &hostile).await;
    kage.ended(&id).await;
    let stored: Vec<Option<String>> = sqlx::query_scalar("SELECT traceparent FROM tasks ORDER BY created_at")
        .fetch_all(kage.pool())
        .await
        .expect("reads");
    let begins = |at: usize, text: &str| stored[at].as_deref().is_some_and(|own| own.starts_with(text));
    assert!(begins(0, &format!("00-{TRACE}-{}-01", request.id)), "{stored:?}");
    assert!(begins(1, "00-") && !begins(1, "00-0000000000000000"), "{stored:?}");

    // An orderly end sends what waits; nothing that is secret was among it.
    kage.process(api).signal(rustix::process::Signal::TERM);
    kage.process(api).wait().await;
    let got = collector.got.lock().expect("no panic");
    let all = String::from_utf8_lossy(&got.1);
    assert!(all.contains("kage-api") && all.contains("near"), "this looks into the right place");
    for secret in [PROMPT, CREDENTIAL, kage.key.as_str(), "the answer", "made-up"] {
        assert!(!all.contains(secret), "{secret}");
    }
}
