//! A source where it is used: judged once more, with what links and names lead to, and with the user that git runs as.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use crate::git::source::Source;
use crate::runner::environment::Environment;
use crate::runner::local_source;

/// Where git goes, and as whom.
pub(super) struct FetchSource {
    url: String,
    addresses: Vec<IpAddr>,
    user: Option<(u32, u32)>,
    staging: PathBuf,
}

impl FetchSource {
    pub fn as_source(&self) -> Source<'_> {
        let Self { url, addresses, user, staging } = self;
        Source { url, addresses, user: *user, staging: Some(staging) }
    }
}

/// Checks a source with the path that links lead to, or the addresses that its host has now: git is told these, and
/// does not look the name up again. Blocks.
pub(super) fn allowed(environment: &Environment, source: &str) -> Result<FetchSource, String> {
    let (config, staging) = (&environment.config, environment.folders.fetching());
    config.sources.check(source).map_err(|problem| problem.to_string())?;
    let anybody = (config.fetch_uid, config.fetch_uid);
    let as_root = rustix::process::geteuid().is_root();
    if !source.starts_with('/') {
        let addresses = addresses(environment, source)?;
        let user = as_root.then_some(anybody);
        return Ok(FetchSource { url: source.to_owned(), addresses, user, staging });
    }
    let real = Path::new(source).canonicalize().map_err(|error| format!("{source}: {error}"))?;
    let url = real.to_str().ok_or_else(|| format!("{source}: its real path is not UTF-8"))?.to_owned();
    config.sources.check(&url).map_err(|problem| format!("{source} is really {url}: {problem}"))?;
    let told = |problem| format!("{source}: {problem}");
    let user = match as_root {
        true => Some(local_source::reader(&real, anybody).map_err(told)?),
        false => local_source::check(&real).map(|()| None).map_err(told)?,
    };
    Ok(FetchSource { url, addresses: Vec::new(), user, staging })
}

/// All addresses of a URL's host. One that is not public spoils them all: which one git would take is not ours to say.
fn addresses(environment: &Environment, source: &str) -> Result<Vec<IpAddr>, String> {
    let url = url::Url::parse(source).map_err(|error| error.to_string())?;
    let host = url.host_str().ok_or("it names no host")?;
    let port = url.port().unwrap_or(if url.scheme() == "ssh" { 22 } else { 443 });
    let name = host.trim_matches(['[', ']']);
    let found =
        (name, port).to_socket_addrs().map_err(|error| format!("{host} cannot be looked up: {error}"))?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|it| it.ip()) {
        environment
            .config
            .sources
            .check_address(host, address)
            .map_err(|problem| format!("{host} leads to {address}: {problem}"))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(format!("{host} has no address")) } else { Ok(addresses) }
}
