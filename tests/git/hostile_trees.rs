//! What a hostile repository's own objects try, on their way in.

use std::{fs, os::unix::ffi::OsStrExt};

use anyhow::{Context, Result};
use git2::{Oid, Repository};
use kage::git::{
    base::{CheckoutLimits, Settings},
    error::GitError,
    mirror::Mirror,
};

use crate::support::{World, settings};

const FILES: &[(&str, &str)] = &[("a.txt", "one\n"), ("dir/b.txt", "two\n")];

/// Mode, name and object, as they stand in a tree.
type RawEntry<'a> = (&'a str, &'a [u8], Oid);

/// Writes a tree object as it is, however wrong.
fn raw_tree(repository: &Repository, entries: &[RawEntry<'_>]) -> Result<Oid> {
    let mut bytes = Vec::new();
    for (mode, name, id) in entries {
        bytes.extend_from_slice(mode.as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(id.as_bytes());
    }
    Ok(repository.odb()?.write(git2::ObjectType::Tree, &bytes)?)
}

/// A history that reached the mirror in spite of fsck: the checkout refuses it by itself.
#[test]
fn hostile_trees_are_refused_at_checkout() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let repository = Repository::open_bare(mirror.path())?;
    let blob = repository.blob(b"x")?;
    let link = repository.blob(b"/etc")?;
    let inner = raw_tree(&repository, &[("100644", b"x", blob)])?;
    let long = [b'x'; 300];
    let cases: Vec<(&str, Vec<RawEntry<'_>>)> = vec![
        ("parent", vec![("40000", b"..", inner)]),
        ("self", vec![("40000", b".", inner)]),
        ("git", vec![("40000", b".git", inner)]),
        ("GIT", vec![("40000", b".GIT", inner)]),
        ("hfs", vec![("40000", ".g\u{200c}it".as_bytes(), inner)]),
        ("ntfs", vec![("40000", b"git~1", inner)]),
        ("slash", vec![("100644", b"../x", blob)]),
        ("absolute", vec![("100644", b"/tmp/x", blob)]),
        ("empty", vec![("100644", b"", blob)]),
        ("twice", vec![("100644", b"a", blob), ("100644", b"a", blob)]),
        ("link and folder", vec![("120000", b"a", link), ("40000", b"a", inner)]),
        (
            "folder and link apart",
            vec![("120000", b"a", link), ("100644", b"a.b", blob), ("40000", b"a", inner)],
        ),
        ("mode", vec![("20000", b"a", blob)]),
        ("long", vec![("100644", &long, blob)]),
    ];
    for (name, entries) in cases {
        let tree = raw_tree(&repository, &entries)?;
        let commit =
            format!("tree {tree}\nauthor x <x@localhost> 1 +0000\ncommitter x <x@localhost> 1 +0000\n\nx\n");
        let commit = repository.odb()?.write(git2::ObjectType::Commit, commit.as_bytes())?;
        let refused = world.bases()?.acquire(&mirror, Some(commit), &settings());
        assert!(
            matches!(refused, Err(GitError::UnsafeTree { .. } | GitError::Libgit2(_))),
            "{name}: {refused:?}"
        );
        let left: Vec<_> =
            fs::read_dir(world.path("bases"))?.flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| name.as_bytes().ends_with(b".lock")), "{name}: {left:?}");
    }
    assert!(!world.path("bases/x").exists() && !world.path("x").exists());
    Ok(())
}

/// Ten folders in each of ten levels: a checkout of 10^10 files from eleven objects.
#[test]
fn a_tree_that_multiplies_itself_ends_at_the_limit() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let repository = Repository::open_bare(mirror.path())?;
    let blob = repository.blob(b"x")?;
    let mut tree = raw_tree(&repository, &[("100644", b"x", blob)])?;
    for _ in 0..10 {
        let names: Vec<[u8; 1]> = (b'0'..=b'9').map(|digit| [digit]).collect();
        let entries: Vec<RawEntry<'_>> = names.iter().map(|name| ("40000", name.as_slice(), tree)).collect();
        tree = raw_tree(&repository, &entries)?;
    }
    let who = git2::Signature::now("x", "x@localhost")?;
    let commit = repository.commit(None, &who, &who, "x", &repository.find_tree(tree)?, &[])?;
    let refused = world.bases()?.acquire(&mirror, Some(commit), &settings());
    assert!(matches!(refused, Err(GitError::CheckoutLimit { .. })), "{refused:?}");
    Ok(())
}

#[test]
fn a_fetch_refuses_what_fsck_finds() -> Result<()> {
    let world = World::with_files(FILES)?;
    let repository = Repository::open(&world.upstream)?;
    let blob = repository.blob(b"x")?;
    let inner = raw_tree(&repository, &[("100644", b"x", blob)])?;
    let zero = Oid::from_bytes(&[0; 20])?;
    let modules = repository.blob(b"[submodule \"../x\"]\n\tpath = x\n\turl = -u./payload\n")?;
    let link = repository.blob(b"/etc/passwd")?;
    let cases: Vec<(&str, Vec<RawEntry<'_>>)> = vec![
        ("git", vec![("40000", b".git", inner)]),
        ("GIT", vec![("40000", b".GIT", inner)]),
        ("parent", vec![("40000", b"..", inner)]),
        ("self", vec![("40000", b".", inner)]),
        ("slash", vec![("100644", b"a/b", blob)]),
        ("twice", vec![("100644", b"a", blob), ("100644", b"a", blob)]),
        ("order", vec![("100644", b"b", blob), ("100644", b"a", blob)]),
        ("null", vec![("160000", b"a", zero)]),
        ("gitmodules", vec![("100644", b".gitmodules", modules)]),
        ("gitmodules link", vec![("120000", b".gitmodules", link)]),
    ];
    let mut refused = Vec::new();
    for (name, entries) in &cases {
        let tree = raw_tree(&repository, entries)?;
        let commit =
            format!("tree {tree}\nauthor x <x@localhost> 1 +0000\ncommitter x <x@localhost> 1 +0000\n\nx\n");
        let id = repository.odb()?.write(git2::ObjectType::Commit, commit.as_bytes())?;
        repository.reference("refs/heads/evil", id, true, "")?;
        let mirror = Mirror::create(&world.path(&format!("mirror-{}", name.replace(' ', "-"))))?;
        let source = world.upstream.to_str().context("plain")?;
        if mirror.fetch(source, &crate::support::fetch_limits()).is_err() && mirror.resolve("evil")?.is_none()
        {
            refused.push(*name);
        }
    }
    let all: Vec<_> = cases.iter().map(|(name, _)| *name).collect();
    assert_eq!(refused, all);
    Ok(())
}

/// Old, honest histories have oddities; they are fetched.
#[test]
fn harmless_oddities_of_old_histories_are_fetched() -> Result<()> {
    let world = World::with_files(FILES)?;
    let repository = Repository::open(&world.upstream)?;
    let blob = repository.blob(b"x")?;
    let tree = raw_tree(&repository, &[("0100644", b"x", blob)])?;
    let commit = format!("tree {tree}\nauthor x <x@localhost>1 +0000\ncommitter x <> 0001 +00000\n\nx\n");
    let id = repository.odb()?.write(git2::ObjectType::Commit, commit.as_bytes())?;
    repository.reference("refs/heads/odd", id, true, "")?;
    let mirror = world.mirror()?;
    assert_eq!(mirror.resolve("odd")?, Some(id));
    Ok(())
}

/// A file of nothing but zeros is small in a repository and large in memory.
#[test]
fn a_file_that_is_too_large_is_named_and_not_read() -> Result<()> {
    let world = World::with_files(FILES)?;
    let mirror = world.mirror()?;
    let repository = Repository::open_bare(mirror.path())?;
    let blob = repository.blob(&vec![0; 5 << 20])?;
    let inner = raw_tree(&repository, &[("100644", b"one", blob)])?;
    let tree = raw_tree(&repository, &[("40000", b"deep", inner)])?;
    let tree = repository.find_tree(tree)?;
    let author = git2::Signature::new("x", "x@x", &git2::Time::new(0, 0))?;
    let commit = repository.commit(None, &author, &author, "x", &tree, &[])?;
    let acquire = |file_bytes, bytes| {
        let limits = CheckoutLimits { file_bytes, bytes, ..CheckoutLimits::default() };
        world
            .bases()?
            .acquire(&mirror, Some(commit), &Settings { limits, ..settings() })
            .map_err(anyhow::Error::from)
    };
    let refused = acquire(4 << 20, 1 << 30).err().context("it is too large")?;
    assert!(
        refused.to_string().contains("the file \"deep/one\" has 5242880 bytes; the limit is 4194304"),
        "{refused}"
    );
    let refused = acquire(1 << 30, (5 << 20) - 1).err().context("all is too large")?;
    assert!(refused.to_string().contains("the size of all files"), "{refused}");
    // Not even a folder was made.
    let left: Vec<_> =
        fs::read_dir(world.path("bases"))?.filter_map(|it| Some(it.ok()?.file_name())).collect();
    assert!(left.iter().all(|name| name.as_bytes().ends_with(b".lock")), "{left:?}");
    acquire(5 << 20, 1 << 30)?;
    Ok(())
}
