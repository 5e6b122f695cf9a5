//! Somebody whom an OpenID provider vouches for.

/// Who it is: the provider, and the provider's word for the person, which is never another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    issuer: String,
    subject: String,
}

/// Most bytes of a subject, as OpenID Connect has it.
const SUBJECT_BYTES: usize = 255;

impl Identity {
    /// `None` if the subject is none that a provider may give: 1 to 255 printable ASCII characters.
    pub fn new(issuer: &str, subject: &str) -> Option<Self> {
        let plain = subject.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        (plain && (1..=SUBJECT_BYTES).contains(&subject.len()))
            .then(|| Self { issuer: issuer.to_owned(), subject: subject.to_owned() })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub fn subject(&self) -> &str {
        &self.subject
    }
}

impl std::fmt::Display for Identity {
    /// An issuer has no fragment: the first `#` ends it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.issuer, self.subject)
    }
}

/// A name as a provider gives it, fit to be shown: no control characters, at most 100 of them.
pub fn shown_name(given: &str) -> String {
    let name: String = given.chars().filter(|c| !c.is_control()).take(100).collect();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_plain() {
        assert_eq!(Identity::new("https://a", "b#c").expect("plain").to_string(), "https://a#b#c");
        for bad in ["", "a\nb", "ä", &"x".repeat(256)] {
            assert_eq!(Identity::new("https://a", bad), None, "{bad:?}");
        }
        assert_eq!(shown_name(" Al\u{1b}[1mice\n "), "Al[1mice");
    }
}
