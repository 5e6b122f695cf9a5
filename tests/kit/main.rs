//! The conformance kit, on CLIs that are good, or bad in one way. Needs an engine and an image with Python.
//!
//! `./test` sets what it needs: `KAGE_TEST_SHIM`, `KAGE_TEST_IMAGE`.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::path::PathBuf;
use std::time::Duration;

use bollard::query_parameters::RemoveImageOptions;
use kage::domain::judgement::Judge;
use kage::domain::limits::Limits;
use kage::image::build::{BuildRequest, build};
use kage::image::manifest::{Manifest, PromptWay};
use kage::kit::check::{Extent, Surroundings, check};
use kage::kit::error::KitError;
use kage::kit::report::{Item, Need, Outcome, Report};
use kage::kit::stage::{Props, Stage};
use kage::sandbox::container::list;
use kage::sandbox::engine::Engine;
use kage::sandbox::image_check::inspect_image;
use kage::sandbox::spec::SandboxUser;

const AGENT: &str = include_str!("agent.py");

fn manifest(bad: &str) -> Manifest {
    let text = format!(
        r#"
name = "agent"
command = ["python3", "-c", {}, "{bad}"]
prompt = "stdin"
judge = "final"
after_final_secs = 1
events = '''
fromjson? | objects |
if .type == "text" then {{kind: "assistant", message: .text}}
elif .type == "call" then {{kind: "tool_call", name, message: .text}}
elif .type == "result" then {{kind: "tool_result", message: .text}}
elif .type == "end" then {{kind: "usage", input_tokens: .input, output_tokens: .output}}, {{kind: "final", ok}}
else empty end
'''
[model]
dialect = "chat"
default = "m"
[environment]
BASE = "{{{{gateway}}}}"
KEY = "{{{{token}}}}"
"#,
        serde_json::to_string(AGENT).unwrap()
    );
    Manifest::parse("agent/cli.toml".as_ref(), &text).unwrap()
}

async fn report(manifest: Manifest, quick: bool) -> Report {
    report_of(manifest, Extent { quick, only: None }, &image_name()).await
}

async fn only(manifest: Manifest, id: &str) -> Report {
    report_of(manifest, Extent { quick: false, only: Some(id.to_owned()) }, &image_name()).await
}

fn image_name() -> String {
    std::env::var("KAGE_TEST_IMAGE").expect("./test sets it")
}

async fn engine() -> Engine {
    let uri = std::env::var("KAGE_TEST_ENGINE").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    Engine::connect(&uri).await.expect("these tests need a Docker Engine")
}

async fn report_of(manifest: Manifest, extent: Extent, image: &str) -> Report {
    let stage = stage(manifest, image, None).await;
    let surroundings =
        Surroundings { image_environment: vec!["API_TOKEN=planted".to_owned()], known: Vec::new() };
    let mut told = 0;
    let report = check(&stage, &extent, &surroundings, |_| told += 1).await.unwrap();
    assert_eq!(told, report.items.len());
    let left = list(&stage.engine, &stage.instance).await.unwrap();
    assert!(left.is_empty(), "containers are left: {left:?}");
    report
}

async fn stage(manifest: Manifest, image: &str, keep: Option<PathBuf>) -> Stage {
    let engine = engine().await;
    let props = Props {
        users: kage::sandbox::remap::Users::Same,
        image: inspect_image(&engine, image).await.unwrap().expect("./test builds it"),
        engine,
        manifest,
        limits: Limits { memory_bytes: 256 << 20, ..Limits::default() },
        runtime: None,
        user: SandboxUser::new(10001, 10001).unwrap(),
        shim: PathBuf::from(std::env::var_os("KAGE_TEST_SHIM").expect("./test sets it")),
        folder: std::env::temp_dir(),
        keep,
    };
    Stage::set(props).unwrap()
}

fn item<'r>(report: &'r Report, id: &str) -> &'r Item {
    report.items.iter().find(|item| item.id == id).unwrap_or_else(|| panic!("no item {id}: {report:#?}"))
}

/// The items that must or should hold and do not, but for the one that every test here plants.
fn failed(report: &Report) -> Vec<&'static str> {
    let failed =
        report.items.iter().filter(|item| item.outcome == Outcome::Failed && item.need != Need::Note);
    failed.map(|item| item.id).filter(|id| *id != "image-environment").collect()
}

#[tokio::test]
async fn a_good_cli_passes_every_item() {
    let report = report(manifest("no"), false).await;
    assert_eq!(failed(&report), Vec::<&str>::new(), "{report:#?}");
    assert_eq!(item(&report, "image-environment").detail, "ENV API_TOKEN");
    assert!(!report.passed(), "for that variable alone");
    assert_eq!((report.items.len(), report.partial), (report.of, false), "all of it was checked");
    assert!(report.figures.memory_peak_bytes.unwrap() > 1 << 20);
    assert!(item(&report, "usage").detail.starts_with("3600 in, 102 out"));
    assert!(item(&report, "budget-stop").detail.contains("2 requests"));
    assert!(item(&report, "error-500").detail.contains("4 requests"));
}

#[tokio::test]
async fn each_vice_is_found_and_named() {
    for (bad, items) in [
        ("obeys", &["prompt-slash"][..]),
        (
            "trims",
            &["prompt-bytes", "prompt-large", "prompt-slash", "prompt-dash", "prompt-bang", "prompt-at"],
        ),
        (
            "forgets",
            &[
                "gets-the-prompt",
                "foreign-user",
                "prompt-bytes",
                "prompt-large",
                "prompt-slash",
                "prompt-dash",
                "prompt-bang",
                "prompt-at",
            ],
        ),
        ("leaks", &["no-credential"]),
        ("key", &["placeholder"]),
        ("lingers", &["ends"]),
    ] {
        let report = report(manifest(bad), true).await;
        assert_eq!(failed(&report), items, "{bad}: {report:#?}");
    }
    let report = report(manifest("search"), true).await;
    assert!(item(&report, "gateway-removes").detail.contains("web_search"), "{report:#?}");
}

#[tokio::test]
async fn what_does_not_reach_the_model_is_not_tried_further() {
    let routed = report(manifest("route"), true).await;
    assert_eq!(item(&routed, "starts").outcome, Outcome::Failed);
    assert!(item(&routed, "gateway-accepts").detail.contains("/v1/embeddings"), "{routed:#?}");
    assert!(!routed.items.iter().any(|item| item.id == "prompt-large"));
    let mut nothing = manifest("no");
    nothing.command = vec!["no-such-program".to_owned()];
    let nothing = report(nothing, true).await;
    assert!(item(&nothing, "starts").detail.contains("no-such-program"), "{nothing:#?}");
    assert!(!nothing.passed());
    // Of what never ran nothing else is known, good or bad.
    let passed = nothing.items.iter().filter(|item| item.outcome == Outcome::Passed).map(|item| item.id);
    assert_eq!(passed.collect::<Vec<_>>(), ["image"]);
    assert_eq!(failed(&nothing), ["starts"]);
}

#[tokio::test]
async fn a_part_of_a_check_is_not_called_the_whole() {
    let extent = Extent { quick: false, only: Some("nonsense".to_owned()) };
    let nothing = Surroundings { image_environment: Vec::new(), known: Vec::new() };
    let stage = stage(manifest("no"), &image_name(), None).await;
    let error = check(&stage, &extent, &nothing, |_| {}).await.unwrap_err().to_string();
    assert!(
        error.contains("nonsense") && error.contains("prompt-large") && error.contains("cut-once"),
        "{error}"
    );
    let extent = Extent { quick: true, only: Some("error-401".to_owned()) };
    let error = check(&stage, &extent, &nothing, |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("--quick"), "{error}");
    let extent = Extent { quick: true, only: Some("prompt-dash".to_owned()) };
    let part = check(&stage, &extent, &nothing, |_| {}).await.unwrap();
    assert!(part.passed());
    let summary = part.summary().join("\n");
    assert!(summary.contains("what was checked holds (2 of 3"), "{summary}");
    assert!(!summary.contains("fit for use") && !summary.contains('?'), "{summary}");
}

#[tokio::test]
async fn a_cli_that_takes_no_long_prompt_says_so() {
    let by_argument = Manifest { prompt: PromptWay::Argument, ..manifest("no") };
    let unbounded = only(by_argument.clone(), "prompt-large").await;
    assert_eq!(failed(&unbounded), ["prompt-large"]);
    assert!(item(&unbounded, "prompt-large").detail.contains("max_prompt_bytes"), "{unbounded:#?}");
    assert!(!unbounded.passed());
    let bounded = only(Manifest { max_prompt_bytes: Some(100_000), ..by_argument.clone() }, "prompt-").await;
    assert!(bounded.passed(), "{bounded:#?}");
    assert_eq!(failed(&bounded), ["prompt-large"], "{bounded:#?}");
    assert_eq!(item(&bounded, "prompt-large").need, Need::Should);
    // One that does not keep its word.
    let forgets =
        Manifest { prompt: PromptWay::Argument, max_prompt_bytes: Some(100_000), ..manifest("forgets") };
    assert!(!only(forgets, "prompt-large").await.passed());
}

#[tokio::test]
async fn what_is_kept_is_json_and_what_the_filter_was_given() {
    let kept = tempfile::tempdir().unwrap();
    let stage = stage(manifest("no"), &image_name(), Some(kept.path().to_owned())).await;
    let extent = Extent { quick: true, only: Some("task".to_owned()) };
    let nothing = Surroundings { image_environment: Vec::new(), known: Vec::new() };
    check(&stage, &extent, &nothing, |_| {}).await.unwrap();
    let read = |name: &str| std::fs::read_to_string(kept.path().join(name)).unwrap();
    let events = read("task.events.jsonl");
    let events: Vec<serde_json::Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.first().unwrap()["message"], "I write the file first.");
    assert_eq!(events.last().unwrap(), &serde_json::json!({ "kind": "final", "ok": true }));
    let mapping = stage.manifest.mapping().unwrap();
    let again: Vec<serde_json::Value> = read("task.stdout")
        .lines()
        .flat_map(|line| mapping.map_line(line.as_bytes()).events)
        .map(|event| event.to_json())
        .collect();
    assert_eq!(again, events);
    assert!(read("task.requests.jsonl").contains("Write kit-hello.txt"));
}

#[tokio::test]
async fn vices_under_faults_are_found() {
    let deaf = only(manifest("deaf"), "sigterm").await;
    assert_eq!(failed(&deaf), ["sigterm"], "{deaf:#?}");
    // With "final" the missing event itself would tell.
    let by_exit = Manifest { judge: Judge::Exit, ..manifest("silent") };
    let silent = only(by_exit, "error-401").await;
    assert_eq!(failed(&silent), ["errors-told"], "{silent:#?}");
    let impatient = only(manifest("impatient"), "error-500-once").await;
    assert_eq!(failed(&impatient), ["error-500-once"], "{impatient:#?}");
}

/// The kit is root and looks at `/proc/PID/root/home/agent`: a link that the image has there must not lead it to a folder
/// of the host. Such a sandbox is refused before its CLI starts; that the look itself follows no link, `kit::tree` tests.
#[tokio::test]
async fn an_image_cannot_lead_the_kit_to_the_hosts_files() {
    let host = tempfile::Builder::new().prefix("kage-kit-host-").tempdir_in("/var/tmp").unwrap();
    std::fs::write(host.path().join("host-secret"), format!("ghp_{}", "aB3".repeat(12))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let recipe = format!(
        "ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nUSER root\nRUN rm -rf /home/agent && ln -s {} /home/agent\n",
        host.path().display()
    );
    std::fs::write(folder.path().join("Dockerfile"), recipe).unwrap();
    let (engine, base) = (engine().await, image_name());
    let tag = format!("kage-kit-test-{}:dev", uuid::Uuid::new_v4().simple());
    let request = BuildRequest {
        folder: folder.path(),
        tag: &tag,
        args: &[("BASE_IMAGE", &base)],
        labels: &[],
        certificates: None,
        network: Some("none"),
        deadline: Duration::from_secs(300),
    };
    build(&engine, &request, |_| {}).await.unwrap();
    let extent = Extent { quick: true, only: Some("task".to_owned()) };
    let stage = stage(manifest("home"), &tag, None).await;
    let nothing = Surroundings { image_environment: Vec::new(), known: Vec::new() };
    let mut told = Vec::new();
    let checked = check(&stage, &extent, &nothing, |item| told.push(item.id)).await;
    let left = list(&stage.engine, &stage.instance).await.unwrap();
    engine.api().remove_image(&tag, None::<RemoveImageOptions>, None).await.unwrap();
    assert!(left.is_empty(), "containers are left: {left:?}");
    assert_eq!(told, ["image"], "nothing was run");
    let Err(KitError::Containment(why)) = checked else { panic!("{checked:#?}") };
    assert!(why.contains("/home/agent is not mounted"), "{why}");
}

#[tokio::test]
async fn what_a_cli_leaves_in_its_home_is_found() {
    let report = only(manifest("home"), "task").await;
    assert_eq!(
        item(&report, "no-credential").detail,
        "a key of Anthropic's in /home/agent/leak",
        "{report:#?}"
    );
    assert_eq!(report.paths_written, ["/home/agent/leak"]);
}
