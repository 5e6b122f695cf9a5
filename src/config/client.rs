//! What the client needs to know: where the server is, and its own key.
//!
//! `KAGE_URL`, `KAGE_API_KEY` and `KAGE_CA_FILE` first, then `url`, `key` and `ca_file` in `$XDG_CONFIG_HOME/kage/config.toml`
//! (by default `~/.config/kage/config.toml`), which must be its owner's alone. The key may be a reference
//! (`exec:/usr/bin/pass kage`).

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::{Host, Url};

use crate::secret::error::SecretError;
use crate::secret::resolver::Resolver;
use crate::secret::source::{BadReference, Source};

/// Where a server on the same machine listens unless it was told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8787";

/// A configuration file is a few lines; more is not one.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// All that a system trusts is a quarter of it.
const MAX_CA_BYTES: u64 = 1 << 20;

/// Server and key, checked: the key may be sent to this URL.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    pub url: Url,
    pub key: SecretString,
    /// PEM: who signed the server's certificate, beside those whom the system trusts.
    pub ca: Option<Vec<u8>>,
}

/// Why there is no usable configuration. Never carries the key.
#[derive(Debug, thiserror::Error)]
pub enum ClientConfigError {
    #[error("the API key: {0}")]
    Reference(#[from] BadReference),
    #[error("the API key: {0}")]
    Secret(#[from] SecretError),
    #[error("{0} is not valid UTF-8")]
    NotUtf8(&'static str),
    #[error("{name}: {why}")]
    Invalid { name: String, why: &'static str },
    #[error("{path}: cannot be read: {source}", path = .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path} is not a regular file", path = .path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "{path} belongs to another user (uid {owner}); it holds a key, so it must be yours: \
         chown {uid} {path} && chmod 600 {path}",
        path = .path.display()
    )]
    NotYours { path: PathBuf, owner: u32, uid: u32 },
    #[error("{path} can be read or written by others (mode {mode:03o}): chmod 600 {path}", path = .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "{path}:{line}: not understood; it may have url = \"…\", key = \"…\" and ca_file = \"…\", nothing else",
        path = .path.display()
    )]
    Malformed { path: PathBuf, line: usize },
    #[error("no API key: set KAGE_API_KEY, or write key = \"…\" to {path} (kage key create makes one)", path = .path.display())]
    NoKey { path: PathBuf },
    #[error(
        "the key would cross the network readable to all, over plain http to {host}: use https, \
         or set KAGE_ALLOW_PLAIN_HTTP=true if something else protects the way"
    )]
    PlainHttp { host: String },
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    url: Option<String>,
    key: Option<SecretString>,
    ca_file: Option<PathBuf>,
}

impl ClientConfig {
    /// Reads environment and file; `lookup` gives an environment variable's value.
    ///
    /// # Errors
    /// [`ClientConfigError`] names the variable or file, and what to do.
    pub fn load(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, ClientConfigError> {
        let text = |name: &'static str| match lookup(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => value.into_string().map(Some).map_err(|_| ClientConfigError::NotUtf8(name)),
        };
        let url = text("KAGE_URL")?;
        let key = text("KAGE_API_KEY")?;
        let plain = text("KAGE_ALLOW_PLAIN_HTTP")?;
        let ca_file = text("KAGE_CA_FILE")?.map(PathBuf::from);
        let path = config_path(&lookup);

        // A file that is not needed is not looked at: its faults are then no one's concern.
        let file = match &path {
            Some(path) if url.is_none() || key.is_none() => read(path)?.unwrap_or_default(),
            _ => ConfigFile::default(),
        };
        let (url_name, url) = match (url, file.url) {
            (Some(url), _) => ("KAGE_URL".to_owned(), url),
            (None, Some(url)) => (format!("url in {}", shown(path.as_deref())), url),
            (None, None) => ("KAGE_URL".to_owned(), DEFAULT_URL.to_owned()),
        };
        let url = parse_url(url_name, &url)?;
        let key = key
            .map(SecretString::from)
            .or(file.key)
            .ok_or_else(|| ClientConfigError::NoKey { path: shown(path.as_deref()).into() })?;
        let source = Source::of_setting(key.expose_secret())?;
        let key = Resolver::default().read_at_once(&source)?;
        let allow_plain = parse_flag("KAGE_ALLOW_PLAIN_HTTP", plain.as_deref())?;
        if url.scheme() == "http" && !allow_plain && !is_loopback(&url) {
            return Err(ClientConfigError::PlainHttp { host: url.host_str().unwrap_or_default().to_owned() });
        }
        let ca = ca_file.or(file.ca_file).map(read_ca).transpose()?;
        Ok(Self { url, key, ca })
    }
}

fn read_ca(path: PathBuf) -> Result<Vec<u8>, ClientConfigError> {
    let (mut pem, file) = (Vec::new(), File::open(&path));
    let read = file.and_then(|file| file.take(MAX_CA_BYTES).read_to_end(&mut pem));
    match read {
        Ok(_) => Ok(pem),
        Err(source) => Err(ClientConfigError::Unreadable { path, source }),
    }
}

fn shown(path: Option<&Path>) -> String {
    path.map_or_else(|| "~/.config/kage/config.toml".to_owned(), |path| path.display().to_string())
}

fn config_path(lookup: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // The XDG specification: a relative path there is to be ignored.
    let absolute = |name: &str| lookup(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("kage").join("config.toml"))
}

fn parse_flag(name: &str, value: Option<&str>) -> Result<bool, ClientConfigError> {
    match value {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(_) => Err(ClientConfigError::Invalid { name: name.to_owned(), why: "must be true or false" }),
    }
}

fn parse_url(name: String, text: &str) -> Result<Url, ClientConfigError> {
    let refuse = |why| ClientConfigError::Invalid { name: name.clone(), why };
    let url =
        Url::parse(text.trim()).map_err(|_| refuse("is not a URL, such as https://kage.example:8787"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(refuse("must begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("must not carry a user or password; the key has its own place"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("must not carry a query or fragment"));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Reads the file, if there is one, after looking at who else could: on the open file, so that
/// nobody can swap it in between.
fn read(path: &Path) -> Result<Option<ConfigFile>, ClientConfigError> {
    let unreadable = |source| ClientConfigError::Unreadable { path: path.to_owned(), source };
    // Not blocking: a FIFO in its place must not hang the client.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(error)),
    };
    check_owner_only(path, &file, rustix::process::geteuid().as_raw())?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    match toml::from_str(&text) {
        Ok(config) => Ok(Some(config)),
        // The parser's own message quotes the line, and the line may be the key's.
        Err(error) => {
            let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(""));
            let line = 1 + before.matches('\n').count();
            Err(ClientConfigError::Malformed { path: path.to_owned(), line })
        }
    }
}

fn check_owner_only(path: &Path, file: &File, uid: u32) -> Result<(), ClientConfigError> {
    let path = path.to_owned();
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(source) => return Err(ClientConfigError::Unreadable { path, source }),
    };
    if !metadata.is_file() {
        return Err(ClientConfigError::NotAFile { path });
    }
    if metadata.uid() != uid {
        return Err(ClientConfigError::NotYours { path, owner: metadata.uid(), uid });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ClientConfigError::Exposed { path, mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<ClientConfig, ClientConfigError> {
        let map: HashMap<String, OsString> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        ClientConfig::load(|name| map.get(name).cloned())
    }

    fn home_with(text: &str, mode: u32) -> (TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".config/kage/config.toml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (home, path)
    }

    #[test]
    fn environment_wins_and_the_default_is_loopback() {
        let config = load(&[("KAGE_API_KEY", "abc")]).unwrap();
        assert_eq!(config.url.as_str(), "http://127.0.0.1:8787/");
        assert_eq!(config.key.expose_secret(), "abc");

        let (home, _) = home_with("url = \"https://file.example\"\nkey = \"from-file\"\n", 0o600);
        let home = home.path().to_str().unwrap();
        let config = load(&[("HOME", home)]).unwrap();
        assert_eq!((config.url.as_str(), config.key.expose_secret()), ("https://file.example/", "from-file"));
        let config = load(&[("HOME", home), ("KAGE_URL", "https://env.example")]).unwrap();
        assert_eq!((config.url.as_str(), config.key.expose_secret()), ("https://env.example/", "from-file"));
        let config = load(&[("HOME", home), ("KAGE_API_KEY", "from-env")]).unwrap();
        assert_eq!((config.url.as_str(), config.key.expose_secret()), ("https://file.example/", "from-env"));
    }

    #[test]
    fn xdg_config_home_is_respected_and_a_relative_one_ignored() {
        let (home, path) = home_with("key = \"k\"\n", 0o600);
        let xdg = home.path().join("elsewhere");
        fs::create_dir_all(xdg.join("kage")).unwrap();
        fs::copy(&path, xdg.join("kage/config.toml")).unwrap();
        fs::remove_file(&path).unwrap();
        let home = home.path().to_str().unwrap();
        assert!(load(&[("HOME", home), ("XDG_CONFIG_HOME", xdg.to_str().unwrap())]).is_ok());
        let error = load(&[("HOME", home), ("XDG_CONFIG_HOME", "elsewhere")]).unwrap_err();
        assert!(matches!(error, ClientConfigError::NoKey { .. }), "{error}");
        assert!(error.to_string().contains("KAGE_API_KEY"), "{error}");
    }

    #[test]
    fn refuses_a_file_that_others_can_touch_and_says_what_to_do() {
        for mode in [0o640, 0o604, 0o620, 0o601, 0o666] {
            let (home, path) = home_with("key = \"hush\"\n", mode);
            let error = load(&[("HOME", home.path().to_str().unwrap())]).unwrap_err();
            assert!(matches!(error, ClientConfigError::Exposed { .. }), "{mode:o}: {error}");
            let text = error.to_string();
            assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
            assert!(!text.contains("hush"), "{text}");
        }
        for mode in [0o600, 0o400] {
            let (home, _) = home_with("key = \"hush\"\n", mode);
            assert!(load(&[("HOME", home.path().to_str().unwrap())]).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn refuses_a_file_of_another_user() {
        let (_home, path) = home_with("key = \"hush\"\n", 0o600);
        let file = File::open(&path).unwrap();
        let uid = file.metadata().unwrap().uid();
        assert!(check_owner_only(&path, &file, uid).is_ok());
        let error = check_owner_only(&path, &file, uid + 1).unwrap_err();
        assert!(matches!(error, ClientConfigError::NotYours { .. }));
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains("chmod 600"), "{text}");
    }

    #[test]
    fn a_fifo_or_folder_in_its_place_is_refused_without_hanging() {
        let (home, path) = home_with("", 0o600);
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let error = load(&[("HOME", home.path().to_str().unwrap())]).unwrap_err();
        assert!(matches!(error, ClientConfigError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn a_malformed_file_is_named_with_its_line_and_never_quoted() {
        for text in
            ["url = \"https://x.example\"\nkey = hush\n", "url = \"\"\nkey = 4711\n", "\nkeys = \"hush\"\n"]
        {
            let (home, path) = home_with(text, 0o600);
            let error = load(&[("HOME", home.path().to_str().unwrap())]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}:2:", path.display())), "{error}");
            assert!(!error.contains("hush") && !error.contains("4711"), "{error}");
        }
    }

    #[test]
    fn a_key_goes_over_plain_http_to_loopback_alone() {
        let key = ("KAGE_API_KEY", "k");
        for good in [
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://[::1]:1",
            "http://localhost:1",
            "https://far.example",
        ] {
            assert!(load(&[key, ("KAGE_URL", good)]).is_ok(), "{good}");
        }
        for bad in
            ["http://10.0.0.1", "http://far.example", "http://localhost.far.example", "http://[2001:db8::1]"]
        {
            let error = load(&[key, ("KAGE_URL", bad)]).unwrap_err();
            assert!(matches!(error, ClientConfigError::PlainHttp { .. }), "{bad}: {error}");
            assert!(load(&[key, ("KAGE_URL", bad), ("KAGE_ALLOW_PLAIN_HTTP", "true")]).is_ok(), "{bad}");
            assert!(load(&[key, ("KAGE_URL", bad), ("KAGE_ALLOW_PLAIN_HTTP", "false")]).is_err(), "{bad}");
        }
        let error = load(&[key, ("KAGE_ALLOW_PLAIN_HTTP", "yes please")]).unwrap_err();
        assert!(error.to_string().starts_with("KAGE_ALLOW_PLAIN_HTTP: "), "{error}");
    }

    #[test]
    fn a_key_may_come_from_a_program() {
        let config = load(&[("KAGE_API_KEY", "exec:/bin/echo from-a-program")]).unwrap();
        assert_eq!(config.key.expose_secret(), "from-a-program");
        let error = load(&[("KAGE_API_KEY", "exec:/bin/sh -c 'echo hush; exit 3'")]).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && !error.contains("hush"), "{error}");
    }

    #[test]
    fn a_url_is_a_plain_http_url() {
        for bad in
            ["kage.example", "ftp://x", "https://user:pw@x.example", "https://x.example/?a=1", "https://x/#a"]
        {
            let error = load(&[("KAGE_API_KEY", "k"), ("KAGE_URL", bad)]).unwrap_err().to_string();
            assert!(error.starts_with("KAGE_URL: ") && !error.contains("pw"), "{error}");
        }
    }
}
