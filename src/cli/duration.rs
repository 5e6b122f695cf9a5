//! Spans of time as people write them: `45s`, `30m`, `24h`, `90d`.

use std::str::FromStr;

/// Whole seconds, at most ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub secs: u32,
}

const MAX_SECS: u32 = 10 * 365 * 86_400;

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no span of time such as 45s, 30m, 24h or 90d, of at most ten years");
        let unit = text.chars().next_back().ok_or_else(wrong)?;
        let number: u32 = text.strip_suffix(unit).and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
        let each = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let secs = number.checked_mul(each).filter(|secs| *secs <= MAX_SECS).ok_or_else(wrong)?;
        Ok(Self { secs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_whole_or_not_at_all() {
        for (text, secs) in [("45s", 45), ("30m", 1800), ("24h", 86_400), ("90d", 7_776_000), ("0s", 0)] {
            assert_eq!(text.parse(), Ok(Span { secs }), "{text}");
        }
        for bad in ["", "h", "24", "-1h", "1.5h", "1 h", "4000d", "99999999999d", "1w", "1ä"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }
}
