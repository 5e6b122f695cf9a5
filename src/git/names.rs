//! Names that must never get into a tree of ours, or out of one onto a disk.
//!
//! The rules are git's own (`verify_path` with `core.protectHFS` and `core.protectNTFS`), since a result
//! branch may be checked out on any system.

/// Why `name` may not be one component of a path, if so.
pub fn refused_component(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => return Some("empty name"),
        b"." | b".." => return Some("a name that means another folder"),
        _ => {}
    }
    if name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Some("a separator in a name");
    }
    if is_dotgit(name) {
        return Some("a name that some file systems read as .git");
    }
    None
}

/// Whether some file system reads `name` as `.git`.
pub fn is_dotgit(name: &[u8]) -> bool {
    if without_hfs_ignorables(name).eq_ignore_ascii_case(b".git") {
        return true;
    }
    name.split(|&byte| byte == b'\\').any(|part| {
        let part = ntfs_name(part);
        part.eq_ignore_ascii_case(b".git") || part.eq_ignore_ascii_case(b"git~1")
    })
}

/// Whether some file system reads `name` as `.gitmodules`, which git refuses as a symbolic link.
pub fn is_dotgitmodules(name: &[u8]) -> bool {
    if without_hfs_ignorables(name).eq_ignore_ascii_case(b".gitmodules") {
        return true;
    }
    let name = ntfs_name(name).to_ascii_lowercase();
    name == b".gitmodules"
        || matches!(name.strip_prefix(b"gitmod~".as_slice()), Some([b'1'..=b'4']))
        || (name.starts_with(b"gi7eba") && name.contains(&b'~'))
}

/// What NTFS makes of a name: no stream, no trailing spaces and dots.
pub(crate) fn ntfs_name(name: &[u8]) -> &[u8] {
    let name = name.split(|&byte| byte == b':').next().unwrap_or_default();
    let end = name.iter().rposition(|byte| !matches!(byte, b' ' | b'.')).map_or(0, |last| last + 1);
    &name[..end]
}

/// What HFS+ makes of a name: it ignores these code points (git `utf8.c`, `next_hfs_char`).
pub(crate) fn without_hfs_ignorables(name: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        match rest {
            [0xe2, 0x80, 0x8c..=0x8f | 0xaa..=0xae, ..]
            | [0xe2, 0x81, 0xaa..=0xaf, ..]
            | [0xef, 0xbb, 0xbf, ..] => {
                rest = &rest[3..];
            }
            _ => {
                kept.push(first);
                rest = tail;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_dotgit_is_refused() {
        for name in [
            ".git",
            ".GIT",
            ".gIt",
            "git~1",
            "GIT~1",
            ".git.",
            ".git ",
            ".git . .",
            ".git::$INDEX_ALLOCATION",
            ".git:x",
            ".git\\hooks",
            "a\\.git",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".gi\u{202e}t",
            ".git\u{206a}",
            ".G\u{200f}IT",
            "..",
            ".",
            "",
            "a/b",
            "a\0b",
        ] {
            assert!(refused_component(name.as_bytes()).is_some(), "{name:?}");
        }
    }

    #[test]
    fn ordinary_and_odd_names_are_allowed() {
        for name in [
            ".gitignore",
            ".github",
            "git",
            "git~2",
            "...",
            "a\\b",
            "con",
            "-rf",
            "a\nb",
            "\u{202e}x",
            ".git2",
            "x.git",
        ] {
            assert_eq!(refused_component(name.as_bytes()), None, "{name:?}");
        }
        assert_eq!(refused_component(b"\xff\xfe"), None);
    }

    #[test]
    fn forms_of_gitmodules_are_known() {
        for name in
            [".gitmodules", ".GITMODULES", "gitmod~1", "GI7EBA~1", ".gitmodules ", ".git\u{200c}modules"]
        {
            assert!(is_dotgitmodules(name.as_bytes()), "{name:?}");
        }
        for name in [".gitmodule", "gitmod~5", "gitmodules"] {
            assert!(!is_dotgitmodules(name.as_bytes()), "{name:?}");
        }
    }
}
