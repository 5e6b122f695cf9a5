//! A secret and its last good value. What cannot be read again leaves the old value in force: never nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::secret::error::SecretError;
use crate::secret::local::{self, Stamp};
use crate::secret::resolver::Resolver;
use crate::secret::source::Source;

/// Cheap to clone; all clones have one value.
#[derive(Clone)]
pub struct Secret(Arc<Inner>);

struct Inner {
    name: String,
    source: Source,
    resolver: Arc<Resolver>,
    /// What the value must be like for its use.
    accept: fn(&str) -> bool,
    /// How a person calls such a value.
    form: Option<&'static str>,
    value: watch::Sender<Option<SecretString>>,
    state: Mutex<State>,
}

struct State {
    /// Of the file that was read last.
    stamp: Option<Stamp>,
    /// How often the value has changed.
    changes: u64,
    /// Why the last reading failed.
    failure: Option<String>,
    /// When it was read last.
    read_at: Option<Instant>,
}

/// How a secret stands, for those who report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub changes: u64,
    pub failure: Option<String>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({} from {})", self.0.name, self.0.source)
    }
}

impl Secret {
    /// Not read yet. `name` is the setting's.
    pub fn new(name: &str, source: Source, resolver: Arc<Resolver>, accept: fn(&str) -> bool) -> Self {
        Self::with_form(name, source, resolver, accept, None)
    }

    /// As [`Secret::new`]; a value that is not accepted is told to be no `form`.
    pub fn with_form(
        name: &str,
        source: Source,
        resolver: Arc<Resolver>,
        accept: fn(&str) -> bool,
        form: Option<&'static str>,
    ) -> Self {
        let state = State { stamp: None, changes: 0, failure: None, read_at: None };
        Self(Arc::new(Inner {
            name: name.to_owned(),
            source,
            resolver,
            accept,
            form,
            value: watch::Sender::new(None),
            state: Mutex::new(state),
        }))
    }

    /// One that never changes.
    pub fn fixed(name: &str, value: SecretString) -> Self {
        let this = Self::new(name, Source::Literal(value), Arc::default(), |_| true);
        let _ = this.read_at_once();
        this
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn source(&self) -> &Source {
        &self.0.source
    }

    /// The value in force; `None` if there has been none yet.
    pub fn current(&self) -> Option<SecretString> {
        self.0.value.borrow().clone()
    }

    /// Hears of new values.
    pub fn subscribe(&self) -> watch::Receiver<Option<SecretString>> {
        self.0.value.subscribe()
    }

    pub fn standing(&self) -> Standing {
        let state = self.lock();
        Standing { changes: state.changes, failure: state.failure.clone() }
    }

    /// The value in force, after a look at its file: one that was replaced counts at once.
    ///
    /// # Errors
    /// [`SecretError`] if there has never been a value.
    pub fn at_use(&self) -> Result<SecretString, SecretError> {
        let unread = !self.0.source.is_asked() && self.current().is_none();
        if unread || self.file_has_changed() {
            // Its failure is in the standing; the old value goes on.
            let _ = self.read_here();
        }
        self.current().ok_or_else(|| {
            let failure = self.standing().failure;
            SecretError::Unread(failure.unwrap_or_else(|| format!("{}: not read yet", self.0.source)))
        })
    }

    /// As [`Secret::at_use`]; what was not asked for yet is.
    ///
    /// # Errors
    /// [`SecretError`] if there has never been a value.
    pub async fn get(&self) -> Result<SecretString, SecretError> {
        let asked = self.0.source.is_asked() && self.current().is_none() && self.is_due();
        if asked {
            // Its failure is in the standing.
            let _ = self.read().await;
        }
        self.at_use()
    }

    /// Reads it wherever it is. Whether the value is another one now.
    ///
    /// # Errors
    /// [`SecretError`]; the value in force stays.
    pub async fn read(&self) -> Result<bool, SecretError> {
        let stamp = self.stamp();
        let read = self.0.resolver.read(&self.0.source).await;
        self.take(stamp, read)
    }

    /// As [`Secret::read`], at the start.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn read_at_once(&self) -> Result<bool, SecretError> {
        let stamp = self.stamp();
        self.take(stamp, self.0.resolver.read_at_once(&self.0.source))
    }

    /// Whether it is time to read it again: its file is another one, or its time is over.
    pub fn is_due(&self) -> bool {
        if !self.0.source.is_asked() {
            return self.file_has_changed();
        }
        let (state, every) = (self.lock(), self.0.resolver.every);
        // What could not be read is asked for sooner.
        let every = if state.failure.is_some() { every / 10 } else { every };
        state.read_at.is_none_or(|at| at.elapsed() >= every)
    }

    fn read_here(&self) -> Result<bool, SecretError> {
        let stamp = self.stamp();
        match local::read(&self.0.source) {
            Some(read) => self.take(stamp, read),
            None => Ok(false),
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        local::file_of(&self.0.source).and_then(|path| local::stamp(&path))
    }

    fn file_has_changed(&self) -> bool {
        local::file_of(&self.0.source).is_some_and(|path| {
            let seen = local::stamp(&path);
            let state = self.lock();
            state.read_at.is_none() || seen != state.stamp
        })
    }

    /// The stamp was taken before the reading: what changes in between is read again.
    fn take(
        &self,
        stamp: Option<Stamp>,
        read: Result<SecretString, SecretError>,
    ) -> Result<bool, SecretError> {
        let place = || self.0.source.to_string();
        let read = read.and_then(|value| {
            let good = (self.0.accept)(value.expose_secret());
            match self.0.form {
                _ if good => Ok(value),
                Some(form) => Err(SecretError::Unfit { place: place(), form }),
                None => Err(SecretError::Unusable(place())),
            }
        });
        let mut state = self.lock();
        state.stamp = stamp;
        state.read_at = Some(Instant::now());
        let value = match read {
            Ok(value) => value,
            Err(error) => {
                state.failure = Some(error.to_string());
                return Err(error);
            }
        };
        state.failure = None;
        let same =
            self.0.value.borrow().as_ref().is_some_and(|old| {
                old.expose_secret().as_bytes().ct_eq(value.expose_secret().as_bytes()).into()
            });
        if same {
            return Ok(false);
        }
        let first = self.0.value.borrow().is_none();
        state.changes += u64::from(!first);
        self.0.value.send_replace(Some(value));
        Ok(!first)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of(path: &std::path::Path) -> Secret {
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        Secret::new("KAGE_X", Source::File(path.to_owned()), Arc::default(), plain)
    }

    fn value(secret: &Secret) -> String {
        secret.at_use().unwrap().expose_secret().to_owned()
    }

    #[test]
    fn a_replaced_file_counts_at_once_and_a_broken_one_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let secret = of(&path);
        let missing = secret.at_use().unwrap_err().to_string();
        assert!(missing.contains("key"), "{missing}");
        fs::write(&path, "first\n").unwrap();
        assert_eq!((value(&secret), secret.standing().changes), ("first".to_owned(), 0));
        // As secrets are rotated: a new file in the place of the old one, of the same length.
        fs::write(folder.path().join("new"), "other\n").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(secret.is_due());
        assert_eq!((value(&secret), secret.standing().changes), ("other".to_owned(), 1));
        assert!(!secret.is_due());
        // Never to nothing, nor to what cannot be used.
        for text in ["", "\n", "two lines\nof it", "a\r\nX-Other: 1", "ümlaut", " space"] {
            fs::write(&path, text).unwrap();
            assert_eq!(value(&secret), "other", "{text:?}");
            let failure = secret.standing().failure.unwrap();
            assert!(text.trim().is_empty() || !failure.contains(text), "{failure}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(value(&secret), "other");
        assert!(secret.standing().failure.is_some());
        fs::write(&path, "third").unwrap();
        assert_eq!(value(&secret), "third");
        assert_eq!(secret.standing(), Standing { changes: 2, failure: None });
        assert!(!format!("{secret:?}").contains("third"));
    }

    #[tokio::test]
    async fn a_new_value_is_heard_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "first").unwrap();
        let secret = of(&path);
        assert!(!secret.read().await.unwrap(), "the first one is no change");
        let mut heard = secret.subscribe();
        assert!(!secret.read().await.unwrap() && !heard.has_changed().unwrap());
        fs::write(&path, "second").unwrap();
        assert!(secret.read().await.unwrap() && heard.has_changed().unwrap());
        assert_eq!(heard.borrow_and_update().as_ref().unwrap().expose_secret(), "second");
    }
}
