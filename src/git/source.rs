//! Where a mirror is fetched from, and by whom.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::git::{confined::Network, error::GitError};

/// A source of commits, as its caller allowed it.
#[derive(Clone, Debug, Default)]
pub struct Source<'a> {
    /// An absolute path, or a `file`, `https` or `ssh` URL.
    pub url: &'a str,
    /// Of the URL's host, looked up and judged. Git goes there and nowhere else; without any it does not go.
    pub addresses: &'a [IpAddr],
    /// User and group that git runs as; only root can say.
    pub user: Option<(u32, u32)>,
    /// A folder on the mirror's file system through which that user can pass. `None`: the mirror's own.
    pub staging: Option<&'a Path>,
}

impl<'a, T: AsRef<str> + ?Sized> From<&'a T> for Source<'a> {
    fn from(url: &'a T) -> Self {
        Source { url: url.as_ref(), ..Source::default() }
    }
}

/// A source in a form that git can be told.
pub(crate) struct Checked {
    /// Folders that git must trust although they may belong to somebody else.
    pub trusted: Vec<PathBuf>,
    pub network: Network,
}

impl Source<'_> {
    pub(crate) fn check(&self) -> Result<Checked, GitError> {
        let refuse = |reason| GitError::SourceRefused { source_url: self.url.to_owned(), reason };
        if self.url.chars().any(char::is_control) {
            return Err(refuse("it has control characters"));
        }
        let path = match self.url.split_once("://") {
            Some((scheme @ ("https" | "ssh"), rest)) => {
                let network = self.network(scheme, rest).map_err(refuse)?;
                return Ok(Checked { trusted: Vec::new(), network });
            }
            Some(("file", path)) => path,
            Some(_) => return Err(refuse("only absolute paths and file, https and ssh URLs are fetched")),
            None => self.url,
        };
        if !path.starts_with('/') {
            return Err(refuse("only absolute paths and file, https and ssh URLs are fetched"));
        }
        let folder = fs::canonicalize(path).map_err(GitError::io("open", Path::new(path)))?;
        if folder.to_str().is_none_or(|folder| folder.chars().any(char::is_control)) {
            return Err(refuse("its path is not plain text"));
        }
        let path = PathBuf::from(path);
        let trusted = vec![path.clone(), path.join(".git"), folder.join(".git"), folder];
        Ok(Checked { trusted, network: Network::default() })
    }

    fn network(&self, scheme: &str, rest: &str) -> Result<Network, &'static str> {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        if user.contains(':') {
            return Err("it carries a password");
        }
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (place, if scheme == "ssh" { "22" } else { "443" }),
        };
        if host.is_empty() || host.starts_with('-') || user.starts_with('-') {
            return Err("it names no host");
        }
        // They go into configuration and into a command line of ours.
        let plain =
            |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_' | ':' | '[' | ']');
        if !host.chars().all(plain) || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("its host or port is not plain");
        }
        let Some(first) = self.addresses.first() else { return Err("its host was not looked up") };
        if scheme == "ssh" {
            let alias = if port == "22" { host.to_owned() } else { format!("[{host}]:{port}") };
            return Ok(Network { ssh: Some(ssh_options(*first, &alias)), resolve: None });
        }
        let addresses: Vec<String> = self
            .addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            })
            .collect();
        // Of an address nothing is looked up.
        let is_name = host.trim_matches(['[', ']']).parse::<IpAddr>().is_err();
        let resolve = is_name.then(|| format!("{host}:{port}:{}", addresses.join(",")));
        Ok(Network { resolve, ssh: None })
    }
}

/// The host's key is known by its name; the connection goes to the address, and nothing on this machine has a say.
fn ssh_options(address: IpAddr, alias: &str) -> String {
    format!(
        "-F /dev/null -oHostName={address} -oHostKeyAlias={alias} -oProxyCommand=none -oProxyJump=none \
         -oCanonicalizeHostname=no -oPermitLocalCommand=no -oClearAllForwardings=yes -oControlPath=none \
         -oForwardAgent=no -oStrictHostKeyChecking=yes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(url: &str, addresses: &[&str]) -> Result<Network, GitError> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.parse().expect("an address")).collect();
        Source { url, addresses: &addresses, ..Source::default() }.check().map(|checked| checked.network)
    }

    #[test]
    fn git_is_told_where_the_host_is() {
        let https = network("https://git.example/x", &["1.1.1.1", "2606:4700::1"]).expect("good");
        assert_eq!(https.resolve.as_deref(), Some("git.example:443:1.1.1.1,[2606:4700::1]"));
        let port = network("https://git.example:8443/x", &["1.1.1.1"]).expect("good");
        assert_eq!(port.resolve.as_deref(), Some("git.example:8443:1.1.1.1"));
        assert_eq!(network("https://1.1.1.1/x", &["1.1.1.1"]).expect("good").resolve, None);
        let ssh = network("ssh://git@git.example:2222/x", &["1.1.1.1"]).expect("good").ssh.expect("set");
        assert!(ssh.contains("-oHostName=1.1.1.1 -oHostKeyAlias=[git.example]:2222 "), "{ssh}");
    }

    #[test]
    fn what_was_not_looked_up_is_not_fetched() {
        for url in ["https://git.example/x", "ssh://git@git.example/x", "https://127.0.0.1/x"] {
            assert!(matches!(network(url, &[]), Err(GitError::SourceRefused { .. })), "{url}");
        }
        for url in [
            "https://git.example;id/x",
            "ssh://git@a b/x",
            "ssh://git@$(id)/x",
            "ssh://-oProxyCommand=id/x",
            "ssh://-x@git.example/x",
            "https://u:p@git.example/x",
            "https://git.example:4a/x",
            "https:///x",
            "git://git.example/x",
            "ext::sh -c id",
            "http://git.example/x",
        ] {
            assert!(matches!(network(url, &["1.1.1.1"]), Err(GitError::SourceRefused { .. })), "{url}");
        }
    }
}
