//! The manifests of images/, against what each CLI really printed: `fixtures/cli-events/NAME.jsonl` is its output for a
//! task that wrote one file and ran one command, `NAME.failed.jsonl` for a model API that answered 402 each time,
//! `NAME.retried.jsonl` for one that failed at first, `NAME.compacted.jsonl` the beginning of one whose conversation grew
//! too long. The streams are of real CLIs against the scripted model server.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use kage::domain::judgement::Judge;
use kage::domain::model::Dialect;
use kage::image::manifest::Manifest;
use kage::image::mapped::{MappedEvent, Usage};
use kage::image::mapping::{MAX_OUTPUTS, Mapping};

const CLIS: [(&str, Dialect); 7] = [
    ("aider", Dialect::Chat),
    ("claude-code", Dialect::Anthropic),
    ("codex", Dialect::Responses),
    ("gemini", Dialect::Gemini),
    ("ollama", Dialect::Ollama),
    ("opencode", Dialect::Chat),
    ("qwen-code", Dialect::Chat),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn manifest(folder: &str) -> Manifest {
    Manifest::read(&root().join("images").join(folder)).expect("a good manifest")
}

fn fixture(name: &str) -> Option<Vec<u8>> {
    fs::read(root().join("tests/fixtures/cli-events").join(format!("{name}.jsonl"))).ok()
}

fn events(mapping: &Mapping, stream: &[u8]) -> Vec<MappedEvent> {
    let mut events = Vec::new();
    for line in stream.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mapped = mapping.map_line(line);
        assert_eq!(mapped.ignored, 0, "outputs that are no event, of {}", String::from_utf8_lossy(line));
        assert!(mapped.events.len() < MAX_OUTPUTS);
        events.extend(mapped.events);
    }
    events
}

/// One event a line.
fn listed(events: &[MappedEvent]) -> String {
    events.iter().fold(String::new(), |mut text, event| {
        writeln!(text, "{event:?}").expect("a string takes all");
        text
    })
}

#[test]
fn each_stream_becomes_its_events() {
    for (name, _) in CLIS {
        let mapping = manifest(name).mapping().expect("has a filter");
        for variant in ["", ".failed", ".retried", ".compacted"] {
            let fixture_name = format!("{name}{variant}");
            if let Some(stream) = fixture(&fixture_name) {
                insta::assert_snapshot!(fixture_name, listed(&events(&mapping, &stream)));
            }
        }
    }
}

#[test]
fn a_task_that_was_done_says_what_was_done() {
    for (name, _) in CLIS {
        let manifest = manifest(name);
        let stream = fixture(name).expect("each CLI has its stream");
        let events = events(&manifest.mapping().expect("has a filter"), &stream);
        let called = |text: &str| {
            events
                .iter()
                .any(|event| matches!(event, MappedEvent::ToolCall { message, .. } if message.contains(text)))
        };
        assert!(called("hello.txt"), "{name}: the file that it wrote");
        let failed = events.iter().any(|event| matches!(event, MappedEvent::Error(_)));
        assert!(!failed, "{name}: {events:?}");
        let last = events.iter().rev().find_map(|event| match event {
            MappedEvent::Final(last) => Some(last.ok),
            _ => None,
        });
        match manifest.judge {
            Judge::Final => assert_eq!(last, Some(true), "{name}: its last word"),
            Judge::Exit => assert_eq!(last, None, "{name}: it has no last word, so none may be made up"),
        }
    }
}

#[test]
fn a_model_error_is_never_taken_for_success() {
    for (name, _) in CLIS {
        let manifest = manifest(name);
        let stream = fixture(&format!("{name}.failed")).expect("each CLI has its failed stream");
        let events = events(&manifest.mapping().expect("has a filter"), &stream);
        let told =
            events.iter().any(|event| matches!(event, MappedEvent::Error(error) if error.contains("402")));
        assert!(told, "{name} tells of the 402: {events:?}");
        let good = events.iter().any(|event| matches!(event, MappedEvent::Final(last) if last.ok));
        assert!(!good, "{name}: {events:?}");
    }
}

#[test]
fn totals_are_those_that_the_cli_counted() {
    // The script says 1000 in and 50 out a call; three calls, but one for the CLI that has no loop.
    for (name, _) in CLIS {
        let mapping = manifest(name).mapping().expect("has a filter");
        let events = events(&mapping, &fixture(name).expect("has a stream"));
        let claimed = Usage::claimed(&events).unwrap_or_else(|| panic!("{name} counts"));
        let expected = if name == "aider" { (1000, 50) } else { (3000, 150) };
        assert_eq!(
            (claimed.input_tokens, claimed.output_tokens),
            (Some(expected.0), Some(expected.1)),
            "{name}"
        );
    }
}

#[test]
fn each_manifest_is_fit_for_a_gateway() {
    for (name, dialect) in CLIS {
        let manifest = manifest(name);
        assert_eq!(manifest.name.as_str(), name);
        assert_eq!(manifest.model.as_ref().expect("asks a model").dialect, dialect, "{name}");
        let prefix = manifest.prompt_prefix.as_deref().unwrap_or_default();
        for prompt in ["/run touch /tmp/x", "!touch /tmp/x", "--version", "@x", "\n/model y"] {
            let launch = manifest.launch(prompt, None).expect("launches");
            let given = if launch.stdin.is_empty() { launch.file.as_deref() } else { Some(&*launch.stdin) };
            let given = given.expect("by standard input or a file, never in an argument that /proc shows");
            assert_eq!(given, format!("{prefix}{prompt}"), "{name}: whole, and behind the prefix");
            assert!(given.starts_with(char::is_alphabetic), "{name}: no command, no option");
            assert!(!launch.argv.iter().any(|argument| argument.contains(prompt)), "{name}");
            let gateway = |text: &String| text.contains("http://127.0.0.1:8080");
            assert!(launch.env.values().chain(&launch.argv).any(gateway), "{name} asks the gateway");
            for text in launch.env.values().chain(&launch.argv) {
                assert!(!text.contains("{{"), "{name}: {text}");
            }
        }
    }
}

/// Where an operator forbids the flag that turns a CLI's own permissions off.
#[test]
fn strict_manifests_differ_in_permissions_alone() {
    const FORBIDDEN: [&str; 5] = [
        "--dangerously-skip-permissions",
        "--dangerously-bypass-approvals-and-sandbox",
        "--yolo",
        "yolo",
        "\"permission\": \"allow\"",
    ];
    let mut found = 0;
    for (name, _) in CLIS.iter().filter(|(name, _)| *name != "aider") {
        let usual = manifest(name);
        let strict = manifest(&format!("{name}/strict"));
        let says = |manifest: &Manifest| {
            let launch = manifest.launch("x", None).expect("launches");
            let texts: Vec<String> = launch.argv.into_iter().chain(launch.env.into_values()).collect();
            texts
                .iter()
                .any(|text| FORBIDDEN.iter().any(|flag| text == flag || text.contains(&format!("{flag},"))))
        };
        assert!(says(&usual) && !says(&strict), "{name}");
        let mut alike = strict.clone();
        alike.command.clone_from(&usual.command);
        alike.environment.clone_from(&usual.environment);
        assert_eq!(alike, usual, "{name}: all but the command and the environment is the same");
        found += 1;
    }
    assert_eq!(found, 6);
}

/// Nothing that these folders hold may name where packages come from: each site has its own mirror.
#[test]
fn locks_pin_every_package_and_name_no_source() {
    let mut locks = 0;
    for (name, _) in CLIS {
        let folder = root().join("images").join(name);
        for path in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
            let text = || fs::read_to_string(&path).expect("text");
            if file == "package-lock.json" {
                check_npm(&path, &text());
                locks += 1;
            } else if file.starts_with("requirements") {
                check_pip(&path, &text());
                locks += 1;
            }
        }
        let recipe = fs::read_to_string(folder.join("Dockerfile")).expect("a recipe");
        assert!(recipe.contains("\nARG BASE_IMAGE="), "{name}: on any base");
        assert!(recipe.contains("--require-hashes") && !recipe.contains("npm install"), "{name}: from locks");
        assert!(recipe.ends_with("USER 10001:10001\nCMD [\"/bin/bash\"]\n"), "{name}: not root");
    }
    assert!(locks > CLIS.len());
}

fn check_npm(path: &Path, text: &str) {
    let lock: serde_json::Value = serde_json::from_str(text).expect("JSON");
    for (package, facts) in lock["packages"].as_object().expect("packages") {
        if !package.is_empty() {
            assert!(facts["integrity"].is_string(), "{}: {package} has its hash", path.display());
            assert!(facts.get("resolved").is_none(), "{}: {package} comes from anywhere", path.display());
        }
    }
}

fn check_pip(path: &Path, text: &str) {
    let pinned = text.lines().filter(|line| line.contains("==")).count();
    let hashed = text.lines().filter(|line| line.contains("==") && line.ends_with('\\')).count();
    assert!(pinned > 0 && pinned == hashed, "{}", path.display());
    assert!(!text.contains("://"), "{}", path.display());
}
