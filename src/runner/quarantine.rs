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
/// Paths that its hint spells out.
const HINTED: usize = 5;

/// What a revision has, and what of it a run does not see.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    pub seen: Vec<Seen>,
    pub hidden: Vec<BString>,
    pub record: Vec<Quarantined>,
    /// Paths of `record` that an operator can approve.
    approvable: Vec<String>,
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
            if finding.obstacle.is_none() {
                this.approvable.push(pair.0.clone());
            }
            this.record.push(Quarantined {
                path: pair.0,
                digest: pair.1,
                obstacle: seen.obstacle.map(str::to_owned),
            });
        }
        Self { seen, ..this }
    }

    /// For the run's watchers.
    pub fn warning(&self, repository: &str) -> Option<String> {
        if self.record.is_empty() {
            return None;
        }
        let names: Vec<String> =
            self.record.iter().take(NAMED).map(|it| format!("{:?} ({})", it.path, it.digest)).collect();
        let more = match self.record.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "hidden from this run, since a CLI would obey it and no operator has approved it: {}{more}; {}",
            names.join(", "),
            self.hint(repository)
        ))
    }

    /// Names what can be approved, and nothing else.
    fn hint(&self, repository: &str) -> String {
        let all = self.record.len();
        let can = match self.approvable.len() {
            0 => {
                let why = self.record.iter().find_map(|it| it.obstacle.as_deref()).unwrap_or("unknown");
                return format!("none of it can be approved ({why})");
            }
            some if some == all => String::new(),
            some => format!(" the {some} of {all} that can be approved"),
        };
        let is_plain = |path: &String| path.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
        let how = if self.approvable.len() <= HINTED && self.approvable.iter().all(is_plain) {
            self.approvable.iter().map(|path| format!(" --path {path}")).collect()
        } else {
            " (lists them; then --path PATH or --all)".to_owned()
        };
        format!("to approve{can}: kage repo approve {repository}{how}")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(paths: &[(&str, Option<&str>)]) -> String {
        let mut quarantine = Quarantine::default();
        for (path, obstacle) in paths {
            let obstacle = obstacle.map(str::to_owned);
            if obstacle.is_none() {
                quarantine.approvable.push((*path).to_owned());
            }
            let (path, digest) = ((*path).to_owned(), "sha256:00".to_owned());
            quarantine.record.push(Quarantined { path, digest, obstacle });
        }
        quarantine.hint("demo")
    }

    #[test]
    fn only_what_can_be_approved_is_hinted_at() {
        let link = Some("it holds a link");
        assert_eq!(
            hint(&[(".gemini", link), (".claude", None), (".mcp.json", None)]),
            "to approve the 2 of 3 that can be approved: kage repo approve demo --path .claude --path .mcp.json"
        );
        assert_eq!(hint(&[(".claude", None)]), "to approve: kage repo approve demo --path .claude");
        assert_eq!(hint(&[(".gemini", link)]), "none of it can be approved (it holds a link)");
        let odd = hint(&[("$(reboot)/.claude", None)]);
        assert!(!odd.contains("reboot") && odd.contains("--all"), "{odd}");
    }
}
