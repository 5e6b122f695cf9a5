//! What `kage retention` needs: how long things are kept, and how much of them. Nothing is let go that is not set.

use std::time::Duration;

use crate::config::error::ConfigError;
use crate::config::settings::Settings;

pub const NAMES: [&str; 7] = [
    "KAGE_RETENTION_LOG_DAYS",
    "KAGE_RETENTION_LOG_BYTES",
    "KAGE_RETENTION_EVENTS_DAYS",
    "KAGE_RETENTION_EVENTS_BYTES",
    "KAGE_RETENTION_RESULTS_DAYS",
    "KAGE_RETENTION_RESULTS_BYTES",
    "KAGE_RETENTION_POLL_SECS",
];

const CENTURY: u64 = 36_500;

/// For how long and how much; none: for ever, all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Days from the end of a task.
    pub days: Option<u32>,
    pub bytes: Option<u64>,
}

impl Kept {
    pub const fn for_ever(self) -> bool {
        self.days.is_none() && self.bytes.is_none()
    }
}

#[derive(Debug, Clone)]
pub struct RetentionConfig {
    /// Output.
    pub log: Kept,
    /// All other events.
    pub events: Kept,
    /// Patches, lists of files, findings, branches.
    pub results: Kept,
    /// Between two rounds.
    pub poll: Duration,
}

impl RetentionConfig {
    /// See the table in `docs/retention.md` for each variable and its default.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, ConfigError> {
        let mut kept = |days, bytes| -> Result<Kept, ConfigError> {
            let days = bounded(settings, days, CENTURY)?.map(|days| days as u32);
            Ok(Kept { days, bytes: bounded(settings, bytes, 1 << 60)? })
        };
        let log = kept("KAGE_RETENTION_LOG_DAYS", "KAGE_RETENTION_LOG_BYTES")?;
        let events = kept("KAGE_RETENTION_EVENTS_DAYS", "KAGE_RETENTION_EVENTS_BYTES")?;
        let results = kept("KAGE_RETENTION_RESULTS_DAYS", "KAGE_RETENTION_RESULTS_BYTES")?;
        let poll = Duration::from_secs(settings.within("KAGE_RETENTION_POLL_SECS", 3600, 1, 10_800)?);
        Ok(Self { log, events, results, poll })
    }
}

/// From 1 on: who keeps nothing has misspelt it.
fn bounded(settings: &mut Settings, name: &'static str, most: u64) -> Result<Option<u64>, ConfigError> {
    let value: Option<u64> = settings.optional(name)?;
    match value {
        Some(value) if !(1..=most).contains(&value) => {
            let problem = format!("{value} is not between 1 and {most}; to keep everything, leave it out");
            Err(ConfigError::Invalid { name: name.to_owned(), problem })
        }
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<RetentionConfig, ConfigError> {
        let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut settings = Settings::from_parts(variables.collect(), None).unwrap();
        RetentionConfig::from_settings(&mut settings)
    }

    #[test]
    fn what_is_not_set_is_kept_and_nothing_is_kept_for_no_time() {
        let config = read(&[]).unwrap();
        assert!(config.log.for_ever() && config.events.for_ever() && config.results.for_ever());
        let config = read(&[("KAGE_RETENTION_LOG_DAYS", "30")]).unwrap();
        assert_eq!(config.log, Kept { days: Some(30), bytes: None });
        assert!(config.events.for_ever() && config.results.for_ever());
        for name in &NAMES[..6] {
            for value in ["0", "-1", "1152921504606846977", "a week"] {
                let error = read(&[(name, value)]).unwrap_err().to_string();
                assert!(error.contains(name), "{error}");
            }
            let error = read(&[(name, "1d")]).unwrap_err().to_string();
            assert!(error.contains("a whole number is wanted, without a unit"), "{error}");
        }
    }
}
