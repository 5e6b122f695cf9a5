//! The git anchor: a commit a checkpoint on a branch of a bare repository, which others may fetch and keep.

use std::path::Path;

use git2::{ErrorCode, ObjectType, Repository, Signature, Tree};

const BRANCH: &str = "refs/heads/kage-checkpoints";
const NAME: &str = "checkpoint";
const AUTHOR: (&str, &str) = ("Kage Bunshin", "kage@localhost");

fn open(path: &Path) -> Result<Repository, String> {
    Repository::open_bare(path).map_err(|error| format!("{}: {}", path.display(), error.message()))
}

/// # Errors
/// What git says.
pub fn commit(path: &Path, note: &str) -> Result<(), String> {
    let repository = open(path)?;
    let work = || -> Result<(), git2::Error> {
        let parent = match repository.find_reference(BRANCH) {
            Ok(branch) => Some(branch.peel_to_commit()?),
            Err(error) if error.code() == ErrorCode::NotFound => None,
            Err(error) => return Err(error),
        };
        let blob = repository.blob(note.as_bytes())?;
        let mut tree = repository.treebuilder(None)?;
        tree.insert(NAME, blob, 0o100_644)?;
        let tree: Tree<'_> = repository.find_tree(tree.write()?)?;
        if parent.as_ref().is_some_and(|parent| parent.tree_id() == tree.id()) {
            return Ok(());
        }
        let author = Signature::now(AUTHOR.0, AUTHOR.1)?;
        let size = note.lines().nth(1).unwrap_or_default();
        let message = format!("Checkpoint of {size} entries\n");
        let parents: Vec<_> = parent.iter().collect();
        repository.commit(Some(BRANCH), &author, &author, &message, &tree, &parents)?;
        Ok(())
    };
    work().map_err(|error| error.message().to_owned())
}

/// The note of the branch's last commit.
///
/// # Errors
/// What git says.
pub fn last(path: &Path) -> Result<Option<String>, String> {
    let repository = open(path)?;
    let work = || -> Result<Option<Vec<u8>>, git2::Error> {
        let branch = match repository.find_reference(BRANCH) {
            Ok(branch) => branch,
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let tree = branch.peel_to_tree()?;
        let entry = tree.get_path(Path::new(NAME))?;
        let blob = entry.to_object(&repository)?.peel(ObjectType::Blob)?;
        Ok(blob.as_blob().map(|blob| blob.content().to_vec()))
    };
    let note = work().map_err(|error| error.message().to_owned())?;
    note.map(|note| String::from_utf8(note).map_err(|_| "its checkpoint is no text".to_owned())).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_keeps_every_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        assert!(last(folder.path()).is_err(), "no repository");
        let repository = Repository::init_bare(folder.path()).unwrap();
        assert_eq!(last(folder.path()).unwrap(), None);
        for note in ["log\n1\nx\n", "log\n2\ny\n", "log\n2\ny\n"] {
            commit(folder.path(), note).unwrap();
            assert_eq!(last(folder.path()).unwrap().as_deref(), Some(note));
        }
        let mut walk = repository.revwalk().unwrap();
        walk.push_ref(BRANCH).unwrap();
        assert_eq!(walk.count(), 2);
    }
}
