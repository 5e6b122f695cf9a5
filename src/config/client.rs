//! What the client needs to know: where the server is, and its own key.
//!
//! `KAGE_URL`, `KAGE_API_KEY` (or `KAGE_API_KEY_FILE`), `KAGE_CA_FILE`, and `KAGE_CLIENT_CERT_FILE` with
//! `KAGE_CLIENT_KEY_FILE` first, then `url`, `key`, `ca_file`, `client_cert_file` and `client_key_file` in
//! `$XDG_CONFIG_HOME/kage/config.toml` (by default `~/.config/kage/config.toml`), which must be its owner's alone, as
//! the client's private key must. The API key may be a reference (`exec:/usr/bin/pass kage`).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::{Host, Url};

use crate::config::client_error::ClientConfigError;
use crate::config::own_file;
use crate::secret::resolver::Resolver;
use crate::secret::source::Source;

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
    /// Shown to a server that asks for a client's certificate.
    pub identity: Option<ClientIdentity>,
}

/// A client's certificate, and its private key.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    /// PEM: the certificate, then those between it and its root.
    pub certificate: Vec<u8>,
    /// PEM.
    pub key: SecretString,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    url: Option<String>,
    key: Option<SecretString>,
    ca_file: Option<PathBuf>,
    client_cert_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
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
        let key_file = text("KAGE_API_KEY_FILE")?.map(PathBuf::from);
        let ca_file = text("KAGE_CA_FILE")?.map(PathBuf::from);
        let client_cert = text("KAGE_CLIENT_CERT_FILE")?.map(PathBuf::from);
        let client_key = text("KAGE_CLIENT_KEY_FILE")?.map(PathBuf::from);
        let path = config_path(&lookup);

        // A file that is not needed is not looked at: its faults are then no one's concern.
        let file = match &path {
            Some(path) if url.is_none() || key.is_none() && key_file.is_none() => {
                read(path)?.unwrap_or_default()
            }
            _ => ConfigFile::default(),
        };
        let (url_name, url) = match (url, file.url) {
            (Some(url), _) => ("KAGE_URL".to_owned(), url),
            (None, Some(url)) => (format!("url in {}", shown(path.as_deref())), url),
            (None, None) => ("KAGE_URL".to_owned(), DEFAULT_URL.to_owned()),
        };
        let url = parse_url(url_name, &url)?;
        let source = match (key, key_file, file.key) {
            (Some(_), Some(_), _) => {
                let why = "give it or KAGE_API_KEY_FILE, not both";
                return Err(ClientConfigError::Invalid { name: "KAGE_API_KEY".to_owned(), why });
            }
            (Some(key), ..) => Source::of_setting(&key)?,
            (None, Some(path), _) => Source::File(path),
            (None, None, Some(key)) => Source::of_setting(key.expose_secret())?,
            (None, None, None) => {
                return Err(ClientConfigError::NoKey { path: shown(path.as_deref()).into() });
            }
        };
        let key = Resolver::default().read_at_once(&source)?;
        let allow_plain = parse_flag("KAGE_ALLOW_PLAIN_HTTP", plain.as_deref())?;
        if url.scheme() == "http" && !allow_plain && !is_loopback(&url) {
            return Err(ClientConfigError::PlainHttp { host: url.host_str().unwrap_or_default().to_owned() });
        }
        let ca = ca_file.or(file.ca_file).map(read_certificates).transpose()?;
        // As a pair from one place: a certificate and another one's key are of no use.
        let pair = match (client_cert, client_key) {
            (None, None) => (file.client_cert_file, file.client_key_file),
            given => given,
        };
        Ok(Self { url, key, ca, identity: read_identity(pair)? })
    }
}

fn read_identity(
    pair: (Option<PathBuf>, Option<PathBuf>),
) -> Result<Option<ClientIdentity>, ClientConfigError> {
    let (certificate, key_path) = match pair {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (cert, _) => {
            let name = if cert.is_some() { "KAGE_CLIENT_CERT_FILE" } else { "KAGE_CLIENT_KEY_FILE" };
            let why = "a client's certificate and its key (client_cert_file, client_key_file) go together: give both or neither";
            return Err(ClientConfigError::Invalid { name: name.to_owned(), why });
        }
    };
    let unreadable = |source| ClientConfigError::Unreadable { path: key_path.clone(), source };
    let file = own_file::open(&key_path)?.ok_or_else(|| unreadable(io::ErrorKind::NotFound.into()))?;
    let mut key = zeroize::Zeroizing::new(String::new());
    file.take(MAX_FILE_BYTES).read_to_string(&mut key).map_err(unreadable)?;
    let key = SecretString::from(key.as_str());
    Ok(Some(ClientIdentity { certificate: read_certificates(certificate)?, key }))
}

/// Certificates in PEM; whether they are is asked by who uses them.
fn read_certificates(path: PathBuf) -> Result<Vec<u8>, ClientConfigError> {
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

/// Reads the file, if there is one.
fn read(path: &Path) -> Result<Option<ConfigFile>, ClientConfigError> {
    let Some(file) = own_file::open(path)? else { return Ok(None) };
    let mut text = String::new();
    let unreadable = |source| ClientConfigError::Unreadable { path: path.to_owned(), source };
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
    fn a_fifo_or_folder_in_its_place_is_refused_without_hanging() {
        let (home, path) = home_with("", 0o600);
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let error = load(&[("HOME", home.path().to_str().unwrap())]).unwrap_err();
        assert!(matches!(error, ClientConfigError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn a_key_in_a_file_is_read_and_two_places_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        fs::write(&path, "from-a-file\n").unwrap();
        let file = ("KAGE_API_KEY_FILE", path.to_str().unwrap());
        assert_eq!(load(&[file]).unwrap().key.expose_secret().trim(), "from-a-file");
        let error = load(&[file, ("KAGE_API_KEY", "hush")]).unwrap_err().to_string();
        assert!(error.contains("KAGE_API_KEY_FILE, not both") && !error.contains("hush"), "{error}");
        assert!(load(&[("KAGE_API_KEY_FILE", "/nowhere/at/all")]).is_err(), "never passed over");
    }

    #[test]
    fn a_clients_certificate_comes_with_a_key_that_is_its_owners_alone() {
        let home = tempfile::tempdir().unwrap();
        let (cert, key) = (home.path().join("cert.pem"), home.path().join("key.pem"));
        fs::write(&cert, "certificate").unwrap();
        fs::write(&key, "hush").unwrap();
        let api = ("KAGE_API_KEY", "k");
        let pair = [
            api,
            ("KAGE_CLIENT_CERT_FILE", cert.to_str().unwrap()),
            ("KAGE_CLIENT_KEY_FILE", key.to_str().unwrap()),
        ];
        fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
        let error = load(&pair).unwrap_err();
        assert!(matches!(error, ClientConfigError::Exposed { .. }), "{error}");
        assert!(error.to_string().contains("chmod 600") && !error.to_string().contains("hush"), "{error}");
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        let identity = load(&pair).unwrap().identity.expect("a pair");
        assert_eq!(
            (identity.certificate.as_slice(), identity.key.expose_secret()),
            (&b"certificate"[..], "hush")
        );
        assert!(!format!("{identity:?}").contains("hush"));
        for half in [pair[1], pair[2]] {
            let error = load(&[api, half]).unwrap_err().to_string();
            assert!(error.contains(half.0) && error.contains("both or neither"), "{error}");
        }
        let text = format!("key = \"k\"\nclient_cert_file = {cert:?}\nclient_key_file = {key:?}\n");
        let (home, _) = home_with(&text, 0o600);
        assert!(load(&[("HOME", home.path().to_str().unwrap())]).unwrap().identity.is_some());
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
