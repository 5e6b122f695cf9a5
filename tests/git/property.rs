//! Random changes in a worktree and in an ordinary clone: the harvested tree is the one that the real
//! git stages in the clone.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use kage::git::worktree::Mode;
use proptest::{collection::vec, prelude::*, sample::select};

use crate::support::{BOTH, World, take};

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"A",
    b"dir",
    b"sub",
    b"build",
    b"x.log",
    b"keep.log",
    b"-dash",
    b"q\"uote",
    b"new\nline",
    b"\xff\xfe",
    b"sp ace ",
    b"\xc3\xa9",
    b".hidden",
    b"#x",
    b"!y",
    b"{a,b}",
    b"back\\slash",
    b"git~2",
    b"...",
];
const RULES: &[&[u8]] = &[
    b"*.log",
    b"!keep.log",
    b"build",
    b"build/",
    b"/a",
    b"!a",
    b"dir/*",
    b"!dir/b",
    b"**/sub",
    b"sub/**",
    b"a/**/b",
    b"[ab]",
    b"[!a]*",
    b"\\#x",
    b"#x",
    b"\\!y",
    b"!y",
    b"sp ace\\ ",
    b"sp ace ",
    b"{a,b}",
    b"*",
    b"!*/",
    b"-dash",
    b"q?uote",
    b"\xff*",
    b"A",
    b"dir",
    b"!dir/",
    b"*/x.log",
    b"?",
    b"/dir/sub/",
    b"[[:upper:]]",
    b"back\\\\slash",
    b"new*",
    b"dir/**/x.log",
    b"/*",
    b"!/dir",
    b"",
    b"a\r",
];

#[derive(Clone, Debug)]
enum Change {
    Write(PathBuf, Vec<u8>, bool),
    Append(PathBuf, Vec<u8>),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    MakeFolder(PathBuf),
    Symlink(PathBuf, PathBuf),
    HardLink(PathBuf, PathBuf),
    Executable(PathBuf, bool),
    Ignore(PathBuf, Vec<u8>),
    Touch(PathBuf),
}

impl Change {
    fn apply(&self, root: &Path) -> io::Result<()> {
        match self {
            Change::Write(path, content, executable) => {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap_or(root))?;
                if path.is_symlink() {
                    fs::remove_file(&path)?;
                }
                fs::write(&path, content)?;
                set_executable(&path, *executable)
            }
            Change::Append(path, content) => {
                not_a_link(&root.join(path))?;
                OpenOptions::new().append(true).open(root.join(path))?.write_all(content)
            }
            Change::Remove(path) => match fs::symlink_metadata(root.join(path))?.is_dir() {
                true => fs::remove_dir_all(root.join(path)),
                false => fs::remove_file(root.join(path)),
            },
            Change::Rename(from, to) => fs::rename(root.join(from), root.join(to)),
            Change::MakeFolder(path) => fs::create_dir_all(root.join(path)),
            Change::Symlink(target, path) => symlink(target, root.join(path)),
            Change::HardLink(from, to) => fs::hard_link(root.join(from), root.join(to)),
            Change::Executable(path, executable) => {
                not_a_link(&root.join(path))?;
                set_executable(&root.join(path), *executable)
            }
            Change::Ignore(folder, rules) => {
                not_a_link(&root.join(folder))?;
                fs::write(root.join(folder).join(".gitignore"), rules)
            }
            Change::Touch(path) => {
                not_a_link(&root.join(path))?;
                OpenOptions::new().append(true).open(root.join(path))?.set_modified(std::time::UNIX_EPOCH)
            }
        }
    }
}

fn not_a_link(path: &Path) -> io::Result<()> {
    if path.is_symlink() { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
}

fn set_executable(path: &Path, executable: bool) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))
}

fn path() -> impl Strategy<Value = PathBuf> {
    vec(select(NAMES), 1..4).prop_map(|parts| parts.iter().map(|part| OsStr::from_bytes(part)).collect())
}

fn rules() -> impl Strategy<Value = Vec<u8>> {
    vec(select(RULES), 0..5).prop_map(|lines| lines.join(&b'\n'))
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..40),
        select(vec![&b""[..], b"one\n", b"two\r\n", b"\0\xff\0", b"no newline"]).prop_map(<[u8]>::to_vec),
        (1..5000_usize).prop_map(|length| vec![b'x'; length]),
    ]
}

fn addition() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (path(), content(), any::<bool>()).prop_map(|(path, content, executable)| Change::Write(path, content, executable)),
        1 => (path(), path()).prop_map(|(target, path)| Change::Symlink(target, path)),
        1 => (prop_oneof![Just(PathBuf::new()), path()], rules()).prop_map(|(folder, rules)| Change::Ignore(folder, rules)),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => addition(),
        2 => (path(), content()).prop_map(|(path, content)| Change::Append(path, content)),
        3 => path().prop_map(Change::Remove),
        6 => (path(), path()).prop_map(|(from, to)| Change::Rename(from, to)),
        1 => path().prop_map(Change::MakeFolder),
        1 => (path(), path()).prop_map(|(from, to)| Change::HardLink(from, to)),
        1 => (path(), any::<bool>()).prop_map(|(path, executable)| Change::Executable(path, executable)),
        1 => path().prop_map(Change::Touch),
    ]
}

/// The tree that the real git makes of `changes`, and which of them worked.
fn reference(world: &World, changes: &[Change]) -> Result<(String, Vec<bool>)> {
    let clone = world.path("clone");
    world.git(&world.path(""), ["clone", "-q", "upstream", "clone"])?;
    let worked = changes.iter().map(|change| change.apply(&clone).is_ok()).collect();
    world.git(&clone, ["add", "-A"])?;
    Ok((world.git(&clone, ["write-tree"])?, worked))
}

/// All files and links of a folder with what is in them: type, whether the owner may execute it, bytes. Made with the
/// file system's calls alone.
fn snapshot(root: &Path) -> Result<Files> {
    let mut files = Files::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let (path, kind) = (folder.join(entry.file_name()), entry.file_type()?);
            if path == Path::new(".git") {
                continue;
            }
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                files.insert(path, ('l', fs::read_link(entry.path())?.as_os_str().as_bytes().to_vec()));
            } else {
                let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
                files.insert(path, (if executable { 'x' } else { 'f' }, fs::read(entry.path())?));
            }
        }
    }
    Ok(files)
}

type Files = BTreeMap<PathBuf, (char, Vec<u8>)>;

fn changed_paths(before: &Files, after: &Files) -> Vec<PathBuf> {
    let all: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let mut changed: Vec<PathBuf> =
        all.into_iter().filter(|path| before.get(*path) != after.get(*path)).cloned().collect();
    changed.sort();
    changed
}

fn compare(start: &[Change], changes: &[Change]) -> Result<()> {
    let world = World::new()?;
    for change in start {
        let _ = change.apply(&world.upstream);
    }
    // Forced: also a file that is ignored can be tracked.
    world.git(&world.upstream, ["add", "-A", "-f"])?;
    world.git(&world.upstream, ["commit", "-q", "--allow-empty", "-m", "a commit"])?;
    let mirror = world.mirror()?;
    let before = snapshot(&world.upstream)?;
    let base = world.git(&world.upstream, ["rev-parse", "HEAD^{tree}"])?;
    let (expected, worked) = reference(&world, changes)?;
    for mode in BOTH {
        let name = if mode == Mode::Copy { "copy" } else { "overlay" };
        let worktree = world.worktree(&mirror, name, mode)?;
        ensure!(
            world.git(&worktree.path(), ["status", "--porcelain"])?.is_empty(),
            "{name}: not clean at the start"
        );
        let root = worktree.path();
        let here: Vec<bool> = changes.iter().map(|change| change.apply(&root).is_ok()).collect();
        ensure!(here == worked, "{name}: not the same changes worked: {here:?}, but {worked:?}");
        let left = snapshot(&root)?;
        let harvest = take(&mirror, &worktree)?;
        if harvest.tree.to_string() != expected {
            world.git(mirror.path(), ["fetch", "-q", &world.path("clone").to_string_lossy(), "HEAD"])?;
            let _ = world.git(&world.path("clone"), ["commit", "-qm", "x"]);
            let theirs = world.git(&world.path("clone"), ["ls-tree", "-r", "-t", &expected])?;
            let ours = world.git(mirror.path(), ["ls-tree", "-r", "-t", &harvest.tree.to_string()])?;
            anyhow::bail!("{name}: harvested\n{ours}\ngit staged\n{theirs}\nwarnings {:?}", harvest.warnings);
        }
        // Nobody's `.gitignore` has a say: then a comparison of bytes, by nobody's git, must come to the same.
        let ignoring =
            [&before, &left].iter().any(|files| files.keys().any(|path| path.ends_with(".gitignore")));
        if !ignoring {
            let changed = changed_paths(&before, &left);
            let told = world.git_bytes(
                mirror.path(),
                ["diff-tree", "-r", "-z", "--no-renames", "--name-only", &base, &expected],
            )?;
            let mut told: Vec<PathBuf> = told
                .split(|&byte| byte == 0)
                .filter(|path| !path.is_empty())
                .map(|path| OsStr::from_bytes(path).into())
                .collect();
            told.sort();
            ensure!(told == changed, "{name}: bytes differ at {changed:?}, but {told:?} is told");
        }
        let unchanged = expected == world.git(&world.upstream, ["rev-parse", "HEAD^{tree}"])?;
        ensure!(harvest.changed != unchanged, "{name}: `changed` is {}", harvest.changed);
    }
    world.git(mirror.path(), ["fsck", "--strict"]).context("the mirror is whole")?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_is_what_the_bytes_say(
        start in vec(addition().prop_filter("no rules", |it| !matches!(it, Change::Ignore(..))), 0..25),
        changes in vec(change().prop_filter("no rules", |it| !matches!(it, Change::Ignore(..))), 0..25),
    ) {
        if let Err(error) = compare(&start, &changes) {
            return Err(TestCaseError::fail(format!("{error:#}")));
        }
    }

    #[test]
    fn the_harvest_is_what_git_stages(start in vec(addition(), 0..25), changes in vec(change(), 0..25)) {
        if let Err(error) = compare(&start, &changes) {
            return Err(TestCaseError::fail(format!("{error:#}")));
        }
    }
}

/// `PROPTEST_CASES` for a longer search.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|number| number.parse().ok()).unwrap_or(24)
}
