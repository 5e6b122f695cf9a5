//! What of a repository's own configuration a run may see: what an operator has approved, and nothing else.

use std::collections::HashSet;

use bstr::{BString, ByteSlice};

use crate::db::images::ImageRow;
use crate::db::quarantine::Seen;
use crate::git::quarantine::Finding;
use crate::git::quarantine_rules::Rules;
use crate::image::manifest::Manifest;
use crate::wire::quarantine::Quarantined;

/// Most bytes of a path that are stored.
const MAX_PATH: usize = 1024;
/// Paths that a warning names.
const NAMED: usize = 10;

/// What a revision has, and what of it a run does not see.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    pub seen: Vec<Seen>,
    pub hidden: Vec<BString>,
    pub record: Vec<Quarantined>,
}

impl Quarantine {
    /// `approved`: paths and digests.
    pub fn new(found: &[Finding], approved: &HashSet<(String, String)>) -> Self {
        let seen: Vec<Seen> = found.iter().map(seen).collect();
        let mut this = Self::default();
        for (finding, seen) in found.iter().zip(&seen) {
            let pair = (seen.path.clone(), seen.digest.clone());
            if finding.obstacle.is_none() && approved.contains(&pair) {
                continue;
            }
            this.hidden.push(finding.path.clone());
            this.record.push(Quarantined { path: pair.0, digest: pair.1 });
        }
        Self { seen, ..this }
    }

    /// For the run's watchers.
    pub fn warning(&self, repository: &str) -> Option<String> {
        let first = self.record.first()?;
        let names: Vec<String> =
            self.record.iter().take(NAMED).map(|it| format!("{:?} ({})", it.path, it.digest)).collect();
        let more = match self.record.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let path = if first.path.contains(['\'', '"', '\\']) { "PATH" } else { &first.path };
        Some(format!(
            "hidden from this run, since a CLI would obey it and no operator has approved it: {}{more}; to approve: \
             kage repo approve {repository} --path '{path}'",
            names.join(", ")
        ))
    }
}

/// How a finding is written down. A path that is not plain text is escaped, and never approved.
pub(super) fn seen(finding: &Finding) -> Seen {
    let plain = finding.path.to_str().ok().filter(|path| {
        let approvable = finding.obstacle.is_none() && path.len() <= MAX_PATH;
        approvable || (path.len() <= MAX_PATH && !path.chars().any(char::is_control))
    });
    let path = plain.map_or_else(
        || {
            let mut escaped = format!("{:?}", finding.path.as_bstr());
            escaped.truncate(escaped.floor_char_boundary(MAX_PATH));
            escaped
        },
        str::to_owned,
    );
    Seen {
        path,
        digest: finding.digest.clone(),
        kind: finding.kind.as_str(),
        files: i64::try_from(finding.files).unwrap_or(i64::MAX),
        bytes: i64::try_from(finding.bytes).unwrap_or(i64::MAX),
        obstacle: finding.obstacle,
    }
}

/// The rules of one image.
pub(super) fn rules(manifest: &Manifest) -> Rules {
    Rules::new(&manifest.quarantine)
}

/// The rules of all registered images together: what some run would not see.
pub(super) fn all_rules(images: &[ImageRow]) -> Rules {
    let patterns = |image: &ImageRow| {
        serde_json::from_value::<Manifest>(image.manifest.clone()).map(|it| it.quarantine).unwrap_or_default()
    };
    Rules::new(images.iter().flat_map(patterns))
}
