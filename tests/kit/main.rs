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
use kage::image::manifest::Manifest;
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
    report_of(manifest, Extent { quick, only: None }, &image_name()).await.unwrap()
}

async fn only(manifest: Manifest, id: &str) -> Report {
    report_of(manifest, Extent { quick: false, only: Some(id.to_owned()) }, &image_name()).await.unwrap()
}

fn image_name() -> String {
    std::env::var("KAGE_TEST_IMAGE").expect("./test sets it")
}

async fn engine() -> Engine {
    let uri = std::env::var("KAGE_TEST_ENGINE").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    Engine::connect(&uri).await.expect("these tests need a Docker Engine")
}

async fn report_of(manifest: Manifest, extent: Extent, image: &str) -> Result<Report, KitError> {
    let engine = engine().await;
    let props = Props {
        image: inspect_image(&engine, image).await.unwrap().expect("./test builds it"),
        engine,
        manifest,
        limits: Limits { memory_bytes: 256 << 20, ..Limits::default() },
        runtime: None,
        user: SandboxUser::new(10001, 10001).unwrap(),
        shim: PathBuf::from(std::env::var_os("KAGE_TEST_SHIM").expect("./test sets it")),
        folder: std::env::temp_dir(),
        keep: None,
    };
    let stage = Stage::set(props).unwrap();
    let surroundings =
        Surroundings { image_environment: vec!["API_TOKEN=planted".to_owned()], known: Vec::new() };
    let mut told = 0;
    let report = check(&stage, &extent, &surroundings, |_| told += 1).await;
    let left = list(&stage.engine, &stage.instance).await.unwrap();
    assert!(left.is_empty(), "containers are left: {left:?}");
    assert!(report.as_ref().is_err() || told == report.as_ref().unwrap().items.len());
    report
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
/// of the host. It does not come to that: HOME would be mounted elsewhere than it was asked for.
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
    let refused = report_of(manifest("home"), extent, &tag).await;
    engine.api().remove_image(&tag, None::<RemoveImageOptions>, None).await.unwrap();
    let Err(KitError::Containment(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("/home/agent is not mounted"), "{why}");
}
