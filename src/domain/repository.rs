//! A registered repository.

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::address::is_public;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RepositoryState {
    /// Registered or to be fetched anew; a runner has not done it yet.
    Pending,
    /// A runner is fetching.
    Fetching,
    Ready,
    /// The last fetch failed; `error` says why. An older fetch may still be usable.
    Failed,
    /// To be deleted by a runner.
    Removing,
}

impl RepositoryState {
    pub const ALL: [Self; 5] = [Self::Pending, Self::Fetching, Self::Ready, Self::Failed, Self::Removing];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Fetching => "fetching",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Removing => "removing",
        }
    }
}

impl FromStr for RepositoryState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown repository state {0:?}")]
pub struct UnknownState(pub String);

/// Where repositories may come from, as the operator wrote it: absolute path prefixes and URL prefixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedSources {
    prefixes: Vec<String>,
    /// Hosts that may be in a network of somebody's own.
    private_hosts: Vec<String>,
}

/// Why a source is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedSource {
    #[error("a source is an absolute path or an https:// or ssh:// URL")]
    Malformed,
    #[error("a source URL may not carry a user's password")]
    Credentials,
    #[error("a URL's host is a name in lower case, or an address in its usual form, without escapes")]
    Host,
    #[error(
        "{0} is no public address: the operator has not named its host in KAGE_REPOSITORIES_ALLOW_PRIVATE"
    )]
    Private(IpAddr),
    #[error("the operator has not allowed this source (KAGE_REPOSITORIES_ALLOW)")]
    NotAllowed,
}

impl AllowedSources {
    pub fn new(prefixes: impl IntoIterator<Item = String>) -> Self {
        Self { prefixes: trimmed(prefixes), private_hosts: Vec::new() }
    }

    /// With hosts whose addresses need not be public.
    pub fn with_private_hosts(self, hosts: impl IntoIterator<Item = String>) -> Self {
        Self { private_hosts: trimmed(hosts), ..self }
    }

    /// Whether an address of a host may be connected to: names are looked up where they are used, and what they lead to
    /// is judged there.
    ///
    /// # Errors
    /// [`RefusedSource::Private`].
    pub fn check_address(&self, host: &str, address: IpAddr) -> Result<(), RefusedSource> {
        let named = self.private_hosts.iter().any(|named| named == host);
        if named || is_public(address) { Ok(()) } else { Err(RefusedSource::Private(address)) }
    }

    pub fn prefixes(&self) -> &[String] {
        &self.prefixes
    }

    /// Checks a source against the operator's list.
    ///
    /// A prefix matches whole path segments only: `/srv/git` allows `/srv/git/a`, not `/srv/git-private`.
    /// Symbolic links in a path are the runner's to resolve: it calls this again with the real path.
    ///
    /// # Errors
    /// [`RefusedSource`] says which rule it broke.
    pub fn check(&self, source: &str) -> Result<(), RefusedSource> {
        if source.chars().any(char::is_control) || source.len() > 4096 {
            return Err(RefusedSource::Malformed);
        }
        if source.starts_with('/') {
            if source.split('/').any(|part| part == ".." || part == ".") {
                return Err(RefusedSource::Malformed);
            }
        } else {
            let url = url::Url::parse(source).map_err(|_| RefusedSource::Malformed)?;
            if !matches!(url.scheme(), "https" | "ssh")
                || url.host_str().is_none_or(|host| host.starts_with('-'))
            {
                return Err(RefusedSource::Malformed);
            }
            let host = plain_host(source, &url)?;
            if let Ok(address) = host.trim_matches(['[', ']']).parse() {
                self.check_address(&host, address)?;
            }
            if url.password().is_some() || (url.scheme() == "https" && !url.username().is_empty()) {
                return Err(RefusedSource::Credentials);
            }
        }
        let under = |prefix: &String| {
            let prefix = prefix.trim_end_matches('/');
            source.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self.prefixes.iter().any(under) { Ok(()) } else { Err(RefusedSource::NotAllowed) }
    }
}

fn trimmed(texts: impl IntoIterator<Item = String>) -> Vec<String> {
    texts.into_iter().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}

/// The host of a URL, if everybody reads it alike. Decimal, hexadecimal, octal and short forms of an address, escapes,
/// backslashes and letters that are mapped to others mean one thing to us and another to git.
fn plain_host(source: &str, url: &url::Url) -> Result<String, RefusedSource> {
    let authority = source.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let written = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let written = match written.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            if port.is_empty() || port.starts_with('0') || !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(RefusedSource::Host);
            }
            host
        }
        _ => written,
    };
    let meant = url::Host::parse(written).map_err(|_| RefusedSource::Host)?.to_string();
    let same = url.host_str().is_some_and(|host| host == written);
    let user_is_plain = authority.matches('@').count() <= 1 && !authority.contains(['\\', '%']);
    if same && meant == written && user_is_plain { Ok(meant) } else { Err(RefusedSource::Host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_whole_segments_below_a_prefix_and_nothing_else() {
        let allowed = AllowedSources::new(["/srv/git".to_owned(), "https://git.example/team".to_owned()]);
        for good in ["/srv/git", "/srv/git/a", "https://git.example/team/x.git"] {
            assert_eq!(allowed.check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("/srv/git-private/a", RefusedSource::NotAllowed),
            ("/srv/git/../secret", RefusedSource::Malformed),
            ("relative", RefusedSource::Malformed),
            ("-x", RefusedSource::Malformed),
            ("ext::sh -c id", RefusedSource::Malformed),
            ("file:///srv/git/a", RefusedSource::Malformed),
            ("ssh://-oProxyCommand=id/x", RefusedSource::Malformed),
            ("https://user:pw@git.example/team/x", RefusedSource::Credentials),
            ("https://git.example.evil/team/x", RefusedSource::NotAllowed),
            ("/srv/git/a\nb", RefusedSource::Malformed),
        ] {
            assert_eq!(allowed.check(bad), Err(why), "{bad}");
        }
        assert_eq!(AllowedSources::default().check("/srv/git"), Err(RefusedSource::NotAllowed));
    }

    #[test]
    fn an_address_is_public_and_in_its_usual_form() {
        let any = |host: &str| AllowedSources::new([format!("https://{host}"), format!("ssh://git@{host}")]);
        for host in [
            "127.0.0.1",
            "169.254.169.254",
            "10.1.2.3",
            "100.64.0.1",
            "[::1]",
            "[::ffff:7f00:1]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "0.0.0.0",
        ] {
            for source in [format!("https://{host}/x"), format!("ssh://git@{host}/x")] {
                let refused = any(host).check(&source);
                assert!(matches!(refused, Err(RefusedSource::Private(_))), "{source}: {refused:?}");
                let allowed = any(host).with_private_hosts([host.to_owned()]);
                assert_eq!(allowed.check(&source), Ok(()), "{source}");
            }
        }
        for host in [
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "127.0.0.1.",
            "[::ffff:127.0.0.1]",
            "[0:0:0:0:0:0:0:1]",
            "%31%32%37.0.0.1",
            "127。0。0。1",
            "①②⑦.0.0.1",
            "EXAMPLE.com",
            "ex\u{ad}ample.com",
            "example.com:",
            "example.com:0443",
            "example.com:+443",
            "a@b@example.com",
            "example.com\\@evil.example",
            "",
        ] {
            for source in [format!("https://{host}/x"), format!("ssh://git@{host}/x")] {
                let refused = any(host).with_private_hosts([host.to_owned()]).check(&source);
                let refused = refused.expect_err(&source);
                let of_form = matches!(
                    refused,
                    RefusedSource::Host | RefusedSource::Malformed | RefusedSource::Credentials
                );
                assert!(of_form, "{source}: {refused:?}");
            }
        }
        for source in [
            "https://git.example/x",
            "https://git.example:8443/x",
            "ssh://git@git.example:22/x",
            "https://1.1.1.1/x",
        ] {
            let allowed = AllowedSources::new(
                [
                    "https://git.example",
                    "https://git.example:8443",
                    "ssh://git@git.example:22",
                    "https://1.1.1.1",
                ]
                .map(str::to_owned),
            );
            assert_eq!(allowed.check(source), Ok(()), "{source}");
        }
        let sources = AllowedSources::default();
        let address = "192.168.0.1".parse().expect("an address");
        assert_eq!(sources.check_address("git.example", address), Err(RefusedSource::Private(address)));
        let sources = sources.with_private_hosts(["git.example".to_owned()]);
        assert_eq!(sources.check_address("git.example", address), Ok(()));
        assert!(sources.check_address("git.example.evil", address).is_err());
    }
}
