//! All that is looked for, in one automaton: how keys look, and the secrets that this process has, plain and as they
//! come out of JSON, a URL, base64 and hex.

use std::collections::BTreeSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};

use crate::domain::api_key;
use crate::redact::forms::{FORMS, Form, OURS};

/// Bytes of a secret that is looked for: shorter ones are found everywhere by chance.
pub const SHORTEST: usize = 8;
/// Of a longer one only its beginning is looked for.
const LONGEST: usize = 4096;

pub struct Patterns {
    automaton: AhoCorasick,
    /// The beginnings of forms first, then secrets.
    texts: Vec<Vec<u8>>,
    /// Indices of `texts` in their order.
    sorted: Vec<usize>,
    /// Which bytes any of them begins with, and which two.
    first: [bool; 256],
    pairs: Vec<bool>,
    longest: usize,
}

impl std::fmt::Debug for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patterns").field("count", &self.texts.len()).finish_non_exhaustive()
    }
}

impl Drop for Patterns {
    /// The automaton keeps a copy that we cannot reach.
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.texts);
    }
}

/// What is found in some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// In order, apart from each other.
    pub secrets: Vec<Range<usize>>,
    /// Where something begins that the end cuts off, so that it cannot be told yet.
    pub undecided: Option<usize>,
}

/// What a place where a form begins comes to.
enum Verdict {
    Secret(usize),
    None,
    Undecided,
}

impl Patterns {
    /// Looks for keys of known forms and for these secrets; those that are too short are left out.
    ///
    /// # Panics
    /// Never: an automaton of so many patterns can be built.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let mut known = BTreeSet::new();
        for secret in secrets {
            let secret = secret.expose_secret().as_bytes();
            if secret.len() >= SHORTEST {
                known.extend(spellings(&secret[..secret.len().min(LONGEST)]));
            }
        }
        let mut texts: Vec<Vec<u8>> = FORMS.iter().map(|form| form.start.as_bytes().to_vec()).collect();
        texts.extend(known.into_iter().filter(|text| text.len() >= SHORTEST));
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // As fast as it gets, where it does not get too large.
            .kind((texts.len() < 500).then_some(AhoCorasickKind::DFA))
            .build(&texts)
            .expect("a few hundred short patterns");
        let mut sorted: Vec<usize> = (0..texts.len()).collect();
        sorted.sort_by(|a, b| texts[*a].cmp(&texts[*b]));
        let mut first = [false; 256];
        let mut pairs = vec![false; 1 << 16];
        for text in &texts {
            first[usize::from(text[0])] = true;
            pairs[pair(text)] = true;
        }
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        Self { automaton, texts, sorted, first, pairs, longest }
    }

    /// Whether there is nothing in a whole text.
    pub fn are_absent(&self, text: &[u8]) -> bool {
        self.find(&[], text, true).secrets.is_empty()
    }

    /// Puts `*` in the place of every byte of what is found in a whole text; how many places there were.
    pub fn redact(&self, text: &mut [u8]) -> usize {
        let found = self.find(&[], text, true).secrets;
        for place in &found {
            text[place.clone()].fill(b'*');
        }
        found.len()
    }

    /// As [`Patterns::redact`]; the text stays text.
    pub fn redact_text(&self, text: &mut String) -> usize {
        let found = self.find(&[], text.as_bytes(), true).secrets;
        for place in found.iter().rev() {
            // A long one is looked for up to a place that may be within a character.
            let (start, end) = (text.floor_char_boundary(place.start), text.ceil_char_boundary(place.end));
            text.replace_range(start..end, &"*".repeat(end - start));
        }
        found.len()
    }

    /// Looks at bytes that stand after others. `last`: nothing follows them.
    pub(super) fn find(&self, before: &[u8], bytes: &[u8], last: bool) -> Found {
        let mut found = Found::default();
        let mut at = 0;
        while let Some(hit) = self.automaton.find(Input::new(bytes).range(at..)) {
            let start = hit.start();
            let within = found.secrets.last().is_some_and(|known| start < known.end);
            // A shorter beginning may fit where the longest does not: `sk-` where `sk-ant-` is.
            let mut verdict = Verdict::None;
            for index in self.at(&bytes[start..]) {
                // Keys within keys end with them: looking at each would take a time that grows with the square.
                if within && index < FORMS.len() {
                    continue;
                }
                match self.judge(index, before, bytes, start, last) {
                    Verdict::Secret(end) if matches!(verdict, Verdict::Secret(known) if known >= end) => {}
                    Verdict::Undecided if matches!(verdict, Verdict::Secret(_)) => {}
                    Verdict::None => {}
                    better => verdict = better,
                }
            }
            match verdict {
                Verdict::Secret(end) => match found.secrets.last_mut() {
                    Some(known) if known.end > start => known.end = known.end.max(end),
                    _ => found.secrets.push(start..end),
                },
                // What follows waits too, and is looked at again.
                Verdict::Undecided => {
                    found.undecided = Some(start);
                    break;
                }
                Verdict::None => {}
            }
            // One may begin within another.
            at = start + 1;
        }
        if !last {
            let cut = self.cut_off(before, bytes);
            found.undecided = [found.undecided, cut].into_iter().flatten().min();
        }
        found
    }

    /// Which patterns stand at the beginning of some bytes.
    fn at<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        // Each is a beginning of the next, or not there: from the last that could be, back.
        let to = self.sorted.partition_point(|index| self.texts[*index].as_slice() <= bytes);
        let from = self.sorted.partition_point(|index| self.texts[*index][0] < bytes[0]);
        self.sorted[from..to].iter().copied().filter(|index| bytes.starts_with(&self.texts[*index]))
    }

    fn judge(&self, index: usize, before: &[u8], bytes: &[u8], start: usize, last: bool) -> Verdict {
        let begun = start + self.texts[index].len();
        let Some(form) = FORMS.get(index) else { return Verdict::Secret(begun) };
        if !begins_a_word(before, bytes, start) {
            return Verdict::None;
        }
        let rest = &bytes[begun..];
        let count = rest.iter().take(form.most).take_while(|byte| form.alphabet.has(**byte)).count();
        if count == rest.len() && count < form.most && !last {
            return Verdict::Undecided;
        }
        if count < form.least {
            return Verdict::None;
        }
        decide(form, &bytes[start..begun + count], start)
    }

    /// Where a pattern begins that the end cuts off.
    fn cut_off(&self, before: &[u8], bytes: &[u8]) -> Option<usize> {
        let from = bytes.len().saturating_sub(self.longest.saturating_sub(1));
        (from..bytes.len()).find(|start| {
            let tail = &bytes[*start..];
            let may = if tail.len() == 1 { self.first[usize::from(tail[0])] } else { self.pairs[pair(tail)] };
            may && self.is_cut(before, bytes, *start)
        })
    }

    fn is_cut(&self, before: &[u8], bytes: &[u8], start: usize) -> bool {
        let tail = &bytes[start..];
        let from = self.sorted.partition_point(|index| self.texts[*index].as_slice() <= tail);
        self.sorted[from..]
            .iter()
            .map(|index| (*index, &self.texts[*index]))
            .take_while(|(_, text)| text.starts_with(tail))
            .any(|(index, _)| index >= FORMS.len() || begins_a_word(before, bytes, start))
    }
}

/// The first two bytes of at least as many.
fn pair(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// Our own keys have a checksum: what only looks like one stays.
fn decide(form: &Form, bytes: &[u8], start: usize) -> Verdict {
    if form.start != OURS.start {
        return Verdict::Secret(start + bytes.len());
    }
    let whole = OURS.start.len() + OURS.least;
    let key = std::str::from_utf8(&bytes[..whole]).ok().and_then(api_key::parse);
    if key.is_some() { Verdict::Secret(start + whole) } else { Verdict::None }
}

/// How far [`begins_a_word`] looks back.
pub(super) const BACK: usize = 6;

/// Whether what stands here is not the rest of a word. The letters of an escape in JSON (`\n`, `\u003d`) or in a URL
/// (`%3D`), and the last of a colour belong to no word; what was before is not always known.
fn begins_a_word(before: &[u8], bytes: &[u8], start: usize) -> bool {
    let back = |count: usize| match start.checked_sub(count) {
        Some(index) => bytes.get(index).copied(),
        None => before.len().checked_sub(count - start).and_then(|index| before.get(index).copied()),
    };
    let Some(last) = back(1) else { return true };
    if !last.is_ascii_alphanumeric() && last != b'_' {
        return true;
    }
    // What is not known may have been anything.
    let is = |count: usize, good: fn(u8) -> bool| back(count).is_none_or(good);
    let hex = |count: usize| (1..=count).all(|count| is(count, |byte| byte.is_ascii_hexdigit()));
    let json = matches!(last, b'n' | b'r' | b't') && is(2, |byte| byte == b'\\');
    let colour = last == b'm' && is(2, |byte| byte.is_ascii_digit() || byte == b'[');
    let url = hex(2) && is(3, |byte| byte == b'%');
    let unicode = hex(4) && is(5, |byte| byte == b'u') && is(6, |byte| byte == b'\\');
    json || colour || url || unicode
}

/// A secret as it may be spelled.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut all =
        vec![secret.to_vec(), hex::encode(secret).into_bytes(), hex::encode_upper(secret).into_bytes()];
    if let Ok(text) = std::str::from_utf8(secret) {
        let json = serde_json::to_string(text).unwrap_or_default();
        all.push(json.trim_start_matches('"').strip_suffix('"').unwrap_or_default().as_bytes().to_vec());
        // As a path, a query and a form spell it.
        let form: String = url::form_urlencoded::byte_serialize(secret).collect();
        all.push(form.replace('+', "%20").into_bytes());
        all.push(form.into_bytes());
    }
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        for shift in 0..3 {
            let encoded = engine.encode([&[0; 2][..shift], secret].concat());
            // What also depends on its neighbours is left out.
            let from = [0, 2, 3][shift];
            let to = (shift + secret.len()) * 8 / 6;
            all.push(encoded.as_bytes()[from..to].to_vec());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    static FORMS_ALONE: std::sync::LazyLock<Patterns> = std::sync::LazyLock::new(|| Patterns::new([]));

    fn stars(text: &str, secrets: &[&str]) -> String {
        if secrets.is_empty() {
            return stars_of(text, &FORMS_ALONE);
        }
        let secrets: Vec<SecretString> = secrets.iter().map(|secret| (*secret).into()).collect();
        stars_of(text, &Patterns::new(&secrets))
    }

    fn stars_of(text: &str, patterns: &Patterns) -> String {
        let (mut bytes, mut same) = (text.as_bytes().to_vec(), text.to_owned());
        let count = patterns.redact(&mut bytes);
        assert_eq!(patterns.redact_text(&mut same), count);
        assert_eq!((same.as_bytes(), patterns.are_absent(text.as_bytes())), (&*bytes, count == 0));
        same
    }

    #[test]
    fn keys_of_every_form_are_hidden_and_nothing_around_them() {
        for form in FORMS.iter().skip(1) {
            let one = if form.alphabet == crate::redact::forms::Alphabet::Capitals { "A7" } else { "a7" };
            let key = format!("{}{}", form.start, &one.repeat(form.least)[..form.least]);
            for (left, right) in [
                ("", ""),
                ("x=", ";"),
                ("\"", "\""),
                ("\\n", "\\n"),
                ("\u{1b}[31m", "\u{1b}[0m"),
                ("\u{1b}[m", " "),
                ("%3D", "%26"),
                ("\\u003d", " "),
                ("é", "é"),
            ] {
                let expected = format!("{left}{}{right}", "*".repeat(key.len()));
                assert_eq!(stars(&format!("{left}{key}{right}"), &[]), expected, "{form:?}");
            }
            let short = format!(" {} ", &key[..key.len() - 1]);
            assert_eq!(stars(&short, &[]), short, "one too few");
        }
    }

    #[test]
    fn our_own_keys_are_told_by_their_checksum() {
        let (_, key) = api_key::generate();
        let key = key.expose_secret();
        assert_eq!(stars(&format!("={key}x"), &[]), format!("={}x", "*".repeat(key.len())));
        let wrong = format!("{}{}", &key[..53], if key.ends_with('x') { 'y' } else { 'x' });
        assert_eq!(stars(&wrong, &[]), wrong);
    }

    #[test]
    fn what_is_no_key_stays() {
        for text in [
            "task-0123456789abcdef0123456789abcdef",
            "sk-short",
            "risk-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "kage_0123456789_0123456789012345678901234567890123456789",
            "https://sk-ant-/",
            "xoxb-",
            "AKIA",
            "",
            "kage-placeholder",
            "d41d8cd98f00b204e9800998ecf8427e",
            "NAKIAABCDEFGHIJKLMNOP",
        ] {
            assert_eq!(stars(text, &[]), text);
        }
        let key = format!("sk-ant-{}", "a".repeat(5000));
        let cut = format!("{}{}", "*".repeat(7 + 2048), "a".repeat(5000 - 2048));
        assert_eq!(stars(&key, &[]), cut, "an endless one is cut");
    }

    #[test]
    fn configured_secrets_are_found_however_they_are_spelled() {
        let secret = "p\u{e4}ss \"w/o?rd+1";
        let json = serde_json::to_string(secret).unwrap();
        let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let mut spelled =
            vec![secret.to_owned(), json.trim_matches('"').to_owned(), form.replace('+', "%20"), form];
        spelled.extend([hex::encode(secret), hex::encode_upper(secret)]);
        for text in spelled {
            assert_eq!(stars(&format!("x{text}x"), &[secret]), format!("x{}x", "*".repeat(text.len())));
        }
        for before in 0..7 {
            for engine in
                [&base64::engine::general_purpose::STANDARD, &base64::engine::general_purpose::URL_SAFE]
            {
                let text = engine.encode(format!("{}{secret} and after", "b".repeat(before)));
                let shown = stars(&text, &[secret]);
                assert!(shown.matches('*').count() >= secret.len() * 4 / 3 - 3, "{text} {shown}");
            }
        }
        assert_eq!(stars("a short one", &["short"]), "a short one");
        // Two that overlap are both gone.
        assert_eq!(stars("-abcdefghijkl-", &["abcdefgh", "efghijkl"]), "-************-");
    }
}
