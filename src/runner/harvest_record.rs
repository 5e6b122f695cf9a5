//! What the audit trail keeps of a harvest: the commit, its files with their hashes, the warnings.
//!
//! Paths and warnings are words that an agent can choose, so the entry is bounded; a hash tells all of the list.

use git2::Oid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::git::diff::{FileChange, Patch};
use crate::wire::run::HarvestFindings;

/// Bytes of named files, and of warnings: an entry of the trail is to fit into a bundle of C2SP tlog-tiles (64 KiB).
const FILES_BYTES: usize = 32 << 10;
const WARNINGS_BYTES: usize = 8 << 10;

pub(super) fn of(
    branch: &str,
    commit: Oid,
    files: &[FileChange],
    patch: &Patch,
    findings: &HarvestFindings,
) -> Value {
    let mut digest = Sha256::new();
    let mut listed = Vec::new();
    let mut bytes = 0;
    for file in files {
        let line = line(file);
        let text = line.to_string();
        digest.update(&text);
        digest.update("\n");
        bytes += text.len();
        if bytes <= FILES_BYTES {
            listed.push(line);
        }
    }
    let mut bytes = 0;
    let warnings = findings.warnings.iter().take_while(|warning| {
        bytes += warning.len();
        bytes <= WARNINGS_BYTES
    });
    json!({
        "branch": branch,
        "commit": commit.to_string(),
        "files": listed,
        "files_total": files.len(),
        "files_sha256": hex::encode(digest.finalize()),
        "patch_sha256": hex::encode(Sha256::digest(&patch.bytes)),
        "patch_truncated": patch.truncated,
        "warnings": warnings.collect::<Vec<_>>(),
        "warnings_total": findings.warnings.len(),
        "rejected": findings.rejected.len(),
        "flagged": findings.flagged.len(),
    })
}

/// `blob`: git's id of the new content, which `git hash-object` makes of it.
fn line(file: &FileChange) -> Value {
    // What JSON in Postgres cannot hold.
    let path = file.path.to_string().replace('\0', "\u{fffd}");
    json!({ "path": path, "status": file.status.as_str(), "blob": file.blob.map(|id| id.to_string()), "bytes": file.size,
            "mode": format!("{:06o}", file.new_mode) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::diff::FileStatus;

    #[test]
    fn an_agent_cannot_make_the_entry_long_nor_hide_a_file_in_it() {
        let file = |number: usize| FileChange {
            path: format!("{number}-{}", "x".repeat(200)).into(),
            old_path: None,
            status: FileStatus::Added,
            old_mode: 0,
            new_mode: 0o100_644,
            insertions: 1,
            deletions: 0,
            binary: false,
            compared: true,
            size: 3,
            blob: Some(Oid::from_bytes(&[7; 20]).unwrap()),
        };
        let mut files: Vec<FileChange> = (0..20_000).map(file).collect();
        let findings =
            HarvestFindings { warnings: vec!["w".repeat(2000); 1000], ..HarvestFindings::default() };
        let of = |files: &[FileChange]| of("task-1", Oid::ZERO_SHA1, files, &Patch::default(), &findings);
        let long = of(&files);
        assert!(long.to_string().len() < 48 << 10, "{}", long.to_string().len());
        assert_eq!((&long["files_total"], &long["warnings_total"]), (&json!(20_000), &json!(1000)));
        assert_eq!(long["files"][0]["blob"], "07".repeat(20));
        // The last one is named nowhere, and told all the same.
        files[19_999].blob = Some(Oid::from_bytes(&[8; 20]).unwrap());
        let other = of(&files);
        assert_eq!(long["files"], other["files"]);
        assert_ne!(long["files_sha256"], other["files_sha256"]);
    }
}
