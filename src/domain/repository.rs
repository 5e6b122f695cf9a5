//! A registered repository.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
pub struct AllowedSources(Vec<String>);

/// Why a source is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedSource {
    #[error("a source is an absolute path or an https:// or ssh:// URL")]
    Malformed,
    #[error("a source URL may not carry a user's password")]
    Credentials,
    #[error("the operator has not allowed this source (KAGE_REPOSITORIES_ALLOW)")]
    NotAllowed,
}

impl AllowedSources {
    pub fn new(prefixes: impl IntoIterator<Item = String>) -> Self {
        Self(prefixes.into_iter().map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect())
    }

    pub fn prefixes(&self) -> &[String] {
        &self.0
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
            if url.password().is_some() || (url.scheme() == "https" && !url.username().is_empty()) {
                return Err(RefusedSource::Credentials);
            }
        }
        let under = |prefix: &String| {
            let prefix = prefix.trim_end_matches('/');
            source.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self.0.iter().any(under) { Ok(()) } else { Err(RefusedSource::NotAllowed) }
    }
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
}
