//! Repositories: what may be registered, fetched, worked on and removed.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::git::{commit_all, git, write_files};
use crate::support::tasks::{shell, string};
use crate::support::{TestKage, eventually};

fn on(repository: &str, script: &str) -> Value {
    let mut task = shell(script);
    task["repository"] = json!(repository);
    task
}

/// The branch of a task's only run, which must have succeeded.
fn branch(task: &Value) -> &str {
    let run = &task["runs"][0];
    assert_eq!(run["state"], "succeeded", "{run}");
    string(&run["branch"])
}

#[tokio::test]
async fn only_what_the_operator_allowed_is_taken() {
    let kage = TestKage::serving(&[]).await;
    let register = async |name: &str, source: &str| {
        kage.post("/api/v1/repositories", &json!({ "name": name, "source": source })).await
    };
    let (sources, proof) = (kage.sources.display().to_string(), kage.folder.join("proof"));
    let outside = kage.folder.join("outside");
    std::fs::create_dir(&outside).expect("mkdir");
    git(&outside, ["init", "--quiet"]);
    commit_all(&outside, "secret");
    for source in [
        "/etc".to_owned(),
        outside.display().to_string(),
        format!("{sources}-private"),
        format!("{sources}/../outside"),
        format!("{sources}/./x"),
        format!("{sources}/x\n"),
        format!("{sources}/x\u{0}"),
        format!("ext::sh -c 'touch {}'", proof.display()),
        format!("--upload-pack=touch {}", proof.display()),
        "-x".to_owned(),
        String::new(),
        "relative/path".to_owned(),
        format!("file://{sources}/demo"),
        "http://127.0.0.1/x".to_owned(),
        "https://127.0.0.1/x".to_owned(),
        "https://user:password@127.0.0.1/x".to_owned(),
        "ssh://-oProxyCommand=id/x".to_owned(),
        "git@127.0.0.1:x".to_owned(),
        "git://127.0.0.1/x".to_owned(),
        "https://127.0.0.1/x\r".to_owned(),
        "https://127.0.0.1/\u{1b}[2J".to_owned(),
    ] {
        let problem = register("bad", &source).await.problem(422);
        assert!(string(&problem["detail"]).starts_with("source: "), "{source}: {problem}");
        assert!(!problem.to_string().contains("password@"), "{problem}");
    }
    for name in ["", "-x", ".x", "A", "a/b", "..", "a b", "x.lock", "ä", "a\u{0}", &"x".repeat(65)] {
        let problem = register(name, &format!("{sources}/x")).await.problem(422);
        assert!(string(&problem["detail"]).starts_with("name: "), "{name:?}: {problem}");
    }
    let body = json!({ "name": "x", "source": sources, "more": 1 });
    kage.post("/api/v1/repositories", &body).await.problem(422);
    assert_eq!(kage.get("/api/v1/repositories").await.json()["repositories"], json!([]));

    // What only the runner can see: it resolves links, and looks at what is there.
    symlink(&outside, kage.sources.join("link")).expect("symlink");
    let escaped = kage.register("escaped", &kage.sources.join("link")).await;
    assert_eq!(escaped["state"], "failed");
    assert!(string(&escaped["error"]).contains("not allowed"), "{escaped}");
    let missing = kage.register("missing", &kage.sources.join("missing")).await;
    assert_eq!(missing["state"], "failed");
    std::fs::create_dir(kage.sources.join("plain")).expect("mkdir");
    let plain = kage.register("plain", &kage.sources.join("plain")).await;
    assert_eq!((&plain["state"], plain["error"].is_string()), (&json!("failed"), true));
    let problem = kage.post("/api/v1/tasks", &on("escaped", "echo a task")).await.problem(422);
    assert!(string(&problem["detail"]).contains("cannot be used yet"), "{problem}");
    assert!(!proof.exists());
}

/// A port of this machine, and how often somebody came to it.
fn listener() -> (u16, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let count: std::sync::Arc<std::sync::atomic::AtomicUsize> = std::sync::Arc::default();
    let counted = std::sync::Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    });
    (port, count)
}

#[tokio::test]
async fn a_host_in_a_network_of_ours_is_not_spoken_to() {
    let (port, count) = listener();
    let came = || count.load(std::sync::atomic::Ordering::SeqCst);
    let hosts =
        ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "127.1", "169.254.169.254", "[::ffff:127.0.0.1]"];
    let sources: Vec<String> = hosts
        .iter()
        .flat_map(|host| [format!("https://{host}:{port}/x"), format!("ssh://git@{host}:{port}/x")])
        .collect();
    let allow = sources.join(",");
    let kage = TestKage::serving(&[("KAGE_REPOSITORIES_ALLOW", &allow)]).await;
    for (number, source) in sources.iter().enumerate() {
        let body = json!({ "name": format!("r{number}"), "source": source });
        let answer = kage.post("/api/v1/repositories", &body).await;
        if number > 1 {
            // Seen without looking anything up.
            answer.problem(422);
            continue;
        }
        assert_eq!(answer.status, 202, "{source}");
        let repository = kage.fetched(&format!("r{number}")).await;
        assert_eq!(repository["state"], "failed", "{repository}");
        assert!(string(&repository["error"]).contains("is no public address"), "{repository}");
    }
    assert_eq!(came(), 0);

    // The operator can name one: then git does come.
    let named =
        [("KAGE_REPOSITORIES_ALLOW", allow.as_str()), ("KAGE_REPOSITORIES_ALLOW_PRIVATE", "localhost")];
    let kage = TestKage::serving(&named).await;
    kage.post("/api/v1/repositories", &json!({ "name": "r", "source": sources[0] })).await;
    let repository = kage.fetched("r").await;
    assert!(string(&repository["error"]).contains("git fetch failed"), "{repository}");
    assert!(came() > 0);
    kage.post("/api/v1/repositories", &json!({ "name": "q", "source": sources[2] })).await.problem(422);
}

#[tokio::test]
async fn what_only_root_can_read_is_not_fetched() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let kage = TestKage::serving(&[]).await;
    let closed = kage.make_repository("closed", &[("a", b"a\n")]);
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).expect("chmod");
    let repository = kage.register("closed", &closed).await;
    assert_eq!(repository["state"], "failed");
    assert!(string(&repository["error"]).contains("only root can read it"), "{repository}");
    // A user's own folder is fetched as that user.
    let theirs = kage.make_repository("theirs", &[("a", b"a\n")]);
    let all = walkdir(&theirs);
    all.iter().for_each(|path| chown(path, Some(10_555), Some(10_555)).expect("chown"));
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o700)).expect("chmod");
    assert_eq!(kage.register("theirs", &theirs).await["state"], "ready");
}

fn walkdir(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = vec![folder.to_owned()];
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() { all.extend(walkdir(&path)) } else { all.push(path) }
    }
    all
}

#[tokio::test]
async fn a_link_below_the_allowed_folder_is_followed_within_it() {
    let kage = TestKage::serving(&[]).await;
    let real = kage.make_repository("real", &[("a", b"a\n")]);
    symlink(&real, kage.sources.join("alias")).expect("symlink");
    assert_eq!(kage.register("alias", &kage.sources.join("alias")).await["state"], "ready");
    // Its only repository needs no name.
    let mut task = shell("echo b > b");
    task.as_object_mut().expect("an object").remove("repository");
    let task = kage.run(&task).await;
    assert_eq!(git(&kage.mirror("alias"), ["show", &format!("{}:b", branch(&task))]), "b");
}

#[tokio::test]
async fn fetched_anew_and_started_from_any_revision() {
    let kage = TestKage::serving(&[]).await;
    let upstream = kage.demo().await;
    kage.post("/api/v1/repositories", &json!({ "name": "demo", "source": upstream })).await.problem(409);
    let first = git(&upstream, ["rev-parse", "HEAD"]);
    write_files(&upstream, &[("second", b"second\n")]);
    let second = commit_all(&upstream, "Second");
    git(&upstream, ["tag", "--annotate", "--message", "v", "v1", &first]);
    git(&upstream, ["branch", "topic/deep", &first]);

    // Not known before it is fetched.
    let mut task = on("demo", "git rev-parse HEAD; git status --porcelain; echo x > x");
    task["base_revision"] = json!("topic/deep");
    kage.post("/api/v1/tasks", &task).await.problem(422);
    assert_eq!(kage.post("/api/v1/repositories/demo/fetch", &json!({})).await.status, 202);
    let fetched = eventually("the new commit is fetched", async || {
        let repository = kage.get("/api/v1/repositories/demo").await.json();
        (repository["refs"]["main"] == second.as_str()).then_some(repository)
    })
    .await;
    assert_eq!(fetched["default_branch"], "main");
    assert_eq!(fetched["refs"], json!({ "main": second, "topic/deep": first, "v1": first }));
    for (revision, commit) in [
        (Value::Null, &second),
        (json!("main"), &second),
        (json!("topic/deep"), &first),
        (json!("v1"), &first),
        (json!(first), &first),
        (json!(first[..10]), &first),
    ] {
        task["base_revision"] = revision.clone();
        let done = kage.run(&task).await;
        assert_eq!(done["runs"][0]["base_commit"], commit.as_str(), "{revision}");
        let parent = git(&kage.mirror("demo"), ["rev-parse", &format!("{}^", branch(&done))]);
        assert_eq!(&parent, commit);
        // The CLI's own git says the same, and that nothing is changed yet.
        let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&done["id"]))).await.text();
        assert_eq!(log, format!("{commit}\n"), "{revision}");
    }
    // What tasks left is no branch of the repository's, and outlives the next fetch.
    kage.post("/api/v1/repositories/demo/fetch", &json!({})).await;
    let again = kage.fetched("demo").await;
    assert_eq!(again["refs"], fetched["refs"]);
    assert_eq!(git(&kage.mirror("demo"), ["branch", "--list", "task-*"]).lines().count(), 6);
}

#[tokio::test]
async fn removed_once_no_task_works_on_it() {
    let kage = TestKage::serving(&[("KAGE_RUNNER_GRACE_SECS", "1")]).await;
    let upstream = kage.demo().await;
    let task = kage.submit(&shell("echo begun > file; echo begun; sleep 1000")).await;
    let id = string(&task["id"]);
    kage.says(id, "shell", "begun").await;
    let problem = kage.delete("/api/v1/repositories/demo").await.problem(409);
    assert!(string(&problem["detail"]).contains("1 unfinished"), "{problem}");
    assert_eq!(kage.get("/api/v1/repositories/demo").await.json()["state"], "ready");
    kage.delete(&format!("/api/v1/tasks/{id}")).await;
    kage.ended(id).await;

    let output = kage.client(&["repo", "rm", "demo"]).await;
    assert!(output.status.success(), "{output:?}");
    kage.get("/api/v1/repositories/demo").await.problem(404);
    kage.delete("/api/v1/repositories/demo").await.problem(404);
    kage.post("/api/v1/tasks", &shell("echo a task")).await.problem(422);
    assert!(!kage.mirror("demo").exists());
    assert!(upstream.join(".git").exists(), "the source is not touched");
    // What it did is still told.
    assert_eq!(kage.task(id).await["status"], "cancelled");
    assert!(kage.get(&format!("/api/v1/tasks/{id}/runs/shell/diff")).await.text().contains("+begun"));
    // And its name is free.
    assert_eq!(kage.register("demo", &upstream).await["state"], "ready");
}

#[tokio::test]
async fn repositories_of_every_shape() {
    let kage = TestKage::serving(&[]).await;
    let upstream = kage.make_repository("full", &[("a", b"a\n"), ("dir/b", b"b\n")]);
    write_files(&upstream, &[("c", b"c\n")]);
    let head = commit_all(&upstream, "Second");
    let sources = kage.sources.clone();
    let clone = |name: &str, options: &[&str]| {
        let url = format!("file://{}", upstream.display());
        let args: Vec<&str> = [&["clone", "--quiet"], options, &[&url, name]].concat();
        git(&sources, args);
        sources.join(name)
    };
    for (name, options) in [("bare", &["--bare"][..]), ("shallow", &["--depth", "1"])] {
        let repository = kage.register(name, &clone(name, options)).await;
        assert_eq!(repository["state"], "ready", "{name}: {repository}");
        let task =
            kage.run(&on(name, "git log --oneline | wc -l; git status --porcelain; echo x > dir/b")).await;
        let mirror = kage.mirror(name);
        assert_eq!(git(&mirror, ["rev-parse", &format!("{}^", branch(&task))]), head, "{name}");
        assert_eq!(git(&mirror, ["diff", "--name-only", &head, branch(&task)]), "dir/b", "{name}");
    }
    without_a_commit(&kage).await;
    with_a_submodule(&kage, &upstream).await;
    with_links(&kage).await;
}

async fn without_a_commit(kage: &TestKage) {
    let empty = kage.sources.join("empty");
    std::fs::create_dir(&empty).expect("mkdir");
    git(&empty, ["init", "--quiet", "--initial-branch", "trunk"]);
    let repository = kage.register("empty", &empty).await;
    assert_eq!((&repository["state"], &repository["refs"]), (&json!("ready"), &json!({})), "{repository}");
    let task = kage.run(&on("empty", "git status --short --branch; echo first > first")).await;
    let mirror = kage.mirror("empty");
    assert_eq!(git(&mirror, ["rev-list", "--parents", branch(&task)]).split(' ').count(), 1, "no parent");
    assert_eq!(git(&mirror, ["ls-tree", "-r", "--name-only", branch(&task)]), "first");
    let nothing = kage.run(&on("empty", "ls -A | grep -v git")).await;
    assert_eq!(nothing["runs"][0]["state"], "failed", "grep finds nothing: {nothing}");
}

async fn with_a_submodule(kage: &TestKage, inner: &Path) {
    let outer = kage.make_repository("outer", &[("top", b"top\n")]);
    let url = format!("file://{}", inner.display());
    git(&outer, ["submodule", "--quiet", "add", &url, "sub"]);
    let head = commit_all(&outer, "With a submodule");
    assert_eq!(kage.register("outer", &outer).await["state"], "ready");
    let task = kage.run(&on("outer", "ls -A sub; git status --porcelain; echo new >> top")).await;
    let mirror = kage.mirror("outer");
    // Its commit is as it was, and what is in it is not fetched for a hostile run.
    assert_eq!(git(&mirror, ["diff", "--name-only", &head, branch(&task)]), "top");
    assert!(git(&mirror, ["ls-tree", branch(&task), "sub"]).starts_with("160000 commit"));
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&task["id"]))).await.text();
    assert_eq!(log, "");
}

async fn with_links(kage: &TestKage) {
    let folder = kage.make_repository("links", &[("real/file", b"old\n")]);
    symlink("real", folder.join("link")).expect("symlink");
    symlink("/etc/passwd", folder.join("passwd")).expect("symlink");
    symlink("../../../../../../etc", folder.join("up")).expect("symlink");
    let head = commit_all(&folder, "With links");
    assert_eq!(kage.register("links", &folder).await["state"], "ready");
    let script = "echo new > link/file; ln -s /proc/1/environ environ; ln -sfn /etc/shadow passwd; mkdir d; ln -s .. d/up";
    let task = kage.run(&on("links", script)).await;
    let mirror = kage.mirror("links");
    let changed = git(&mirror, ["diff", "--name-status", &head, branch(&task)]);
    assert_eq!(changed, "A\td/up\nA\tenviron\nM\tpasswd\nM\treal/file");
    // Links are links, whatever they point to.
    assert_eq!(git(&mirror, ["show", &format!("{}:passwd", branch(&task))]), "/etc/shadow");
    assert_eq!(git(&mirror, ["show", &format!("{}:environ", branch(&task))]), "/proc/1/environ");
    for link in ["passwd", "environ", "link", "up", "d/up"] {
        assert!(git(&mirror, ["ls-tree", branch(&task), link]).starts_with("120000 blob"), "{link}");
    }
}
