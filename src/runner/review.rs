//! Changes that a person should look at before anything else: files that some program obeys without being asked.

use bstr::ByteSlice;

use crate::git::diff::FileChange;
use crate::git::quarantine_rules::Rules;
use crate::image::manifest::Manifest;
use crate::wire;
use crate::wire::run::FlaggedKind;

/// Paths that are named, each in a warning of its own.
const NAMED: usize = 20;
/// Paths that are listed, in the audit trail and for clients.
pub(super) const LISTED: usize = 100;

/// A changed path of that kind.
pub(super) struct Flagged {
    /// As it is shown: escaped where it is not plain text.
    pub path: String,
    /// Of a CLI, which the base's own would be hidden for; else of an editor, a build or a forge.
    pub configuration: bool,
}

pub(super) fn flagged(files: &[FileChange], manifest: Option<&Manifest>) -> Vec<Flagged> {
    let none = Vec::new();
    let configuration = Rules::new(manifest.map_or(&none, |manifest| &manifest.quarantine));
    let reviewed = Rules::reviewed();
    let flag = |file: &FileChange| {
        let mut paths = [Some(&file.path), file.old_path.as_ref()].into_iter().flatten();
        let is_configuration = paths.clone().any(|path| configuration.cover(path));
        let counts = is_configuration || paths.any(|path| reviewed.cover(path));
        let path = format!("{:?}", file.path.as_bstr());
        counts.then_some(Flagged { path, configuration: is_configuration })
    };
    let mut flagged: Vec<Flagged> = files.iter().filter_map(flag).collect();
    flagged.sort_by_key(|it| !it.configuration);
    flagged
}

/// Without its quotes, where they hold nothing that is escaped.
fn plain(quoted: &str) -> String {
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.filter(|inner| !inner.contains('\\')).unwrap_or(quoted).to_owned()
}

/// For clients.
pub(super) fn listed(flagged: &[Flagged]) -> Vec<wire::run::Flagged> {
    let one = |it: &Flagged| wire::run::Flagged {
        path: plain(&it.path),
        kind: if it.configuration { FlaggedKind::Configuration } else { FlaggedKind::Review },
    };
    flagged.iter().take(LISTED).map(one).collect()
}

pub(super) fn warnings(flagged: &[Flagged]) -> Vec<String> {
    let one = |it: &Flagged| match it.configuration {
        true => format!(
            "Configuration {}: a CLI obeys it before its first prompt; read it before you merge",
            it.path
        ),
        false => {
            format!("Review {}: programs obey it without being asked; read it before you merge", it.path)
        }
    };
    let mut warnings: Vec<String> = flagged.iter().take(NAMED).map(one).collect();
    match flagged.len().saturating_sub(NAMED) {
        0 => {}
        more => warnings.push(format!("… and {more} more such changes")),
    }
    warnings
}
