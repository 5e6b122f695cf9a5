//! Secrets that were planted to be looked for, however they are spelled.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// Plain, hexadecimal, as in a URL, in JSON, and in base64 wherever it may stand in a text.
fn spellings(secret: &str) -> Vec<String> {
    let mut all = vec![secret.to_owned(), hex::encode(secret), hex::encode_upper(secret)];
    all.push(url::form_urlencoded::byte_serialize(secret.as_bytes()).collect());
    all.push(serde_json::to_string(secret).expect("JSON").trim_matches('"').to_owned());
    for shift in 0..3 {
        for engine in [&STANDARD, &URL_SAFE] {
            let text = engine.encode(format!("{}{secret}", "x".repeat(shift)));
            // Without what depends on the neighbours.
            all.push(text[4..text.len() - 4].to_owned());
        }
    }
    all
}

/// None of the secrets is in a text, in any spelling.
pub fn assert_absent(place: &str, text: &str, secrets: &[&str]) {
    assert!(!text.is_empty(), "there is nothing in the {place}");
    for secret in secrets {
        for spelled in spellings(secret) {
            let at = text.find(&spelled);
            let around = at.map(|at| text[at.saturating_sub(300)..at].to_string().replace(&spelled, "…"));
            assert!(at.is_none(), "a secret ({}…) is in the {place}, after: {around:?}", &secret[..8]);
        }
    }
}
