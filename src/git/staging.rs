//! A fetch's own repository: made for one fetch, given to the user that git runs as, and gone afterwards.
//!
//! Nothing in it is trusted once git has run there. Packs are read as bytes and checked anew, object by object, on
//! their way into the mirror; names of refs come from git's output and are checked; its configuration, refs,
//! hooks and indexes are never opened by us.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::Read,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use git2::{Oid, Reference};
use rustix::fs::{Mode, OFlags};

use crate::git::{
    checkout::open_folder,
    command::{GitCommand, fsck_levels, stdin_of},
    confined::Confined,
    dirfd,
    error::GitError,
    mirror::{FetchLimits, HEADS, Mirror, TAGS, write_skeleton},
    source::Checked,
};

/// Bytes of a list of refs.
const MAX_LIST: u64 = 64 << 20;
/// The watcher sees a fetch that is too large before the kernel ends it.
const FILE_MARGIN: u64 = 1 << 20;
/// Packs that one fetch brings; git makes one, or a few.
const MAX_PACKS: usize = 100;

type Refs = BTreeMap<String, Oid>;

pub(crate) struct Staging<'a> {
    mirror: &'a Mirror,
    path: PathBuf,
    confined: Confined,
    trusted: &'a [PathBuf],
    limits: &'a FetchLimits,
    /// Names of the packs that are the mirror's own.
    known: Vec<OsString>,
}

impl<'a> Staging<'a> {
    /// Makes it anew beneath `folder`; what a killed fetch left there goes. The caller holds the mirror's fetch lock.
    pub fn make(
        mirror: &'a Mirror,
        folder: &Path,
        user: Option<(u32, u32)>,
        checked: &'a Checked,
        limits: &'a FetchLimits,
    ) -> Result<Staging<'a>, GitError> {
        let name = mirror.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = folder.join(format!(".fetching-{name}"));
        let network = checked.network.clone();
        let confined = Confined {
            user,
            file_bytes: limits.bytes.saturating_add(FILE_MARGIN),
            time: limits.time,
            network,
        };
        let mut staging =
            Staging { mirror, path, confined, trusted: &checked.trusted, limits, known: Vec::new() };
        staging.remove()?;
        staging.confined.reaches(&staging.path)?;
        DirBuilder::new().mode(0o700).create(&staging.path).map_err(GitError::io("make", &staging.path))?;
        staging.fill()?;
        Ok(staging)
    }

    pub fn remove(&self) -> Result<(), GitError> {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(()) };
        let parent = open_folder(parent)?;
        dirfd::remove_tree(&parent, name.as_encoded_bytes()).map_err(GitError::io("remove", &self.path))
    }

    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// A git in here that has no more rights than it needs.
    pub fn command(&self, what: &'static str, args: &[&str], stdin: Stdio) -> GitCommand<'_> {
        GitCommand {
            what,
            git_dir: &self.path,
            args: args.iter().map(OsString::from).collect(),
            trusted: self.trusted,
            objects: None,
            confined: Some(&self.confined),
            stdin,
            limit: self.limits.time,
        }
    }

    /// What the mirror has, so that only the rest is asked for.
    fn fill(&mut self) -> Result<(), GitError> {
        write_skeleton(&self.path)?;
        let text: String =
            self.mirror.upstream_refs()?.iter().map(|(name, id)| format!("{id} {name}\n")).collect();
        let file = self.path.join("packed-refs");
        fs::write(&file, text).map_err(GitError::io("write", &file))?;
        let shallow = self.mirror.path().join("shallow");
        if shallow.exists() {
            fs::copy(&shallow, self.path.join("shallow")).map_err(GitError::io("copy", &shallow))?;
        }
        self.give_away(&self.path)?;
        // Links: the files stay ours, and are read-only to others. After the giving away, which would reach them too.
        let (from, to) = (self.mirror.path().join("objects/pack"), self.path.join("objects/pack"));
        for entry in fs::read_dir(&from).map_err(GitError::io("list", &from))? {
            let entry = entry.map_err(GitError::io("list", &from))?;
            let (name, stat) = (entry.file_name(), entry.metadata());
            let readable = stat.is_ok_and(|stat| self.confined.user.is_none() || stat.mode() & 0o004 != 0);
            let text = name.to_string_lossy();
            if text.starts_with("pack-") && (text.ends_with(".pack") || text.ends_with(".idx")) && readable {
                fs::hard_link(entry.path(), to.join(&name)).map_err(GitError::io("link", &entry.path()))?;
                self.known.push(name);
            }
        }
        Ok(())
    }

    fn give_away(&self, folder: &Path) -> Result<(), GitError> {
        self.confined.give(folder)?;
        for entry in fs::read_dir(folder).map_err(GitError::io("list", folder))? {
            let path = entry.map_err(GitError::io("list", folder))?.path();
            if path.is_dir() { self.give_away(&path)? } else { self.confined.give(&path)? }
        }
        Ok(())
    }

    /// Takes over what git fetched: shallow commits, packs, then refs.
    pub fn take_over(&self) -> Result<(), GitError> {
        let stdin = Stdio::null();
        let args = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/upstream/"];
        let refs = parse_refs(&self.command("git for-each-ref", &args, stdin).run(MAX_LIST, || Ok(()))?)?;
        self.take_shallow()?;
        self.take_packs()?;
        self.take_refs(refs)
    }

    /// Commits whose parents upstream does not have.
    fn take_shallow(&self) -> Result<(), GitError> {
        let target = self.mirror.path().join("shallow");
        let Some(mut file) = self.open(&self.path, "shallow")? else {
            return match fs::remove_file(&target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(GitError::io("remove", &target)(error))
                }
                _ => Ok(()),
            };
        };
        let mut text = String::new();
        let read = (&mut file).take(MAX_LIST).read_to_string(&mut text);
        read.map_err(GitError::io("read", &self.path.join("shallow")))?;
        let ids: Vec<Oid> = text.lines().map(|line| Oid::from_str(line.trim())).collect::<Result<_, _>>()?;
        let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
        let unfinished = self.mirror.path().join("shallow.new");
        fs::write(&unfinished, text).map_err(GitError::io("write", &unfinished))?;
        fs::rename(&unfinished, &target).map_err(GitError::io("write", &target))
    }

    fn take_packs(&self) -> Result<(), GitError> {
        let folder = self.path.join("objects/pack");
        let opened = open_folder(&folder)?;
        let names = dirfd::names(&opened, 1 << 16).map_err(GitError::io("list", &folder))?;
        let is_new = |name: &&Vec<u8>| {
            name.ends_with(b".pack")
                && !self.known.iter().any(|known| known.as_encoded_bytes() == name.as_slice())
        };
        let names: Vec<&Vec<u8>> = names.iter().filter(is_new).collect();
        if names.len() > MAX_PACKS {
            let what = "the number of packs of a fetch";
            return Err(GitError::TooLarge { what, limit: MAX_PACKS as u64, seen: names.len() as u64 });
        }
        for name in names {
            let Some(pack) = self.open(&folder, &String::from_utf8_lossy(name))? else { continue };
            let index = GitCommand {
                what: "git index-pack",
                git_dir: self.mirror.path(),
                args: vec![
                    "index-pack".into(),
                    "--stdin".into(),
                    format!("--strict={}", fsck_levels()).into(),
                ],
                trusted: &[],
                objects: None,
                confined: None,
                stdin: Stdio::from(pack),
                limit: self.limits.time,
            };
            index.run(1 << 10, || Ok(()))?;
        }
        Ok(())
    }

    /// A regular file of the repository that was git's, which may be anything by now.
    fn open(&self, folder: &Path, name: &str) -> Result<Option<File>, GitError> {
        let path = folder.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = open_folder(folder)?;
        let file = match rustix::fs::openat(&opened, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => File::from(other.map_err(GitError::io("open", &path))?),
        };
        let stat = file.metadata().map_err(GitError::io("stat", &path))?;
        let reason = match () {
            () if !stat.is_file() => "it is no regular file",
            // A link to a file of somebody else's.
            () if self.confined.user.is_some_and(|(uid, _)| uid != stat.uid()) => "it is not the fetch's own",
            () if stat.len() > self.limits.bytes => "it is too large",
            () => return Ok(Some(file)),
        };
        Err(GitError::Staging { path, reason })
    }

    /// Old names go first: a new one may need the place of one as its folder.
    fn take_refs(&self, refs: Refs) -> Result<(), GitError> {
        let before = self.mirror.upstream_refs()?;
        let gone = before.keys().filter(|name| !refs.contains_key(*name));
        let gone: String = gone.map(|name| format!("delete {name}\n")).collect();
        let new = refs.iter().filter(|(name, id)| before.get(*name) != Some(*id));
        let new: String = new.map(|(name, id)| format!("update {name} {id}\n")).collect();
        for list in [gone, new].iter().filter(|list| !list.is_empty()) {
            let update = GitCommand {
                what: "git update-ref",
                git_dir: self.mirror.path(),
                args: vec!["update-ref".into(), "--no-deref".into(), "--stdin".into()],
                trusted: &[],
                objects: None,
                confined: None,
                stdin: stdin_of(list.as_bytes())?,
                limit: self.limits.time,
            };
            update.run(1 << 10, || Ok(()))?;
        }
        Ok(())
    }
}

fn parse_refs(list: &[u8]) -> Result<Refs, GitError> {
    let mut refs = Refs::new();
    for line in list.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let broken = || GitError::InvalidRevision(String::from_utf8_lossy(line).into_owned());
        // Names that are not UTF-8 cannot be asked for by anybody.
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let (id, name) = line.split_once(' ').ok_or_else(broken)?;
        let ours = name.starts_with(HEADS) || name.starts_with(TAGS);
        if name == "refs/upstream/HEAD" {
            continue;
        }
        if !ours || !Reference::is_valid_name(name) || id.len() != 40 {
            return Err(broken());
        }
        refs.insert(name.to_owned(), Oid::from_str(id)?);
    }
    Ok(refs)
}
