//! Probes 68 and 69: a repository that is itself the attack, from `POST /repositories` and `POST /tasks` on.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use git2::{ObjectType, Oid, Repository};
use serde_json::{Value, json};

use crate::support::TestKage;
use crate::support::git::git;
use crate::support::tasks::{shell, string};

/// Mode, name and object, as they stand in a tree.
type RawEntry<'a> = (&'a str, &'a [u8], Oid);

/// Writes a tree as it is, however wrong.
fn raw_tree(repository: &Repository, entries: &[RawEntry<'_>]) -> Oid {
    let mut bytes = Vec::new();
    for (mode, name, id) in entries {
        bytes.extend_from_slice(mode.as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(id.as_bytes());
    }
    repository.odb().expect("a store").write(ObjectType::Tree, &bytes).expect("written")
}

/// Makes a tree the only commit of `main`.
fn publish(repository: &Repository, tree: Oid) {
    let text =
        format!("tree {tree}\nauthor x <x@localhost> 1 +0000\ncommitter x <x@localhost> 1 +0000\n\nx\n");
    let commit =
        repository.odb().expect("a store").write(ObjectType::Commit, text.as_bytes()).expect("written");
    repository.reference("refs/heads/main", commit, true, "").expect("set");
}

fn hostile(kage: &TestKage, name: &str) -> (PathBuf, Repository) {
    let folder = kage.make_repository(name, &[("a", b"a\n")]);
    let repository = Repository::open(&folder).expect("opens");
    (folder, repository)
}

#[tokio::test]
async fn probe_69_what_fsck_finds_is_refused_and_nothing_of_it_kept() {
    type Make = fn(&Repository) -> Oid;
    let kage = TestKage::serving(&[]).await;
    let cases: [(&str, Make); 8] = [
        ("has-dotgit", |repository| {
            let inner = raw_tree(repository, &[("100644", b"x", repository.blob(b"x").expect("written"))]);
            raw_tree(repository, &[("40000", b".GIT", inner)])
        }),
        ("has-dotdot", |repository| {
            let inner = raw_tree(repository, &[("100644", b"x", repository.blob(b"x").expect("written"))]);
            raw_tree(repository, &[("40000", b"..", inner)])
        }),
        ("full-pathname", |repository| {
            raw_tree(repository, &[("100644", b"a/b", repository.blob(b"x").expect("written"))])
        }),
        ("gitmodules-url", |repository| {
            let text = b"[submodule \"x\"]\n\tpath = x\n\turl = -u./payload\n";
            raw_tree(repository, &[("100644", b".gitmodules", repository.blob(text).expect("written"))])
        }),
        ("gitmodules-name", |repository| {
            let text = b"[submodule \"../x\"]\n\tpath = x\n\turl = https://127.0.0.1/x\n";
            raw_tree(repository, &[("100644", b".gitmodules", repository.blob(text).expect("written"))])
        }),
        ("gitmodules-link", |repository| {
            let link = repository.blob(b"/etc/passwd").expect("written");
            raw_tree(repository, &[("120000", b".gitmodules", link)])
        }),
        ("null-sha1", |repository| {
            raw_tree(repository, &[("160000", b"a", Oid::from_bytes(&[0; 20]).expect("twenty"))])
        }),
        ("not-sorted", |repository| {
            let id = repository.blob(b"x").expect("written");
            raw_tree(repository, &[("100644", b"b", id), ("100644", b"a", id)])
        }),
    ];
    for (name, make) in cases {
        let (folder, repository) = hostile(&kage, name);
        publish(&repository, make(&repository));
        let registered = kage.register(name, &folder).await;
        assert_eq!(
            (&registered["state"], &registered["refs"]),
            (&json!("failed"), &json!({})),
            "{registered}"
        );
        let mut task = shell("echo x > x");
        task["repository"] = json!(name);
        kage.post("/api/v1/tasks", &task).await.problem(422);
        let refs = git(&kage.mirror(name), ["for-each-ref"]);
        assert_eq!(refs, "", "{name}");
    }
    // One that was good, and then is not: what was fetched before stays, and works.
    let (folder, repository) = hostile(&kage, "later");
    assert_eq!(kage.register("later", &folder).await["state"], "ready");
    let before = git(&kage.mirror("later"), ["for-each-ref"]);
    publish(&repository, cases[0].1(&repository));
    kage.post("/api/v1/repositories/later/fetch", &json!({})).await;
    kage.fetched("later").await;
    assert_eq!(git(&kage.mirror("later"), ["for-each-ref"]), before);
}

/// A port of this machine, and how often somebody came to it.
fn listener() -> (u16, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let count: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, count)
}

async fn worked_on(kage: &TestKage, repository: &str, script: &str) -> (Value, String) {
    let mut task = shell(script);
    task["repository"] = json!(repository);
    let task = kage.run(&task).await;
    let log = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&task["id"]))).await.text();
    (task, log)
}

#[tokio::test]
async fn probe_68_a_tree_that_multiplies_itself_ends_at_a_bound() {
    let kage = TestKage::serving(&[]).await;
    // Ten folders in each of ten levels: a checkout of 10^10 files from twelve objects.
    let (folder, repository) = hostile(&kage, "tree-bomb");
    let mut tree = raw_tree(&repository, &[("100644", b"x", repository.blob(b"x").expect("written"))]);
    for _ in 0..10 {
        let names: Vec<[u8; 1]> = (b'0'..=b'9').map(|digit| [digit]).collect();
        let entries: Vec<RawEntry<'_>> = names.iter().map(|name| ("40000", name.as_slice(), tree)).collect();
        tree = raw_tree(&repository, &entries);
    }
    publish(&repository, tree);
    assert_eq!(kage.register("tree-bomb", &folder).await["state"], "ready", "the objects are few");
    let (task, log) = worked_on(&kage, "tree-bomb", "echo began; echo x > x").await;
    let run = &task["runs"][0];
    assert_ne!(run["state"], "succeeded", "{run}");
    assert!(string(&run["error"]).contains("limit") && log.is_empty(), "{run} {log}");
    assert_eq!(
        std::fs::read_dir(kage.data.join("runs")).map_or(0, Iterator::count),
        0,
        "nothing is left of it"
    );
}

#[tokio::test]
async fn probe_68_an_object_that_inflates_to_more_than_it_says_is_refused() {
    let kage = TestKage::serving(&[]).await;
    // An object that says that it has ten bytes and inflates to 64 MiB.
    let (folder, repository) = hostile(&kage, "zlib-bomb");
    let id = repository.blob(b"0123456789").expect("written").to_string();
    let object = folder.join(".git/objects").join(&id[..2]).join(&id[2..]);
    let mut bomb = ZlibEncoder::new(Vec::new(), Compression::fast());
    bomb.write_all(b"blob 10\0").expect("written");
    let zeros = vec![0; 1 << 20];
    for _ in 0..64 {
        bomb.write_all(&zeros).expect("written");
    }
    std::fs::remove_file(&object).expect("removed");
    std::fs::write(&object, bomb.finish().expect("deflated")).expect("written");
    publish(&repository, raw_tree(&repository, &[("100644", b"x", Oid::from_str(&id).expect("an id"))]));
    let registered = kage.register("zlib-bomb", &folder).await;
    assert_eq!(registered["state"], "failed", "{registered}");
    // The neighbour is as it was.
    kage.demo().await;
    let (task, _) = worked_on(&kage, "demo", "echo x > x").await;
    assert_eq!(task["runs"][0]["state"], "succeeded", "{task}");
}

#[tokio::test]
async fn probe_68_nothing_is_fetched_beyond_the_repository() {
    let kage = TestKage::serving(&[]).await;
    let (port, count) = listener();
    let (folder, repository) = hostile(&kage, "lures");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let url = format!("http://127.0.0.1:{port}");
    let blob = |text: &str| repository.blob(text.as_bytes()).expect("written");
    // The paths of CVE-2024-32002 and CVE-2025-48384: by a link, and with a carriage return at the end.
    let modules = format!(
        "[submodule \"x/y\"]\n\tpath = A/modules/x\n\turl = {url}/a\n[submodule \"sub\"]\n\tpath = \"sub\\r\"\n\turl = {url}/b\n"
    );
    let commit = Oid::from_str("1111111111111111111111111111111111111111").expect("an id");
    let tree = raw_tree(
        &repository,
        &[
            ("100644", b".gitattributes", blob("*.bin filter=lfs diff=lfs merge=lfs -text\n")),
            ("100644", b".gitmodules", blob(&modules)),
            ("100644", b".lfsconfig", blob(&format!("[lfs]\n\turl = {url}/lfs\n"))),
            ("120000", b"a", blob(".git")),
            ("100644", b"big.bin", blob(pointer)),
            ("160000", b"sub", commit),
            ("160000", b"sub\r", commit),
        ],
    );
    publish(&repository, tree);
    let registered = kage.register("lures", &folder).await;
    if registered["state"] == "ready" {
        let (task, log) = worked_on(&kage, "lures", "cat big.bin; ls -A sub; readlink a; echo x > x").await;
        assert_eq!(task["runs"][0]["state"], "succeeded", "{task}");
        assert_eq!(log, format!("{pointer}.git\n"));
    } else {
        assert!(string(&registered["error"]).contains("gitmodules"), "{registered}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0, "somebody was asked for more");
}
