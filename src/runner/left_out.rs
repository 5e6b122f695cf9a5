//! What a harvest did not take, for clients: as a list, and in words.

use bstr::ByteSlice as _;

use crate::git::harvest::{Harvest, Warning, WarningKind};
use crate::wire::run::Rejected;

pub(super) fn rejected(found: &Harvest) -> Vec<Rejected> {
    found.warnings.iter().map(one).collect()
}

fn one(warning: &Warning) -> Rejected {
    let reason = match warning.kind {
        WarningKind::SpecialFile => special_file(&warning.detail),
        _ => warning.detail.clone(),
    };
    // The quotes are for sentences; here the path stands alone.
    let shown = format!("{:?}", warning.path.as_bstr());
    let path = match warning.path.to_str() {
        Ok(plain) if shown == format!("\"{plain}\"") => plain.to_owned(),
        _ => shown,
    };
    Rejected { path, kind: kind(warning.kind), reason }
}

/// The kind's name, as JSON spells names: `NestedGit` is `nested_git`.
fn kind(kind: WarningKind) -> String {
    let mut name = String::new();
    for c in format!("{kind:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(c.to_lowercase());
    }
    name
}

/// The harvest gives the type's name.
fn special_file(detail: &str) -> String {
    match detail {
        "Fifo" => "it is a FIFO (a named pipe), which git cannot hold".to_owned(),
        "Socket" => "it is a socket, which git cannot hold".to_owned(),
        "CharacterDevice" | "BlockDevice" => "it is a device, which git cannot hold".to_owned(),
        other => format!("it is a special file ({other}), which git cannot hold"),
    }
}

pub(super) fn warnings(found: &Harvest) -> Vec<String> {
    let words = |warning: &Warning| {
        let Rejected { reason, .. } = one(warning);
        let path = warning.path.as_bstr();
        match warning.kind {
            WarningKind::Held => format!("Held {path:?}: {reason}"),
            WarningKind::Ignored => format!("Not taken: {reason}"),
            WarningKind::IgnoreRules => format!("Not all rules of {path:?} were followed: {reason}"),
            _ => format!("Left out {path:?}: {reason}"),
        }
    };
    let mut warnings: Vec<String> = found.warnings.iter().map(words).collect();
    if found.warnings_dropped > 0 {
        warnings.push(format!("… and {} more that the harvest left out", found.warnings_dropped));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_told_in_words() {
        let warning =
            |kind, path: &str, detail: &str| Warning { kind, path: path.into(), detail: detail.to_owned() };
        let fifo = one(&warning(WarningKind::SpecialFile, "pipe", "Fifo"));
        assert_eq!((fifo.kind.as_str(), fifo.path.as_str()), ("special_file", "pipe"));
        assert!(fifo.reason.contains("a named pipe"), "{fifo:?}");
        let hostile = one(&warning(WarningKind::NestedGit, "a\u{200b}\n/.git", "why"));
        assert_eq!((hostile.kind.as_str(), &*hostile.path), ("nested_git", r#""a\u{200b}\n/.git""#));
    }
}
