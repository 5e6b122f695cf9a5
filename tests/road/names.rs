//! File names that a line, a quote or UTF-8 cannot hold.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::TestKage;
use crate::support::git::{git, git_bytes};
use crate::support::tasks::{shell, string};

/// As `printf` writes them, and as they are.
const NAMES: [(&str, &[u8]); 12] = [
    ("new\\nline", b"new\nline"),
    ("quo\\042te\\047s", b"quo\"te's"),
    ("-rf", b"-rf"),
    ("--help", b"--help"),
    ("\\377\\376bad", b"\xff\xfebad"),
    ("half \\303", b"half \xc3"),
    ("tab\\tback\\\\slash", b"tab\tback\\slash"),
    (" leading and trailing ", b" leading and trailing "),
    ("\\033[31mred\\a", b"\x1b[31mred\x07"),
    ("$(id)`id`;#&|", b"$(id)`id`;#&|"),
    ("\\360\\237\\245\\267", "\u{1f977}".as_bytes()),
    ("dir\\n/-x/..x", b"dir\n/-x/..x"),
];

#[tokio::test]
async fn every_name_that_a_file_can_have_comes_back() {
    let kage = TestKage::serving(&[]).await;
    let upstream = kage.demo().await;
    // A leading dash is no option where the path begins with "./"; the dot saves a newline at the end.
    let mut script = r#"
set -e
put() { n=$(printf -- "$1."); n=./${n%.}; mkdir -p "$(dirname "$n")"; printf %s "$2" > "$n"; }
"#
    .to_owned();
    for (number, (format, _)) in NAMES.iter().enumerate() {
        script.push_str(&format!("put '{format}' {number}\n"));
    }
    let task = kage.run(&shell(&script)).await;
    let (id, run) = (string(&task["id"]), &task["runs"][0]);
    let log = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/log")).await.text();
    assert_eq!(run["state"], "succeeded", "{run}\n{log}");

    let (mirror, branch) = (kage.mirror("demo"), string(&run["branch"]));
    let listed = git_bytes(&mirror, ["ls-tree", "-r", "-z", "--name-only", branch]);
    let listed: Vec<&[u8]> = listed.split(|byte| *byte == 0).collect();
    for (_, name) in NAMES {
        assert!(listed.contains(&name), "{:?} is not in {listed:?}", String::from_utf8_lossy(name));
    }
    let files = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/files")).await.json();
    let told: Vec<Vec<u8>> = files["files"].as_array().expect("a list").iter().map(path).collect();
    let mut expected: Vec<Vec<u8>> = NAMES.iter().map(|(_, name)| name.to_vec()).collect();
    expected.sort();
    let mut sorted = told.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert_eq!(run["files_changed"], NAMES.len());

    // The patch names them so that git finds them again.
    let patch = kage.folder.join("patch");
    std::fs::write(&patch, &kage.get(&format!("/api/v1/tasks/{id}/runs/shell/diff")).await.body)
        .expect("write");
    git(&upstream, ["apply", "--index", patch.to_str().expect("UTF-8")]);
    assert_eq!(git(&upstream, ["write-tree"]), git(&mirror, ["rev-parse", &format!("{branch}^{{tree}}")]));

    // And a watcher sees them as well, in events and in the terminal.
    let events = kage.events(id, "").await;
    let result = events.iter().find(|event| event.name == "result").expect("a result");
    assert_eq!(result.data["files_modified"].as_array().map(Vec::len), Some(NAMES.len()));
    let shown = kage.client(&["task", id]).await;
    assert!(shown.status.success());
    assert!(!shown.stdout.contains(&0x1b), "{:?}", String::from_utf8_lossy(&shown.stdout));
}

fn path(file: &Value) -> Vec<u8> {
    let text = string(&file["path"]);
    match file["path_base64"].as_str() {
        None => text.as_bytes().to_vec(),
        Some(encoded) => {
            let bytes = STANDARD.decode(encoded).expect("base64");
            assert_eq!(String::from_utf8_lossy(&bytes), text);
            bytes
        }
    }
}

/// What a task's answer names of it does not grow with it; the list of files has everything, page by page.
#[tokio::test]
async fn many_long_names_make_no_long_answers() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    // Bytes that are no UTF-8 take three times the room.
    let script = "mkdir many; cd many; for i in $(seq 3000); do printf -v name '%04d%0200d' $i 0; \
                  name=${name//0/$'\\377'}; : > \"$i$name\"; done";
    let task = kage.run(&shell(script)).await;
    let (id, run) = (string(&task["id"]), &task["runs"][0]);
    assert_eq!((&run["state"], &run["files_changed"]), (&"succeeded".into(), &3000.into()), "{run}");

    let result = &task["cli_results"][0];
    assert_eq!(result["files_modified_truncated"], true);
    assert_eq!(result["files_modified_total"], 3000);
    let named = result["files_modified"].as_array().expect("a list");
    assert!((10..1000).contains(&named.len()), "{}", named.len());
    for path in [format!("/api/v1/tasks/{id}"), "/api/v1/tasks".to_owned()] {
        let bytes = kage.get(&path).await.body.len();
        assert!(bytes < 200_000, "{path}: {bytes} bytes");
    }
    for event in kage.events(id, "").await {
        let bytes = event.data.to_string().len();
        assert!(bytes < 200_000, "{}: {bytes} bytes", event.name);
    }

    let files = format!("/api/v1/tasks/{id}/runs/shell/files");
    let whole = kage.get(&files).await.json();
    let all = whole["files"].as_array().expect("a list");
    assert_eq!((all.len(), &whole["total"], whole.get("next")), (3000, &3000.into(), None));
    let (mut paged, mut after) = (Vec::new(), 0);
    loop {
        let page = kage.get(&format!("{files}?after={after}&limit=700")).await.json();
        paged.extend(page["files"].as_array().expect("a list").iter().cloned());
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(&paged, all);
    assert_eq!(kage.get(&format!("{files}?after=3000")).await.json()["files"], serde_json::json!([]));
    for query in ["limit=0", "limit=10001", "after=-1", "page=1"] {
        kage.get(&format!("{files}?{query}")).await.problem(422);
    }
}
