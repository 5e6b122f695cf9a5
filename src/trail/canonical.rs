//! The one form of an entry whose hash is a leaf: RFC 8785 over all columns of its row that are not null.
//!
//! Nothing here knows the columns: one that is added later, and is null in older rows, leaves their form as it was.
//!
//! RFC 8785 knows numbers as doubles only, and JSON in Postgres knows more. A number that no double holds exactly would
//! share its form with its neighbours, and could be exchanged for one unseen. So it becomes a string that begins with
//! U+0000, which no string in Postgres's JSON can hold: different rows have different forms, whatever they hold.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use crate::trail::error::TrailError;

/// Marks what had to be told as a string.
const ESCAPE: &str = "\\u0000";

/// The leaf of a row that Postgres gave as JSON text. It never fails on what a row can hold: who writes a strange
/// row must not stop the log.
///
/// # Errors
/// [`TrailError::Malformed`] if `row` is no JSON object.
pub fn leaf(row: &str) -> Result<Vec<u8>, TrailError> {
    let malformed = |problem: String| TrailError::malformed("row", problem);
    match serde_json::from_str(&exact_numbers(row)) {
        Ok(Value::Object(columns)) => {
            let columns: Map<String, Value> =
                columns.into_iter().filter(|(_, value)| !value.is_null()).collect();
            canonical(&Value::Object(columns))
        }
        Ok(_) => Err(malformed("it is no object".to_owned())),
        // Nested deeper than the parser goes: as the text that it is.
        Err(_) if row.starts_with('{') && row.ends_with('}') => {
            canonical(&json!({ "row": format!("\0{row}") }))
        }
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// RFC 8785.
///
/// # Errors
/// [`TrailError::Malformed`], which no [`Value`] causes.
pub fn canonical(value: &Value) -> Result<Vec<u8>, TrailError> {
    serde_json_canonicalizer::to_vec(value).map_err(|error| TrailError::malformed("JSON value", error))
}

/// Parses what must be in canonical form, to the byte.
///
/// # Errors
/// [`TrailError::Malformed`].
pub fn parse(line: &[u8]) -> Result<Value, TrailError> {
    let malformed = |problem: String| TrailError::malformed("canonical JSON line", problem);
    let value: Value = serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    if canonical(&value)? == line { Ok(value) } else { Err(malformed("another form".to_owned())) }
}

/// Puts numbers that no double holds exactly between quotes.
fn exact_numbers(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    let mut out = String::new();
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'-' | b'0'..=b'9' if !in_string => {
                let length = bytes[at..]
                    .iter()
                    .take_while(|byte| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
                    .count();
                let number = &text[at..at + length];
                if !is_exact(number) {
                    out.push_str(&text[copied..at]);
                    out.push('"');
                    out.push_str(ESCAPE);
                    out.push_str(number);
                    out.push('"');
                    copied = at + length;
                }
                at += length;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Whether the shortest form of the nearest double is this very number.
fn is_exact(number: &str) -> bool {
    // The common case: no number of up to 15 digits is lost.
    if number.len() <= 15 && number.bytes().all(|byte| byte.is_ascii_digit()) {
        return true;
    }
    let Ok(double) = number.parse::<f64>() else { return false };
    double.is_finite() && decimal(number) == decimal(&format!("{double:e}"))
}

/// Sign, significant digits and exponent.
fn decimal(number: &str) -> (bool, String, i64) {
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // Saturates: such an exponent is no double's.
    let exponent: i64 = exponent.parse().unwrap_or(i64::MAX / 2);
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return (false, String::new(), 0);
    }
    let shift = (digits.len() - significant.len()) as i64 - fraction.len() as i64;
    (negative, significant.to_owned(), exponent.saturating_add(shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(row: &str) -> String {
        String::from_utf8(leaf(row).unwrap()).unwrap()
    }

    #[test]
    fn is_that_of_rfc_8785() {
        // Section 3.2.3 of the RFC, by its own words.
        let row = r#"{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}"#;
        let expected = concat!(
            r#"{"literals":[null,true,false],"numbers":["\u0000333333333.33333329",1e+30,4.5,0.002,1e-27],"#,
            r#""string":"€$\u000f\nA'B\"\\\\\"/"}"#
        );
        assert_eq!(form(row), expected);
        // Keys in the order of UTF-16: section 3.2.3.
        let row = r#"{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh",
            "1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}"#;
        let order: Vec<usize> = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"]
            .iter()
            .map(|word| form(row).find(word).unwrap())
            .collect();
        assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn a_column_that_comes_later_changes_no_older_entry() {
        assert_eq!(form(r#"{"b": null, "a": {"c": null}}"#), r#"{"a":{"c":null}}"#);
        assert_eq!(form(r#"{"a": {"c": null}}"#), form(r#"{"b": null, "a": {"c": null}}"#));
    }

    #[test]
    fn numbers_that_a_double_would_confuse_stay_apart() {
        let apart = [
            "9007199254740992",
            "9007199254740993",
            "\"9007199254740993\"",
            "-9007199254740993",
            "18446744073709551615",
            "18446744073709551616",
            "0.1",
            "0.1000000000000000000001",
            "1e400",
            "1e401",
            "-1e400",
            "1e99999999999999999999",
            "1e-400",
            "0",
        ];
        let forms: std::collections::BTreeSet<String> =
            apart.iter().map(|number| form(&format!("{{\"n\": {number}}}"))).collect();
        assert_eq!(forms.len(), apart.len(), "{forms:#?}");
        assert_eq!(
            form(r#"{"n": 1.0, "s": "1e400 \" 99999999999999999999"}"#),
            r#"{"n":1,"s":"1e400 \" 99999999999999999999"}"#
        );
        for (one, other) in [("1.10", "1.1"), ("100", "1e2"), ("-0", "0"), ("0.00", "0")] {
            assert_eq!(form(&format!("{{\"n\": {one}}}")), form(&format!("{{\"n\": {other}}}")));
        }
    }

    #[test]
    fn what_is_nested_too_deep_for_a_parser_has_a_form_too() {
        let deep = |depth| format!("{{\"details\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(form(&deep(10)).starts_with("{\"details\""));
        let (one, other) = (form(&deep(5000)), form(&deep(5001)));
        assert!(one.starts_with("{\"row\":\"\\u0000{"));
        assert_ne!(one, other);
        assert!(parse(one.as_bytes()).is_ok());
        for wrong in ["", "[]", "1", "{", "{]}x"] {
            assert!(leaf(wrong).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_number_is_itself_or_a_string(number in "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?") {
            let text = form(&format!("{{\"n\":{number}}}"));
            let value = parse(text.as_bytes()).unwrap();
            match &value["n"] {
                Value::String(kept) => proptest::prop_assert_eq!(kept, &format!("\0{number}")),
                kept => proptest::prop_assert_eq!(decimal(&kept.to_string()), decimal(&number)),
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC*") {
            let _ = leaf(&text);
            let _ = leaf(&format!("{{{text}}}"));
            let _ = parse(text.as_bytes());
        }
    }
}
