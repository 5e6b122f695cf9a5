//! The list of files and the patch say what the real git says, and `git apply` makes the result of them.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use git2::Oid;
use kage::git::{
    commit::{CommitText, commit},
    diff::{DiffLimits, FileChange, FileStatus, Patch, changes},
    mirror::Mirror,
    worktree::Mode,
};

use crate::support::{World, plain_git, take};

fn result(world: &World, mirror: &Mirror, script: &str) -> Result<(Option<Oid>, Oid)> {
    let worktree = world.worktree(mirror, "r1", Mode::Overlay)?;
    world.in_sandbox(&worktree, script)?;
    let mut harvest = take(mirror, &worktree)?;
    let text = CommitText { message: "x", author: "kage-bunshin", email: "kage-bunshin@localhost", time: 1 };
    let id = commit(mirror, worktree.commit(), &mut harvest, "task-1-shell", &text)?;
    Ok((worktree.commit(), id))
}

fn files(mirror: &Mirror, base: Option<Oid>, commit: Oid) -> Result<Vec<FileChange>> {
    Ok(changes(mirror, base, commit, &DiffLimits::default())?.files)
}

fn patch(mirror: &Mirror, base: Option<Oid>, commit: Oid, patch_bytes: usize) -> Result<Patch> {
    Ok(changes(mirror, base, commit, &DiffLimits { patch_bytes, ..DiffLimits::default() })?.patch)
}

/// Applies `patch` to a clone of upstream and returns the tree that it makes.
fn applied(world: &World, patch: &[u8]) -> Result<String> {
    let clone = world.path("clone");
    let _ = fs::remove_dir_all(&clone);
    world.git(&world.path(""), ["clone", "-q", "upstream", "clone"])?;
    if !patch.is_empty() {
        let mut git = plain_git(&clone)
            .args(["apply", "--index", "--whitespace=nowarn"])
            .stdin(Stdio::piped())
            .spawn()?;
        std::io::Write::write_all(&mut git.stdin.take().context("piped")?, patch)?;
        ensure!(git.wait()?.success(), "git apply: {}", String::from_utf8_lossy(patch));
    }
    world.git(&clone, ["write-tree"])
}

const SCRIPT: &str = "printf 'one\\nTWO\\nthree\\n' > text; rm gone; mv kept/long moved; chmod +x mode; ln -s text link; \
    head -c 3000 /dev/urandom > binary; printf 'x\\0y' > new-binary; printf 'no newline' > $'odd \"name\\\\\\n\\xff\\t'; rm swap; mkdir swap; echo x > swap/x; \
    rm -r folder; ln -s nowhere folder; echo x > -dash; : > empty; rm tolink; ln -s text tolink; printf 'a\\r\\nb' > crlf";

fn world() -> Result<World> {
    let long = "a line that is the same\n".repeat(50);
    let world = World::with_files(&[
        ("text", "one\ntwo\nthree\n"),
        ("gone", "it goes\n"),
        ("kept/long", &long),
        ("mode", "a program\n"),
        ("binary", "\0\u{1}"),
        ("swap", "a file first\n"),
        ("folder/x", "in a folder\n"),
        ("tolink", "was a file\n"),
        ("crlf", "a\r\n"),
    ])?;
    fs::write(world.upstream.join(OsStr::from_bytes(b"latin\xe9")), "x")?;
    world.commit_all()?;
    Ok(world)
}

#[test]
fn the_patch_makes_the_result() -> Result<()> {
    let world = world()?;
    let mirror = world.mirror()?;
    let (base, id) = result(&world, &mirror, SCRIPT)?;
    let whole = patch(&mirror, base, id, usize::MAX)?;
    assert!(!whole.truncated);
    assert_eq!(
        applied(&world, &whole.bytes)?,
        world.git(mirror.path(), ["rev-parse", &format!("{id}^{{tree}}")])?
    );
    // Cut anywhere, it is shorter and still applies.
    let length = whole.bytes.len();
    for max in [0, 1, 300, 1000, 2500, length - 1] {
        let cut = patch(&mirror, base, id, max)?;
        assert!(cut.truncated && cut.bytes.len() <= max && whole.bytes.starts_with(&cut.bytes), "{max}");
    }
    assert_eq!(patch(&mirror, base, id, length)?, whole);
    Ok(())
}

#[test]
fn the_list_is_what_git_says() -> Result<()> {
    let world = world()?;
    let mirror = world.mirror()?;
    let (base, id) = result(&world, &mirror, SCRIPT)?;
    let changes = files(&mirror, base, id)?;
    let base = base.context("there is a base")?;
    let range = [base.to_string(), id.to_string()];
    let raw =
        world.git_bytes(mirror.path(), ["diff-tree", "-r", "-z", "-M", "--numstat", &range[0], &range[1]])?;
    let mut theirs = Vec::new();
    let mut fields = raw.split(|&byte| byte == 0);
    while let Some(field) = fields.next().filter(|field| !field.is_empty()) {
        let mut parts = field.splitn(3, |&byte| byte == b'\t');
        let mut number = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let (insertions, deletions) = (number(), number());
        let path = match parts.next().unwrap_or_default() {
            b"" => fields.nth(1).unwrap_or_default(),
            path => path,
        };
        theirs.push((path.to_vec(), insertions, deletions));
    }
    theirs.sort();
    let mut ours: Vec<_> = changes
        .iter()
        .map(|it| match it.binary {
            true => (it.path.to_vec(), "-".to_owned(), "-".to_owned()),
            false => (it.path.to_vec(), it.insertions.to_string(), it.deletions.to_string()),
        })
        .collect();
    ours.sort();
    assert_eq!(ours, theirs);
    let find = |name: &str| changes.iter().find(|it| it.path == name).with_context(|| name.to_owned());
    let moved = find("moved")?;
    assert_eq!(
        (moved.status, moved.old_path.as_ref().map(ToString::to_string)),
        (FileStatus::Renamed, Some("kept/long".to_owned()))
    );
    let mode = find("mode")?;
    assert_eq!((mode.status, mode.old_mode, mode.new_mode), (FileStatus::Modified, 0o100644, 0o100755));
    assert_eq!(find("tolink")?.status, FileStatus::TypeChanged);
    assert_eq!((find("gone")?.status, find("gone")?.size), (FileStatus::Deleted, 0));
    assert_eq!((find("binary")?.size, find("binary")?.binary), (3000, true));
    assert_eq!(find("empty")?.status, FileStatus::Added);
    Ok(())
}

#[test]
fn a_first_commit_has_a_patch() -> Result<()> {
    let world = World::new()?;
    let mirror = world.mirror()?;
    let (base, id) = result(&world, &mirror, "echo one > a; mkdir b; printf '\\0' > b/c")?;
    assert_eq!(base, None);
    assert_eq!(files(&mirror, base, id)?.len(), 2);
    let bytes = patch(&mirror, base, id, usize::MAX)?.bytes;
    let target = world.path("target");
    fs::create_dir(&target)?;
    world.git(&target, ["init", "-q"])?;
    fs::write(world.path("patch"), bytes)?;
    let status = Command::new("git").current_dir(&target).args(["apply", "--index", "../patch"]).status()?;
    assert!(status.success());
    assert_eq!(
        world.git(&target, ["write-tree"])?,
        world.git(mirror.path(), ["rev-parse", &format!("{id}^{{tree}}")])?
    );
    Ok(())
}

#[test]
fn submodules_stand_in_the_patch() -> Result<()> {
    let world = World::with_files(&[("a", "1")])?;
    let head = world.git(&world.upstream, ["rev-parse", "HEAD"])?;
    world.git(&world.upstream, ["update-index", "--add", "--cacheinfo", &format!("160000,{head},s")])?;
    world.git(&world.upstream, ["commit", "-qm", "x"])?;
    let mirror = world.mirror()?;
    let (base, id) = result(&world, &mirror, "rmdir s")?;
    let changes = files(&mirror, base, id)?;
    assert_eq!((changes.len(), changes[0].status, changes[0].old_mode), (1, FileStatus::Deleted, 0o160000));
    assert!(
        patch(&mirror, base, id, usize::MAX)?
            .bytes
            .starts_with(b"diff --git a/s b/s\ndeleted file mode 160000")
    );
    Ok(())
}

/// What differs, but takes long to compare: lines of two kinds in no order.
fn noise(seed: u64, lines: usize) -> String {
    let mut state = seed;
    let mut line = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if state >> 63 == 0 { "a\n" } else { "b\n" }
    };
    (0..lines).map(|_| line()).collect()
}

#[test]
fn large_texts_are_replaced_and_not_compared() -> Result<()> {
    let (small, large, huge) = (1_000, 30_000, 600_000);
    let moved: String = (0..10_000).map(|number| format!("line {number}\n")).collect();
    let world = World::with_files(&[
        ("small", &noise(1, small)),
        ("large", &noise(2, large)),
        ("huge", &noise(3, huge)),
        ("gone", &noise(4, large).replace('a', "x").replace('b', "y")),
        ("old", &moved),
    ])?;
    let mirror = world.mirror()?;
    let sandbox = world.path("new");
    fs::create_dir(&sandbox)?;
    for (name, lines) in [("small", small), ("large", large), ("huge", huge), ("new", large)] {
        fs::write(sandbox.join(name), noise(5, lines))?;
    }
    let worktree = world.worktree(&mirror, "r1", Mode::Overlay)?;
    for name in ["small", "large", "huge", "new"] {
        fs::write(worktree.path().join(name), fs::read(sandbox.join(name))?)?;
    }
    fs::remove_file(worktree.path().join("gone"))?;
    fs::remove_file(worktree.path().join("old"))?;
    fs::write(worktree.path().join("moved"), moved + "and one more\n")?;
    worktree.unmount()?;
    let mut harvest = take(&mirror, &worktree)?;
    let text = CommitText { message: "x", author: "kage-bunshin", email: "kage-bunshin@localhost", time: 1 };
    let id = commit(&mirror, worktree.commit(), &mut harvest, "task-1-shell", &text)?;
    let base = worktree.commit();

    let time = Duration::from_secs(3600);
    let limits = DiffLimits { patch_bytes: usize::MAX, text_bytes: 50_000, file_bytes: 1 << 20, time };
    let all = changes(&mirror, base, id, &limits)?;
    let found = all.files;
    let of = |name: &str| found.iter().find(|it| it.path == name).with_context(|| name.to_owned());
    let is_compared = |name: &str| of(name).map(|it| (it.compared, it.insertions > 0, it.deletions > 0));
    assert_eq!(is_compared("small")?, (true, true, true));
    assert_eq!(is_compared("large")?, (false, false, false));
    assert_eq!(is_compared("huge")?, (false, false, false));
    assert_eq!(is_compared("moved")?, (false, false, false));
    assert_eq!((of("moved")?.status, of("moved")?.old_path.is_some()), (FileStatus::Renamed, true));
    // There is nothing to compare these with: they are read as what they are.
    assert_eq!((of("new")?.compared, of("new")?.insertions, of("new")?.binary), (true, 30_000, false));
    assert_eq!((of("gone")?.compared, of("gone")?.deletions, of("gone")?.binary), (true, 30_000, false));

    // Larger than what is read at all: the patch ends before it. All else is whole, and applies.
    assert!(all.patch.truncated);
    let read_all = DiffLimits { file_bytes: u64::MAX, ..limits };
    let whole = changes(&mirror, base, id, &read_all)?.patch;
    assert!(!whole.truncated);
    assert_eq!(
        applied(&world, &whole.bytes)?,
        world.git(mirror.path(), ["rev-parse", &format!("{id}^{{tree}}")])?
    );

    // Without time nothing is compared, and all changes are named.
    let late = changes(&mirror, base, id, &DiffLimits { time: Duration::ZERO, ..limits })?;
    assert_eq!((late.files.len(), late.patch.bytes.len(), late.patch.truncated), (6, 0, true));
    assert!(late.files.iter().all(|it| !it.compared));
    Ok(())
}
