//! The branches with results in a mirror.

use git2::ErrorCode;

use crate::git::{error::GitError, mirror::Mirror};

const RESULTS: &str = "refs/heads/task-";

impl Mirror {
    /// Names of the branches with results: `task-…`.
    pub fn results(&self) -> Result<Vec<String>, GitError> {
        let repository = self.repository()?;
        let mut names = Vec::new();
        for name in repository.references_glob(&format!("{RESULTS}*"))?.names() {
            names.extend(name?.strip_prefix("refs/heads/").map(str::to_owned));
        }
        Ok(names)
    }

    /// Removes a branch with results. Others are not touched; whether it was there.
    pub fn remove_result(&self, branch: &str) -> Result<bool, GitError> {
        let name = format!("refs/heads/{branch}");
        if !name.starts_with(RESULTS) {
            return Ok(false);
        }
        match self.repository()?.find_reference(&name) {
            Ok(mut reference) => Ok(reference.delete().map(|()| true)?),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
