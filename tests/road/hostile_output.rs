//! Probes 88 to 90: what a run writes, on a terminal, in a browser and in our own log.

use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::{commit_all, git, git_bytes, write_files};
use crate::support::http::{Answer, send};
use crate::support::tasks::{shell, string};

/// Clipboard, link and title; a question that the terminal answers as if typed; colours, erasing, the same in C1, as one
/// byte and as UTF-8; overwriting; reversing. As `printf` writes them.
const SEQUENCES: [&str; 11] = [
    r"\033]52;c;cHduZWQ=\007",
    r"\033]8;;http://pwned.invalid\033\\click\033]8;;\033\\",
    r"\033]0;pwned\007",
    r"\033P$qm\033\\",
    r"\033[2J\033[1;1H\033[31m",
    r"\033[21t\033[6n\033c",
    r"\23331m",
    r"\302\23331m\302\235",
    r"honest\rpwned",
    r"\342\200\256gnp.exe\342\201\246",
    r"back\010\010\010\177\016",
];

/// What must not get to a terminal: every control character that moves, erases, asks or reverses.
fn assert_inert(shown: &[u8], what: &str) {
    let text = String::from_utf8_lossy(shown).into_owned();
    // What our own view needs: colours, up, clear the line, hide and show the cursor; a line end is CR LF here.
    let ours = regex::Regex::new("\x1b\\[(\\?25[hl]|\\?2026[hl]|\\?2004[hl]|[0-9;]*m|[0-9]*[ABCDGJKP])")
        .expect("a pattern");
    let rest = ours.replace_all(&text, "").replace("\r\n", "\n");
    for (number, line) in rest.split('\n').enumerate() {
        // A view that draws anew begins its line with a CR; nothing of a run's stands before one.
        let line = line.trim_matches('\r');
        let bad = line.chars().find(|&char| {
            char.is_control() && char != '\t'
                || matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        });
        assert!(bad.is_none_or(|char| char == '\r'), "{what}: {bad:?} in line {number}: {line:?}");
    }
    for bad in [
        "\x1b]",
        "\x1bP",
        "\x1bc",
        "\x1b[2J",
        "\x1b[6n",
        "\x1b[21t",
        "honest\rpwned",
        "\u{9b}",
        "\u{9d}",
        "\u{202e}",
    ] {
        assert!(!text.contains(bad), "{what}: {bad:?} in {text:?}");
    }
}

impl TestKage {
    /// `kage` on a terminal of its own; all that the terminal was sent.
    async fn on_terminal(&self, args: &str) -> (Option<i32>, Vec<u8>) {
        let line = format!("stty cols 120 rows 40; exec '{}' {args}", env!("CARGO_BIN_EXE_kage"));
        let mut command = std::process::Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").expect("set"));
        command.env("HOME", &self.folder).env("TERM", "xterm").env("KAGE_URL", &self.url);
        command.env("KAGE_API_KEY", &self.key).current_dir(&self.folder).stdin(Stdio::null());
        let run = tokio::task::spawn_blocking(move || command.output().expect("these tests need util-linux"));
        let output = run.await.expect("no panic");
        (output.status.code(), output.stdout)
    }
}

#[tokio::test]
async fn probe_88_nothing_that_a_run_writes_moves_a_terminal() {
    let kage = TestKage::serving(&[]).await;
    let upstream = kage.demo().await;
    // A branch's name and a commit's text, of a repository that nobody here wrote.
    write_files(&upstream, &[("more", b"more\n")]);
    commit_all(&upstream, "\u{1b}]0;pwned\u{7}\u{202e} a commit");
    git(&upstream, ["branch", "-m", "main", "m\u{202e}\u{2066}niam"]);
    kage.post("/api/v1/repositories/demo/fetch", &json!({})).await;
    kage.fetched("demo").await;

    let mut script = String::new();
    for (number, sequence) in SEQUENCES.iter().enumerate() {
        // In the output, in a file's name and in its content.
        script.push_str(&format!(
            "printf '{sequence} out\\n'; printf '{sequence} err\\n' >&2; n=$(printf '{sequence}' | tr -d /); "
        ));
        script.push_str(&format!("printf '{sequence} in\\n' > \"./$n-{number}\"; "));
    }
    let prompt = kage.folder.join("prompt");
    // The prompt itself is shown too; what stands behind the `#` is for the eyes alone.
    let text = format!("{script}\nexit 0 # \u{1b}]0;pwned\u{7}\u{9b}31m\rover\u{202e}\n");
    std::fs::write(&prompt, &text).expect("written");
    let (code, shown) = kage.on_terminal(&format!("run --cli shell --file {}", prompt.display())).await;
    assert_eq!(code, Some(0), "{}", String::from_utf8_lossy(&shown));
    assert_inert(&shown, "run");
    let tasks = kage.get("/api/v1/tasks").await.json();
    let id = string(&tasks["tasks"][0]["id"]).to_owned();
    for (args, must) in [
        (format!("logs {id}"), "\\x1b]52;c;cHduZWQ=\\x07"),
        (format!("logs -f {id}"), "\\x1b]52;c;cHduZWQ=\\x07"),
        (format!("diff {id}"), "\\x1b]52;c;cHduZWQ=\\x07"),
        (format!("task {id}"), "\\x1b]0;pwned\\x07"),
        ("tasks".to_owned(), "completed"),
        ("repo list".to_owned(), "demo"),
    ] {
        let (code, shown) = kage.on_terminal(&args).await;
        let text = String::from_utf8_lossy(&shown).into_owned();
        assert_eq!(code, Some(0), "{args}: {text:?}");
        assert!(text.contains(must), "{args}: {text:?}");
        assert_inert(&shown, &args);
    }
    // Kept as it was written, and so is the branch.
    let log = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await.body;
    for raw in [
        &b"\x1b]52;c;cHduZWQ=\x07 out\n"[..],
        b"\x9b31m err\n",
        b"honest\rpwned out\n",
        b"\xe2\x80\xaegnp.exe",
    ] {
        assert!(log.windows(raw.len()).any(|window| window == raw), "{:?}", String::from_utf8_lossy(raw));
    }
    // What it does where nothing is escaped: a pipe gets the bytes, and a terminal behind it would obey.
    let piped = kage.client(&["logs", &id]).await;
    assert_eq!(piped.stdout, log);
    let branch = format!("task-{id}-shell");
    let names = git_bytes(&kage.mirror("demo"), ["ls-tree", "-r", "-z", "--name-only", &branch]);
    assert!(
        names.windows(13).any(|window| window == b"\x1b]0;pwned\x07-2\0"),
        "{}",
        String::from_utf8_lossy(&names)
    );
}

/// What a browser would run, were it shown as a page.
const PAGE: &str = "<!doctype html><html><body><img src=x onerror=alert(1)><svg onload=alert(2)></svg><script>alert(3)</script></body></html>";

fn assert_no_page(answer: &Answer, what: &str) {
    assert_eq!(answer.header("x-content-type-options"), "nosniff", "{what}");
    assert_eq!(answer.header("x-frame-options"), "DENY", "{what}");
    assert_eq!(answer.header("referrer-policy"), "no-referrer", "{what}");
    assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{what}");
    assert!(answer.header("access-control-allow-origin").is_empty(), "{what}");
    let policy = answer.header("content-security-policy");
    assert!(
        policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
        "{what}: {policy}"
    );
    assert!(
        !policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"),
        "{what}: {policy}"
    );
}

#[tokio::test]
async fn probe_89_no_answer_is_a_page_that_runs_anything() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let script = format!(
        "printf '%s' '{PAGE}' | tee x.html x.svg '<img src=x onerror=alert(1)>.md'; echo x > 'javascript:alert(1)'"
    );
    let task = kage.run(&shell(&script)).await;
    assert_eq!(task["runs"][0]["state"], "succeeded", "{task}");
    let id = string(&task["id"]);

    // Every operation that there is, from our own description of them; with a key, without one, and as a browser asks.
    let description = kage.get("/openapi.json").await.json();
    let mut seen = 0;
    for (path, operations) in description["paths"].as_object().expect("an object") {
        let path = path
            .replace("{id}", id)
            .replace("{cli}", "shell")
            .replace("{name}", "demo")
            .replace("{approval}", id)
            .replace("{index}", "0")
            // The log has more entries than one by now, and less than a whole tile.
            .replace("{path}", "0/000.p/1");
        assert!(!path.contains('{'), "a parameter that this test does not know: {path}");
        for method in operations.as_object().expect("an object").keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            // What it would change is tried without the key alone.
            let mut requests = vec![kage.bare_request(method.clone(), &path)];
            if method == Method::GET {
                requests.push(kage.request(method.clone(), &path));
                requests.push(kage.request(method.clone(), &path).header("Accept", "text/html,*/*;q=0.8"));
            }
            for request in requests {
                let answer = send(request).await;
                let what = format!("{method} {path}: {}", answer.status);
                assert_no_page(&answer, &what);
                assert!(answer.header("content-security-policy").contains("sandbox"), "{what}");
                let kind = answer.header("content-type");
                match kind {
                    "text/plain; charset=utf-8"
                    | "text/x-diff; charset=utf-8"
                    | "application/x-ndjson"
                    | "application/octet-stream" => {
                        assert!(answer.header("content-disposition").starts_with("attachment;"), "{what}");
                    }
                    "application/json" | "application/problem+json" | "text/event-stream" => {}
                    _ => assert!(answer.body.is_empty(), "{what}: {kind}"),
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "only {seen} answers");
    for path in ["/nothing", "/api/v1/tasks/x", "/docsx", "/%00", "/openapi.json"] {
        assert_no_page(&kage.get(path).await, path);
    }
    for (path, text) in [("log", PAGE), ("diff", "onerror=alert(1)"), ("files", "javascript:alert(1)")] {
        let answer = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/{path}")).await;
        assert!(answer.text().contains(text), "the payload is in {path}: {}", answer.text());
    }
    let inline = regex::Regex::new("<script(?:[^>]*)>\\s*[^<\\s]|<style|\\son[a-z]+=|src=\"(?:https?:)?//")
        .expect("a pattern");
    // The one page, and what belongs to it: from here alone, and nothing between its lines.
    for (file, kind) in [
        ("", "text/html"),
        ("swagger-ui.css", "text/css"),
        ("swagger-initializer.js", "text/javascript"),
        ("swagger-ui-bundle.js", "text/javascript"),
    ] {
        let answer = kage.get(&format!("/docs/{file}")).await;
        assert_eq!(answer.status, 200, "{file}");
        assert_no_page(&answer, file);
        assert!(answer.header("content-security-policy").contains("script-src 'self';"), "{file}");
        assert!(answer.header("content-type").starts_with(kind), "{file}: {}", answer.header("content-type"));
        if file.is_empty() {
            assert!(!inline.is_match(&answer.text()), "{}", answer.text());
        }
    }
}

/// Ends the line, pretends to be one of ours, moves the cursor, hides and reverses.
const FORGED: &str = "x\n{\"level\":\"INFO\",\"message\":\"forged\"}\r\n\u{1b}[2J\u{9b}31m\u{2028}{\"message\":\"forged\"}\u{85}\u{202e}\u{feff}";

#[tokio::test]
async fn probe_90_every_line_of_our_log_is_one_event_of_ours() {
    let mut kage = TestKage::new().await;
    // Everything that any part of it has to say.
    kage.set(
        "KAGE_LOG",
        "trace,sqlx=debug,hyper=debug,hyper_util=debug,h2=info,mio=info,tokio_postgres=info",
    );
    // The log names what is not known here: the one setting whose words come back.
    kage.set("KAGE_RUNNER_ACCEPT_HOST", FORGED);
    let index = kage.start("serve").await;
    kage.demo().await;
    let mut task = shell(&format!(
        "printf '%s' \"$KAGE_CONTEXT\"; echo x > $'f\\n{{\"message\":\"forged\"}}'; exit 3\n# {FORGED}"
    ));
    task["cli_assignments"][0]["context"] = json!({ "note": FORGED });
    let done = kage.run(&task).await;
    assert_eq!(done["runs"][0]["state"], "failed", "{done}");
    // Refused ones have their words in answers, and perhaps in logs.
    let mut refused = shell(FORGED);
    refused["repository"] = json!(FORGED);
    kage.post("/api/v1/tasks", &refused).await.problem(422);
    kage.post("/api/v1/repositories", &json!({ "name": "n", "source": FORGED })).await.problem(422);
    let escaped: String = FORGED.bytes().map(|byte| format!("%{byte:02X}")).collect();
    kage.get(&format!("/api/v1/repositories/{escaped}")).await.problem(404);
    // A source whose own words git repeats: they come to the repository's record, and to the log if anything does.
    let upstream = kage.make_repository("evil", &[("a", b"a\n")]);
    std::fs::write(upstream.join(".git/config"), format!("[core]\n\tx = {}\n[", FORGED.replace('\n', "\\n")))
        .expect("written");
    let failed = kage.register("evil", &upstream).await;
    assert_eq!(failed["state"], "failed", "{failed}");

    let log = kage.process(index).log();
    let mut marked = 0;
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(event["level"].is_string() && event["timestamp"].is_string(), "{line:?}");
        assert_ne!(event["message"], "forged", "{line:?}");
        assert!(
            !line.chars().any(|char| char.is_control() || "\u{2028}\u{2029}\u{202e}\u{feff}".contains(char)),
            "{line:?}"
        );
        marked += usize::from(line.contains("forged"));
    }
    assert!(log.lines().count() > 100 && marked > 0, "{marked} lines hold the words: {log}");
}
