//! Points in time as clients write them. chrono reads years that RFC 3339 cannot write, and Postgres cannot keep.

use chrono::{DateTime, Datelike as _, Utc};
use serde::de::{Deserialize, Deserializer, Error};

/// # Errors
/// If the year has not four digits.
pub fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let at = Option::<DateTime<Utc>>::deserialize(deserializer)?;
    if at.is_some_and(|at| !(0..=9999).contains(&at.year())) {
        return Err(D::Error::custom("a year has four digits"));
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Asked {
        #[serde(default, deserialize_with = "read")]
        at: Option<DateTime<Utc>>,
    }

    #[test]
    fn a_year_has_four_digits() {
        let read = |at: &str| serde_json::from_str::<Asked>(at).map(|asked| asked.at.is_some());
        assert!(read(r#"{"at":"9999-12-31T23:59:59Z"}"#).expect("a time"));
        assert!(read(r#"{"at":"0000-01-01T00:00:00Z"}"#).expect("a time"));
        assert!(!read("{}").expect("none") && !read(r#"{"at":null}"#).expect("none"));
        for beyond in ["-0001-01-01T00:00:00Z", "+10000-01-01T00:00:00Z", "-262143-01-01T00:00:00Z"] {
            assert!(read(&format!(r#"{{"at":"{beyond}"}}"#)).is_err(), "{beyond}");
        }
        // Within four digits where it is written, and not in UTC.
        assert!(read(r#"{"at":"9999-12-31T23:59:59-01:00"}"#).is_err());
    }
}
