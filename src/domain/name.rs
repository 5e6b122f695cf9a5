//! Names that end up in branches, paths and labels.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A short name that is safe in a branch, a path, a label and a URL: `[a-z0-9][a-z0-9._-]*`, at most 64
/// bytes, without `..`, not ending in `.` or `.lock`. Names CLIs, runs and repositories.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Says which rule a name broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name has 1 to 64 of the characters a-z, 0-9, '.', '_' and '-', begins with a letter or digit, \
     has no '..' and does not end in '.' or '.lock'"
)]
pub struct InvalidName;

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let first = text.bytes().next().is_some_and(plain);
        let rest = text.bytes().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'));
        if first
            && rest
            && text.len() <= 64
            && !text.contains("..")
            && !text.ends_with('.')
            && !text.ends_with(".lock")
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName)
        }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_is_safe_in_a_branch_and_refuses_the_rest() {
        for good in ["shell", "claude-code", "a", "gpt-5.5", "x_1"] {
            assert_eq!(good.parse::<Name>().map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", "-x", ".x", "A", "a b", "a/b", "a..b", "a.", "a.lock", "ä", "a\n", &"a".repeat(65)] {
            assert_eq!(bad.parse::<Name>(), Err(InvalidName), "{bad:?}");
        }
    }
}
