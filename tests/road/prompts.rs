//! A prompt arrives byte for byte, and nowhere else.

use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::git_bytes;
use crate::support::tasks::{shell, shell_with, string};

/// All that a shell, a JSON writer, a terminal or a C string would stumble over, but NUL itself.
const HOSTILE: &str = concat!(
    "'\"`$(id)${HOME}\\$x \\0 \\x00 \\u0000 %00 %s %n {{x}} && || ; | > < & ! # ~ * ? [a]\n",
    "\ttab\r\ncarriage\rreturn \u{1b}[2J\u{7}\u{8}\u{7f} end\n",
    "äöü \u{1f977} \u{202e}rtl\u{202c} \u{feff} \u{2028} \u{e000} \u{10ffff}\n",
    "-rf --help @file \\\n",
    "data: x\n\nevent: y\n",
);

fn heredoc(text: &str) -> String {
    assert!(text.ends_with('\n'));
    format!("cat > got <<'THE_END_OF_IT'\n{text}THE_END_OF_IT\n")
}

async fn got(kage: &TestKage, task: &Value) -> Vec<u8> {
    let run = &task["runs"][0];
    assert_eq!(run["state"], "succeeded", "{run}");
    git_bytes(&kage.mirror("demo"), ["show", &format!("{}:got", string(&run["branch"]))])
}

#[tokio::test]
async fn a_prompt_arrives_byte_for_byte() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let script = heredoc(HOSTILE);
    let task = kage.run(&shell(&script)).await;
    assert_eq!(got(&kage, &task).await, HOSTILE.as_bytes());
    assert_eq!(task["description"], script);

    // As long as it may be: 1 MiB.
    let line = format!("{}\n", "x'\"\\$`é".repeat(10));
    let room = (1 << 20) - heredoc("\n").len() + 1;
    let mut long = line.repeat(room / line.len());
    long.push_str(&"y".repeat(room - long.len() - 1));
    long.push('\n');
    let script = heredoc(&long);
    assert_eq!(script.len(), 1 << 20);
    let task = kage.run(&shell(&script)).await;
    assert!(got(&kage, &task).await == long.as_bytes(), "1 MiB is not what arrived");

    // The same through our own client, from standard input and from a file.
    let file = kage.folder.join("prompt");
    std::fs::write(&file, heredoc(HOSTILE)).expect("write");
    let path = file.to_str().expect("UTF-8");
    let output = kage.client(&["run", "--json", "--cli", "shell", "--file", path]).await;
    assert!(output.status.success(), "{output:?}");
    let summary = String::from_utf8(output.stdout).expect("UTF-8");
    let summary: Value = serde_json::from_str(summary.lines().last().expect("a line")).expect("JSON");
    assert_eq!(summary["event"], "summary");
    assert_eq!(got(&kage, &summary["data"]).await, HOSTILE.as_bytes());
}

#[tokio::test]
async fn the_context_arrives_as_json() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let context =
        json!({ "text": "'\"$(id)\n\\u0000", "list": [1, 2.5, null, true], "deep": { "ä": "\u{1f977}" } });
    let script = "printf %s \"$KAGE_CONTEXT\" > got; echo \"$KAGE_TASK_ID $KAGE_RUN $KAGE_ATTEMPT\"";
    let task = kage.run(&shell_with(script, &json!({ "context": context }))).await;
    let arrived: Value = serde_json::from_slice(&got(&kage, &task).await).expect("JSON");
    assert_eq!(arrived, context);
    let id = string(&task["id"]);
    let log = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await.text();
    assert_eq!(log, format!("{id} shell 1\n"));
}

#[tokio::test]
async fn the_engine_sees_neither_prompt_nor_context_nor_session() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_GRACE_SECS", "1")]).await;
    kage.demo().await;
    let script = "echo begun # marker-of-the-prompt\nsleep 1000";
    let context = json!({ "token": "marker-of-the-context" });
    let task = kage.submit(&shell_with(script, &json!({ "context": context }))).await;
    let (id, run) = (string(&task["id"]), string(&task["runs"][0]["id"]).replace('-', ""));
    kage.says(id, "shell", "begun").await;
    let session =
        std::fs::read_to_string(kage.data.join("runs").join(run).join("session")).expect("a session");
    assert!(session.len() >= 32);
    let containers = kage.containers();
    assert_eq!(containers.len(), 1);
    let seen = kage.docker(&["inspect", &containers[0]]);
    assert!(seen.contains(&kage.name), "it is our container");
    for secret in ["marker-of-the-prompt", "marker-of-the-context", session.trim(), &kage.key, "KAGE_"] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
    // Nor does any process's command line on this machine.
    let processes = kage.docker(&["top", &containers[0], "-eo", "pid,args"]);
    assert!(processes.contains("/bin/bash -s"), "{processes}");
    assert!(!processes.contains("marker"), "{processes}");
    assert_eq!(kage.delete(&format!("/api/v1/tasks/{id}")).await.status, 200);
    kage.ended(id).await;
    // What the audit keeps is its digest.
    let entries: Vec<String> = sqlx::query_scalar("SELECT details::text FROM audit_entries")
        .fetch_all(kage.pool())
        .await
        .expect("reads");
    assert!(!entries.is_empty() && !entries.iter().any(|entry| entry.contains("marker")), "{entries:?}");
    assert!(entries.iter().any(|entry| entry.contains("description_sha256")));
}
