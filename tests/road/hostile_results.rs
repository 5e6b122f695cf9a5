//! Probes 55 to 71: what a hostile run leaves in its worktree, from `POST /tasks` to what the API says of the result.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::TestKage;
use crate::support::git::{git, git_bytes, write_files};
use crate::support::tasks::{shell, string};

async fn files(kage: &TestKage, task: &Value) -> Value {
    kage.get(&format!("/api/v1/tasks/{}/runs/shell/files", string(&task["id"]))).await.json()
}

fn warnings(files: &Value) -> Vec<&str> {
    files["warnings"].as_array().expect("an array").iter().map(string).collect()
}

/// The paths that were left out for a reason of this kind, as they are shown.
fn left_out<'a>(files: &'a Value, kind: &str) -> Vec<&'a str> {
    let rejected = files["rejected"].as_array().expect("an array").iter();
    rejected.filter(|one| one["kind"] == kind).map(|one| string(&one["path"])).collect()
}

/// The files of a run's branch, which must have succeeded, by name.
fn branch_of<'a>(kage: &TestKage, task: &'a Value) -> (&'a str, Vec<u8>) {
    let run = &task["runs"][0];
    assert_eq!(run["state"], "succeeded", "{run}");
    let branch = string(&run["branch"]);
    (branch, git_bytes(&kage.mirror("demo"), ["ls-tree", "-r", "-z", "--name-only", branch]))
}

/// Makes the `.git` and the attributes of the folder that it runs in run a program at every turn.
fn evil_repository(canary: &Path) -> String {
    format!(
        "cat > .git/evil <<'E'\n#!/bin/sh\ntouch {0}\ncat\nE\nchmod +x .git/evil; \
         for key in core.fsmonitor core.sshCommand core.pager core.editor core.askPass diff.external diff.x.textconv filter.x.clean \
         filter.x.smudge gpg.program credential.helper merge.x.driver alias.status sequence.editor; do git config $key \"$PWD/.git/evil\"; done; \
         git config core.hooksPath .git/hooks; git config filter.x.required true; git config includeIf.gitdir:/.path \"$PWD/.git/more\"; \
         git config -f .git/more core.fsmonitor \"$PWD/.git/evil\"; echo '* filter=x diff=x merge=x' > .gitattributes; mkdir -p .git/hooks; \
         for hook in post-index-change pre-commit post-checkout reference-transaction; do cp .git/evil .git/hooks/$hook; done; \
         echo /etc > .git/objects/info/alternates; echo hi > new; :",
        canary.display()
    )
}

#[tokio::test]
async fn probe_55_nothing_of_a_runs_git_folder_runs_on_the_host() {
    let kage = TestKage::serving(&[]).await;
    let upstream = kage.demo().await;
    // Where any user of this machine could leave it.
    let open = kage.folder.join("open");
    std::fs::create_dir(&open).expect("mkdir");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let canary = open.join("canary");
    let script = evil_repository(&canary);
    // What it does to who runs git there.
    let victim = kage.folder.join("victim");
    git(&kage.folder, ["clone", "--quiet", upstream.to_str().expect("UTF-8"), "victim"]);
    let made =
        Command::new("bash").args(["-c", &script]).current_dir(&victim).env("HOME", &kage.folder).status();
    assert!(made.expect("bash starts").success());
    let status = Command::new("git").args(["status"]).current_dir(&victim).env("HOME", &kage.folder).output();
    assert!(canary.exists(), "the attack works on the host: {status:?}");
    std::fs::remove_file(&canary).expect("removed");

    for worktree in ["evil", "link", "file"] {
        // A `.git` that leads to such a folder elsewhere in the tree is the same.
        let more = match worktree {
            "link" => "mv .git elsewhere; ln -s elsewhere .git",
            "file" => "mv .git elsewhere; echo 'gitdir: elsewhere' > .git",
            _ => ":",
        };
        let task = kage.run(&shell(&format!("{script}; {more}"))).await;
        let (_, listed) = branch_of(&kage, &task);
        assert!(listed.windows(4).any(|name| name == b"new\0"), "{worktree}: {task}");
        let id = string(&task["id"]);
        assert!(kage.get(&format!("/api/v1/tasks/{id}/runs/shell/diff")).await.text().contains("+hi"));
        files(&kage, &task).await;
        for command in ["diff", "task", "logs"] {
            assert!(kage.client(&[command, id]).await.status.success(), "{command}");
        }
    }
    kage.post("/api/v1/repositories/demo/fetch", &Value::Null).await;
    kage.fetched("demo").await;
    assert!(kage.client(&["repo", "rm", "demo"]).await.status.success());
    assert!(!canary.exists(), "the agent's program ran on the host");
}

#[tokio::test]
async fn probes_56_to_62_what_is_left_out_is_said_and_the_rest_comes_in() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let run = async |script: &str| kage.run(&shell(script)).await;
    let (nested, special, names) = tokio::join!(
        run(
            "mkdir sub; cd sub; git init -q .; echo x > x; git add x; git -c user.name=a -c user.email=b commit -qm x; cd ..; \
             git init -q --bare bare; mkdir -p deep/er; echo 'gitdir: /' > deep/er/.git; echo y > deep/er/y; git add sub"
        ),
        run(
            "mkfifo .gitignore .gitattributes fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'; \
             rm src/greet.sh; mkfifo src/greet.sh; echo hi > new"
        ),
        run(
            "mkdir .GIT .git. 'git~1'; for d in .GIT .git. 'git~1'; do echo x > \"$d/config\"; done; printf x > $'.g\\xe2\\x80\\x8cit'; \
             printf x > '.git::$INDEX_ALLOCATION'; ln -s /etc/passwd .gitmodules; mkdir ok; echo x > ok/.GiT; \
             echo x > $'a\\nb'; echo x > $'\\x1b]0;x'; echo x > con; echo x > 'a\\b'; echo x > $'\\xff'; echo x > $'\\xe2\\x80\\xaegpj'; \
             echo x > 'end. '; echo x > $(printf 'n%.0s' $(seq 255))"
        ),
    );
    let (_, listed) = branch_of(&kage, &nested);
    let listed = String::from_utf8(listed).expect("UTF-8");
    for name in ["sub/x", "deep/er/y", "bare/HEAD", "README.md"] {
        assert!(listed.split('\0').any(|it| it == name), "{name}: {listed:?}");
    }
    let told = files(&kage, &nested).await;
    assert_eq!(left_out(&told, "nested_git").len(), 2, "{told}");

    let (_, listed) = branch_of(&kage, &special);
    assert_eq!(String::from_utf8_lossy(&listed), "README.md\0data.bin\0new\0");
    let told = files(&kage, &special).await;
    for name in [".gitattributes", ".gitignore", "src/greet.sh", "fifo", "socket"] {
        assert!(left_out(&told, "special_file").contains(&name), "{name}: {told}");
        let said = format!("Left out \"{name}\": ");
        assert!(warnings(&told).iter().any(|it| it.starts_with(&said)), "{name}: {told}");
    }

    let (branch, listed) = branch_of(&kage, &names);
    let mut expected: Vec<&[u8]> = vec![
        b"\x1b]0;x",
        b"README.md",
        b"a\nb",
        b"a\\b",
        b"con",
        b"data.bin",
        b"end. ",
        b"src/greet.sh",
        b"\xe2\x80\xaegpj",
        b"\xff",
    ];
    let long = [b'n'; 255];
    expected.insert(7, &long);
    let mut listed: Vec<&[u8]> = listed.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    let told = files(&kage, &names).await;
    let forbidden = left_out(&told, "forbidden_name");
    assert_eq!(forbidden.len(), 7, "{told}");
    assert!(forbidden.iter().all(|it| it.is_ascii()), "shown as they are: {forbidden:?}");
    // The same rule in the list, in the patch and in what is on the branch.
    assert_eq!(told["files"].as_array().map(Vec::len), Some(8), "{told}");
    let id = string(&names["id"]);
    let patch = kage.get(&format!("/api/v1/tasks/{id}/runs/shell/diff")).await.text();
    assert_eq!(patch.matches("diff --git").count(), 8, "{patch}");
    assert!(!patch.contains('\u{1b}') && !patch.contains(".gitmodules"), "{patch:?}");
    git(&kage.mirror("demo"), ["fsck", "--strict", branch]);
}

#[tokio::test]
async fn probe_61_what_is_too_much_ends_at_a_limit_that_is_named() {
    let kage = TestKage::serving(&[("KAGE_LIMIT_RESULT_FILES", "2000")]).await;
    kage.demo().await;
    let run = async |script: &str| kage.run(&shell(script)).await;
    let (giant, terabyte, many, deep, long) = tokio::join!(
        run("truncate -s 200M giant"),
        run("exec truncate -s 1T giant"),
        run("mkdir many; cd many; seq 3000 | xargs touch"),
        run(
            "python3 -c 'import os\nfor i in range(3000): os.mkdir(\"d\"); os.chdir(\"d\")\nopen(\"x\", \"w\")'"
        ),
        run(
            "python3 -c 'import os\nfor i in range(30): os.mkdir(\"d\" * 200); os.chdir(\"d\" * 200)\nopen(\"x\", \"w\")'"
        ),
    );
    // What is too much by itself is left out; what is too much together fails the whole.
    for (task, kind) in [(&giant, "too_large"), (&deep, "too_deep"), (&long, "path_too_long")] {
        let run = &task["runs"][0];
        assert_eq!((&run["state"], &run["branch"]), (&"no_changes".into(), &Value::Null), "{kind}: {run}");
        let told = files(&kage, task).await;
        assert_eq!(left_out(&told, kind).len(), 1, "{kind}: {told}");
    }
    let run_of_many = &many["runs"][0];
    assert_eq!((&run_of_many["state"], &run_of_many["branch"]), (&"failed".into(), &Value::Null), "{many}");
    assert!(string(&run_of_many["error"]).contains("changed files"), "{many}");
    assert_eq!(terabyte["runs"][0]["state"], "file_limit", "{terabyte}");
    assert_eq!(run("echo on > and").await["runs"][0]["state"], "succeeded");
}

/// Prints what is on the disk, file by file, as git would name its content.
const INVENTORY: &str = "find . -path ./.git -prune -o -type f -print | LC_ALL=C sort | while read -r f; do \
     echo \"$(git hash-object --no-filters -- \"$f\") ${f#./}\" >&3; done; :";

#[tokio::test]
async fn probe_63_no_flag_of_git_hides_a_change() {
    let kage = TestKage::serving(&[]).await;
    kage.demo().await;
    let script = format!(
        "exec 3>&1 >/dev/null 2>&1; git update-index --skip-worktree README.md; git update-index --assume-unchanged src/greet.sh; \
         git sparse-checkout set nothing; mkdir -p src; echo X > README.md; echo Y > src/greet.sh; \
         git replace HEAD $(git commit-tree -m x $(git write-tree)); git rev-parse HEAD > .git/info/grafts; \
         git replace -f HEAD:README.md $(echo X | git hash-object -w --stdin); echo '*.secret' >> .git/info/exclude; echo s > a.secret; \
         echo n > new; git add -N new; git rm -q --cached data.bin; echo changed > data.bin; touch -d @0 README.md; {INVENTORY}"
    );
    let task = kage.run(&shell(&script)).await;
    let (branch, _) = branch_of(&kage, &task);
    let disk = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&task["id"]))).await.text();
    let told = git(&kage.mirror("demo"), ["ls-tree", "-r", "--format=%(objectname) %(path)", branch]);
    assert_eq!(disk.trim(), told, "what the branch has is what was on the disk");
    let told = files(&kage, &task).await;
    let mut changed: Vec<&str> =
        told["files"].as_array().expect("a list").iter().map(|it| string(&it["path"])).collect();
    changed.sort_unstable();
    assert_eq!(changed, ["README.md", "a.secret", "data.bin", "new", "src/greet.sh"]);
}

#[tokio::test]
async fn probe_65_no_commit_ref_or_author_of_a_runs_own_comes_in() {
    let kage = TestKage::serving(&[]).await;
    let upstream = kage.demo().await;
    let head = git(&upstream, ["rev-parse", "HEAD"]);
    let script = "exec 3>&1 >/dev/null 2>&1; export GIT_AUTHOR_NAME=Boss GIT_AUTHOR_EMAIL=boss@localhost GIT_COMMITTER_NAME=Boss \
                  GIT_COMMITTER_EMAIL=boss@localhost; echo mine > mine; git add mine; git commit -qm 'Approved-by: Boss'; \
                  git tag evil; git tag -a -m x evil-too; git notes add -m evil; git branch evil; git update-ref refs/upstream/heads/main HEAD; \
                  git update-ref refs/heads/task-00000000-0000-0000-0000-000000000000-shell HEAD; git symbolic-ref refs/heads/main refs/heads/evil; \
                  git rev-parse HEAD >&3";
    let mirror = kage.mirror("demo");
    let refs = || git(&mirror, ["for-each-ref", "--format=%(objectname) %(refname)"]);
    let before = refs();
    let task = kage.run(&shell(script)).await;
    let (branch, _) = branch_of(&kage, &task);
    let commit = string(&task["runs"][0]["commit_hash"]);
    let after: Vec<String> =
        refs().lines().filter(|line| !before.contains(line)).map(str::to_owned).collect();
    assert_eq!(after, [format!("{commit} refs/heads/{branch}")], "one branch and nothing else");
    let text = git(&mirror, ["show", "--no-patch", "--format=%P%n%an %ae%n%cn%n%B", branch]);
    assert!(
        text.starts_with(&format!("{head}\nkage-bunshin kage-bunshin@localhost\nkage-bunshin\n")),
        "{text}"
    );
    assert!(!text.contains("Boss"), "{text}");
    let theirs = kage.get(&format!("/api/v1/tasks/{}/runs/shell/log", string(&task["id"]))).await.text();
    assert_eq!(theirs.trim().len(), 40, "{theirs}");
    let has =
        Command::new("git").arg("--git-dir").arg(&mirror).args(["cat-file", "-e", theirs.trim()]).output();
    assert!(!has.expect("git starts").status.success(), "the agent's own commit is in the mirror");
    assert_eq!(git(&mirror, ["show", &format!("{branch}:mine")]), "mine");
}

#[tokio::test]
async fn probe_71_what_programs_obey_unasked_is_pointed_out() {
    const OBEYED: [&str; 11] = [
        ".claude/settings.json",
        ".codex/config.toml",
        ".gemini/settings.json",
        ".github/workflows/ci.yml",
        ".husky/pre-commit",
        ".mcp.json",
        ".vscode/tasks.json",
        "AGENTS.md",
        "CODEOWNERS",
        "Dockerfile",
        "package.json",
    ];
    let kage = TestKage::serving(&[]).await;
    let upstream =
        kage.make_repository("demo", &[("README.md", b"demo\n"), ("Dockerfile", b"FROM scratch\n")]);
    write_files(&upstream, &[("harmless.txt", b"x\n")]);
    assert_eq!(kage.register("demo", &upstream).await["state"], "ready");
    let script: String = OBEYED
        .iter()
        .map(|path| format!("mkdir -p \"$(dirname {path})\"; echo changed > {path}; "))
        .collect();
    let task = kage.run(&shell(&format!("{script} echo x > plain.txt"))).await;
    branch_of(&kage, &task);
    let told = files(&kage, &task).await;
    for path in OBEYED {
        let named = format!(" \"{path}\": ");
        let said = warnings(&told).into_iter().filter(|it| it.contains(&named)).count();
        assert_eq!(said, 1, "{path}: {told}");
    }
    assert!(!warnings(&told).iter().any(|it| it.contains("plain.txt")), "{told}");
    let audited: Value = sqlx::query_scalar(
        "SELECT details #> '{facts,flagged}' FROM audit_entries
         WHERE action = 'run.state' AND details ->> 'state' = 'succeeded'",
    )
    .fetch_one(kage.pool())
    .await
    .expect("an entry");
    assert_eq!(audited.as_array().map(Vec::len), Some(OBEYED.len()), "{audited}");
}
