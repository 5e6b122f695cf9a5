//! References to secrets.

use std::path::PathBuf;

use secrecy::SecretString;

/// Where a secret is. Shown without anything that may itself be secret: of a command only its program.
#[derive(Clone)]
pub enum Source {
    /// The value itself.
    Literal(SecretString),
    /// A variable of our environment, or the file that the variable with `_FILE` after its name names.
    Environment(String),
    File(PathBuf),
    /// A program, by its absolute path, and its arguments.
    Command(Vec<String>),
    Vault(VaultPath),
}

/// A field of a secret in a KV store of version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultPath {
    pub mount: String,
    pub path: String,
    pub field: String,
}

/// A reference that cannot be understood. Its text is not repeated: it may be the secret itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReference {
    #[error("env: is followed by the name of a variable")]
    Environment,
    #[error("file: is followed by an absolute path")]
    File,
    #[error("exec: is followed by the absolute path of a program and its arguments, quoted as for a shell")]
    Command,
    #[error("vault: is followed by mount/path#field (mount//path#field where the mount has a '/')")]
    Vault,
    #[error("a credential is given as env:NAME, file:/path, exec:/program or vault:mount/path#field")]
    NoReference,
}

impl Source {
    /// Reads a setting: a reference, `literal:` and the value, or the value itself.
    ///
    /// # Errors
    /// [`BadReference`] if it begins as a reference and is none.
    pub fn of_setting(text: &str) -> Result<Self, BadReference> {
        match Self::of_reference(text) {
            Err(BadReference::NoReference) => {
                Ok(Self::Literal(text.strip_prefix("literal:").unwrap_or(text).into()))
            }
            other => other,
        }
    }

    /// Reads a reference where no value may stand.
    ///
    /// # Errors
    /// [`BadReference`].
    pub fn of_reference(text: &str) -> Result<Self, BadReference> {
        let (kind, rest) = text.split_once(':').ok_or(BadReference::NoReference)?;
        match kind {
            "env" if rest.is_empty() || rest.contains(['=', '\0']) => Err(BadReference::Environment),
            "env" => Ok(Self::Environment(rest.to_owned())),
            "file" if !rest.starts_with('/') || rest.contains('\0') => Err(BadReference::File),
            "file" => Ok(Self::File(rest.into())),
            "exec" => {
                let words = shlex::split(rest).filter(|words| !rest.contains('\0') && !words.is_empty());
                let words = words.filter(|words| words[0].starts_with('/'));
                words.map(Self::Command).ok_or(BadReference::Command)
            }
            "vault" => VaultPath::parse(rest).map(Self::Vault).ok_or(BadReference::Vault),
            _ => Err(BadReference::NoReference),
        }
    }

    /// Whether its value may change without our doing, and only asking tells.
    pub fn is_asked(&self) -> bool {
        matches!(self, Self::Command(_) | Self::Vault(_))
    }
}

impl VaultPath {
    fn parse(text: &str) -> Option<Self> {
        let (place, field) = text.split_once('#')?;
        let (mount, path) = place.split_once("//").or_else(|| place.split_once('/'))?;
        // A path that a URL parser reads otherwise than it is written would lead elsewhere.
        let plain = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && !part.chars().any(|c| c.is_control() || c == '\\')
        };
        let good = mount.split('/').chain(path.split('/')).all(plain) && !field.is_empty();
        good.then(|| Self { mount: mount.to_owned(), path: path.to_owned(), field: field.to_owned() })
    }
}

impl TryFrom<String> for Source {
    type Error = BadReference;

    fn try_from(text: String) -> Result<Self, BadReference> {
        Self::of_reference(&text)
    }
}

impl<'de> serde::Deserialize<'de> for Source {
    /// A reference; a value is refused.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::of_reference(&text).map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Literal(_) => f.write_str("a literal"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Command(words) => write!(f, "exec:{}", words.first().map_or("", String::as_str)),
            Self::Vault(VaultPath { mount, path, field }) if mount.contains('/') => {
                write!(f, "vault:{mount}//{path}#{field}")
            }
            Self::Vault(VaultPath { mount, path, field }) => write!(f, "vault:{mount}/{path}#{field}"),
        }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({self})")
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn shown(text: &str) -> String {
        Source::of_setting(text).unwrap().to_string()
    }

    #[test]
    fn references_are_read() {
        assert_eq!(shown("env:NAME"), "environment variable NAME");
        assert_eq!(shown("file:/run/secrets/a b"), "file /run/secrets/a b");
        assert_eq!(shown("vault:kv/team/db#password"), "vault:kv/team/db#password");
        let Source::Vault(deep) = Source::of_setting("vault:team/kv//db#a#b").unwrap() else { panic!() };
        assert_eq!((&*deep.mount, &*deep.path, &*deep.field), ("team/kv", "db", "a#b"));
        assert_eq!(Source::Vault(deep).to_string(), "vault:team/kv//db#a#b");
        let Source::Command(words) = Source::of_setting("exec:/bin/x 'two words' \"$HOME\" a;b").unwrap()
        else {
            panic!()
        };
        assert_eq!(words, ["/bin/x", "two words", "$HOME", "a;b"]);
        // Arguments may be secret: they are not shown.
        assert_eq!(shown("exec:/bin/x --token hush"), "exec:/bin/x");
    }

    #[test]
    fn any_value_can_be_given() {
        for (text, value) in [
            ("hush", "hush"),
            ("", ""),
            ("literal:env:NAME", "env:NAME"),
            ("literal:literal:x", "literal:x"),
            ("a:b", "a:b"),
            ("ENV:x", "ENV:x"),
        ] {
            let Source::Literal(found) = Source::of_setting(text).unwrap() else { panic!("{text}") };
            assert_eq!(found.expose_secret(), value);
            assert!(!format!("{:?}", Source::Literal(found)).contains("hush"));
        }
    }

    #[test]
    fn what_begins_as_a_reference_and_is_none_is_refused_and_not_repeated() {
        for text in [
            "env:",
            "env:A=hush",
            "file:hush",
            "file:",
            "exec:",
            "exec:hush",
            "exec:/x 'hush",
            "exec:$(hush)",
            "vault:hush",
            "vault:a#hush",
            "vault:a/b",
            "vault:a/b#",
            "vault:a/../hush#f",
            "vault:/b#hush",
            "vault:a/b//hush/./c#f",
            "vault:a/hush\\x#f",
        ] {
            let error = Source::of_setting(text).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{text}: {error}");
        }
        assert_eq!(Source::of_reference("sk-hush").unwrap_err(), BadReference::NoReference);
        assert_eq!(Source::of_reference("literal:hush").unwrap_err(), BadReference::NoReference);
    }
}
