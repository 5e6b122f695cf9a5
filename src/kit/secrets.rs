//! What looks like a credential.

use std::sync::LazyLock;

use regex::bytes::Regex;

/// Forms of credentials that can be told by their look. Not the placeholder that every sandbox gets.
static FORMS: LazyLock<Vec<(&'static str, Regex)>> = LazyLock::new(|| {
    let forms = [
        ("a key of Anthropic's", r"sk-ant-[A-Za-z0-9_-]{20,}"),
        ("a key of OpenAI's", r"\bsk-(?:(?:proj|svcacct)-[A-Za-z0-9_-]{32,}|[A-Za-z0-9]{32,})"),
        ("a key of Google's", r"\bAIza[0-9A-Za-z_-]{35}\b"),
        ("a token of GitHub's", r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})"),
        ("a token of GitLab's", r"\bglpat-[A-Za-z0-9_-]{20,}"),
        ("a key of AWS's", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("a token of Slack's", r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
        ("a token of npm's", r"\bnpm_[A-Za-z0-9]{36}\b|_authToken=[^\s$]{8,}"),
        ("a private key", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}"),
        ("a web token", r"\beyJ[A-Za-z0-9_-]{16,}\.eyJ[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    ];
    let compiled =
        forms.map(|(name, form)| (name, Regex::new(form).expect("a valid pattern; a test uses each")));
    compiled.to_vec()
});

/// What some bytes hold, in words; the credential itself is never repeated.
pub fn find(bytes: &[u8], known: &[Known]) -> Vec<String> {
    let mut found: Vec<String> =
        FORMS.iter().filter(|(_, form)| form.is_match(bytes)).map(|(name, _)| (*name).to_owned()).collect();
    let holds =
        |known: &&Known| bytes.windows(known.value.len()).any(|window| window == known.value.as_bytes());
    found.extend(known.iter().filter(holds).map(|known| format!("the value of this host's {}", known.name)));
    found
}

/// A secret of the host that must not be found in a sandbox.
#[derive(Clone)]
pub struct Known {
    pub name: String,
    value: String,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Shorter values are found everywhere by chance.
const LEAST: usize = 12;

/// The variables of an environment whose names say that they are secret.
pub fn known(environment: impl Iterator<Item = (String, String)>) -> Vec<Known> {
    environment
        .filter(|(name, value)| names_a_secret(name) && value.len() >= LEAST)
        .map(|(name, value)| Known { name, value })
        .collect()
}

/// Whether a variable's name says that its value is a secret.
pub fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "API_KEY", "APIKEY", "ACCESS_KEY", "CREDENTIAL"]
        .iter()
        .any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_credentials_by_their_look() {
        let a = |n: usize| "aB3".repeat(n);
        for text in [
            format!("x=sk-ant-{}", a(10)),
            format!("\"sk-proj-{}\"", a(12)),
            format!("AIza{}xy ", a(11)),
            format!("ghp_{}", a(12)),
            format!("glpat-{}", a(7)),
            "AKIAABCDEFGHIJKLMNOP".to_owned(),
            format!("xoxb-{}", a(8)),
            format!("npm_{}", a(12)),
            format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{}", a(14)),
            format!("eyJ{}.eyJ{}.{}", a(6), a(6), a(6)),
        ] {
            assert_eq!(find(text.as_bytes(), &[]).len(), 1, "{text}");
        }
        for text in ["kage-placeholder", "sk-1234", "-----BEGIN PUBLIC KEY-----", "task-aaaaaaaa-cli", ""] {
            assert_eq!(find(text.as_bytes(), &[]), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn tells_secrets_of_this_host() {
        let environment =
            [("MY_TOKEN", "correct horse battery"), ("PATH", "correct horse staple"), ("X_SECRET", "short")];
        let known = known(environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(known.len(), 1);
        assert_eq!(find(b"a correct horse battery!", &known), ["the value of this host's MY_TOKEN"]);
        assert!(!format!("{known:?}").contains("horse"));
    }
}
