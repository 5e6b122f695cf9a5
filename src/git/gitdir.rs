//! The `.git` that a run sees: self-contained and throw-away. It holds the base revision with as much
//! history as allowed and nothing else: no remote, no hooks, no link to any store of ours.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Write,
    os::unix::fs::lchown,
    path::Path,
    process::Stdio,
    time::Duration,
};

use flate2::{Compression, write::ZlibEncoder};
use git2::{ErrorCode, Index, IndexEntry, ObjectType, Oid, Reference, Repository};

use crate::git::{
    command::{GitCommand, stdin_of},
    error::GitError,
    mirror::Mirror,
};

pub(crate) const DEFAULT_BRANCH: &str = "main";

/// `safe.directory` is not needed: the sandbox's user owns the folder. A name and an address let the
/// CLI commit; its commits are thrown away.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\
    \tlogallrefupdates = true\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n\
    [user]\n\tname = kage-bunshin\n\temail = kage-bunshin@localhost\n";

pub(crate) struct GitDir<'a> {
    pub mirror: &'a Mirror,
    /// `None`: no commit yet.
    pub commit: Option<Oid>,
    /// The tree that the run sees, where that is not the commit's own: then the run's HEAD is a commit of its own
    /// that is like it but for the tree.
    pub visible: Option<Oid>,
    /// Generations of history behind the commit; 0: all.
    pub history_depth: u32,
    pub branch: &'a str,
    pub owner: Option<(u32, u32)>,
    pub time_limit: Duration,
    /// Asked again and again while the history is packed; an error ends it.
    pub watch: &'a dyn Fn() -> Result<(), GitError>,
}

impl GitDir<'_> {
    /// Writes `<checkout>/.git`; `entries` are the files of the checkout.
    pub fn write(&self, checkout: &Path, entries: Vec<IndexEntry>) -> Result<(), GitError> {
        let git = checkout.join(".git");
        let branch = format!("refs/heads/{}", self.branch);
        if !Reference::is_valid_name(&branch) {
            return Err(GitError::InvalidRevision(self.branch.to_owned()));
        }
        for folder in ["objects/pack", "objects/info", "refs/heads", "refs/tags", "info"] {
            let folder = git.join(folder);
            fs::create_dir_all(&folder).map_err(GitError::io("make", &folder))?;
        }
        write(&git.join("HEAD"), format!("ref: {branch}\n").as_bytes())?;
        write(&git.join("config"), CONFIG.as_bytes())?;
        write(&git.join("info/exclude"), b"")?;
        if let Some(commit) = self.commit {
            let file = git.join(&branch);
            let parent = file.parent().unwrap_or(&git);
            fs::create_dir_all(parent).map_err(GitError::io("make", parent))?;
            let shown = match self.visible {
                Some(tree) => self.write_commit(&git, commit, tree)?,
                None => commit,
            };
            write(&file, format!("{shown}\n").as_bytes())?;
            self.write_objects(&git, commit, shown)?;
            write_index(&git.join("index"), entries)?;
        }
        self.give_away(&git)
    }

    /// Writes the commit with `tree` in its own tree's place. Its signature would not be true any more.
    fn write_commit(&self, git: &Path, commit: Oid, tree: Oid) -> Result<Oid, GitError> {
        let repository = self.mirror.repository()?;
        let commit = repository.find_commit(commit)?;
        let mut content = format!("tree {tree}\n").into_bytes();
        for line in commit.raw_header_bytes().split(|&byte| byte == b'\n') {
            let kept: [&[u8]; 4] = [b"parent ", b"author ", b"committer ", b"encoding "];
            if kept.iter().any(|start| line.starts_with(start)) {
                content.extend_from_slice(line);
                content.push(b'\n');
            }
        }
        content.push(b'\n');
        content.extend_from_slice(commit.message_raw_bytes());
        let id = Oid::hash_object(ObjectType::Commit, &content)?;
        let name = id.to_string();
        let folder = git.join("objects").join(&name[..2]);
        fs::create_dir_all(&folder).map_err(GitError::io("make", &folder))?;
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        let object = [format!("commit {}\0", content.len()).as_bytes(), &content].concat();
        let packed = encoder.write_all(&object).and_then(|()| encoder.finish());
        write(&folder.join(&name[2..]), &packed.map_err(GitError::io("compress", &folder))?)?;
        Ok(id)
    }

    /// Copies the objects of the history as they are packed in the mirror, without recompressing. `shown` stands in
    /// for `commit`, whose own tree is not to be seen then.
    fn write_objects(&self, git: &Path, commit: Oid, shown: Oid) -> Result<(), GitError> {
        let mut shallow = shallow_commits(self.mirror, commit, self.history_depth)?;
        for id in shallow.iter_mut().filter(|id| **id == commit) {
            *id = shown;
        }
        let mut wanted = String::new();
        for id in &shallow {
            wanted.push_str(&format!("--shallow {id}\n"));
        }
        if !shallow.is_empty() {
            let list: String = shallow.iter().map(|id| format!("{id}\n")).collect();
            write(&git.join("shallow"), list.as_bytes())?;
        }
        wanted.push_str(&format!("{shown}\n"));
        let stdin: Stdio = stdin_of(wanted.as_bytes())?;
        let mut args: Vec<_> = ["pack-objects", "--revs", "--quiet", "--window=0", "--delta-base-offset"]
            .map(Into::into)
            .to_vec();
        args.push(git.join("objects/pack/pack").into());
        let pack = GitCommand {
            what: "git pack-objects",
            git_dir: self.mirror.path(),
            args,
            trusted: &[],
            // Not into the mirror: its temporary file there would go with the next fetch's sweep.
            objects: Some(git.join("objects")),
            confined: None,
            stdin,
            limit: self.time_limit,
        };
        pack.run(1 << 10, self.watch)?;
        Ok(())
    }

    fn give_away(&self, folder: &Path) -> Result<(), GitError> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        lchown(folder, Some(uid), Some(gid)).map_err(GitError::io("give away", folder))?;
        for entry in fs::read_dir(folder).map_err(GitError::io("list", folder))? {
            let entry = entry.map_err(GitError::io("list", folder))?;
            let path = entry.path();
            match entry.file_type().map_err(GitError::io("stat", &path))?.is_dir() {
                true => self.give_away(&path)?,
                false => lchown(&path, Some(uid), Some(gid)).map_err(GitError::io("give away", &path))?,
            }
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), GitError> {
    fs::write(path, bytes).map_err(GitError::io("write", path))
}

/// Writes an index that git takes as fresh, so that `git status` reads no file's content.
pub(crate) fn write_index(path: &Path, mut entries: Vec<IndexEntry>) -> Result<(), GitError> {
    entries.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    let mut index = Index::open(path)?;
    index.clear()?;
    for entry in &entries {
        index.add(entry)?;
    }
    Ok(index.write()?)
}

/// The commits where the history is cut: those at `depth` generations behind `commit`, and those
/// where the mirror's own history ends because upstream was shallow.
fn shallow_commits(mirror: &Mirror, commit: Oid, depth: u32) -> Result<Vec<Oid>, GitError> {
    let cut_upstream = mirror.path().join("shallow").exists();
    if depth == 0 && !cut_upstream {
        return Ok(Vec::new());
    }
    let repository = mirror.repository()?;
    let upstream_shallow = upstream_shallow(mirror)?;
    let limit = if depth == 0 { u32::MAX } else { depth };
    let mut parents: HashMap<Oid, Vec<Oid>> = HashMap::new();
    let mut generation = vec![commit];
    for _ in 0..=limit {
        let mut next = Vec::new();
        for id in generation {
            if parents.contains_key(&id) {
                continue;
            }
            let behind = commit_parents(&repository, id)?;
            if !upstream_shallow.contains(&id) {
                next.extend(&behind);
            }
            parents.insert(id, behind);
        }
        if next.is_empty() {
            break;
        }
        generation = next;
    }
    let mut shallow: Vec<Oid> = parents
        .iter()
        .filter(|(id, behind)| {
            upstream_shallow.contains(id) || behind.iter().any(|parent| !parents.contains_key(parent))
        })
        .map(|(id, _)| *id)
        .collect();
    shallow.sort_unstable();
    Ok(shallow)
}

fn commit_parents(repository: &Repository, id: Oid) -> Result<Vec<Oid>, GitError> {
    match repository.find_commit(id) {
        Ok(commit) => Ok(commit.parent_ids().collect()),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn upstream_shallow(mirror: &Mirror) -> Result<HashSet<Oid>, GitError> {
    let path = mirror.path().join("shallow");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| Oid::from_str(line.trim()).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(GitError::io("read", &path)(error)),
    }
}
