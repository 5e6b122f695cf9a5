//! Upstream repositories, made with the real git without the machine's settings.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{TestKage, eventually};

/// Runs git; it must succeed. Its standard output, trimmed.
pub fn git<A: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = A>) -> String {
    String::from_utf8_lossy(&git_bytes(folder, args)).trim().to_owned()
}

/// As [`git`], every byte of it.
pub fn git_bytes<A: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = A>) -> Vec<u8> {
    let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    let output = Command::new("git")
        .args(["-c", "protocol.file.allow=always", "-c", "core.quotepath=off", "-c", "safe.directory=*"])
        .args(&args)
        .current_dir(folder)
        .env_clear()
        .envs([
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", "/nonexistent"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_AUTHOR_NAME", "A User"),
            ("GIT_AUTHOR_EMAIL", "user@localhost"),
            ("GIT_COMMITTER_NAME", "A User"),
            ("GIT_COMMITTER_EMAIL", "user@localhost"),
        ])
        .output()
        .expect("these tests need git");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Commits all that is in a folder; the commit's id.
pub fn commit_all(folder: &Path, message: &str) -> String {
    git(folder, ["add", "--all", "."]);
    git(folder, ["commit", "--quiet", "--allow-empty", "--message", message]);
    git(folder, ["rev-parse", "HEAD"])
}

/// Writes files, with the folders that they need.
pub fn write_files(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("mkdir");
        fs::write(&path, bytes).expect("write");
    }
}

impl TestKage {
    /// A repository with one commit on `main`, where the operator allows them.
    pub fn make_repository(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let folder = self.sources.join(name);
        fs::create_dir_all(&folder).expect("mkdir");
        git(&folder, ["init", "--quiet", "--initial-branch", "main"]);
        write_files(&folder, files);
        commit_all(&folder, "Begin");
        folder
    }

    /// Registers a path and waits for the end of its fetch.
    pub async fn register(&self, name: &str, source: &Path) -> Value {
        let body = json!({ "name": name, "source": source.to_str().expect("UTF-8") });
        let answer = self.post("/api/v1/repositories", &body).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        self.fetched(name).await
    }

    /// Waits for the end of a fetch.
    pub async fn fetched(&self, name: &str) -> Value {
        let path = format!("/api/v1/repositories/{name}");
        eventually("the fetch ends", async || {
            let repository = self.get(&path).await.json();
            let done = ["ready", "failed"].contains(&repository["state"].as_str().expect("a state"));
            done.then_some(repository)
        })
        .await
    }

    /// A registered repository `demo` with a few files.
    pub async fn demo(&self) -> PathBuf {
        let files: [(&str, &[u8]); 3] = [
            ("README.md", b"# demo\n"),
            ("src/greet.sh", b"#!/bin/sh\necho hello\n"),
            ("data.bin", b"\x00\x01\x02\xff"),
        ];
        let folder = self.make_repository("demo", &files);
        let repository = self.register("demo", &folder).await;
        assert_eq!(repository["state"], "ready", "{repository}");
        folder
    }
}
