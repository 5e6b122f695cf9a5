//! Picks single values out of JSON as it streams by, in memory that does not grow with it: an answer may be
//! megabytes, and what is wanted of it a handful of numbers. It takes no care to refuse what is not quite
//! JSON; that is the client's to judge, which gets the same bytes.

/// Where a value is: keys from the root down; `*` is any element of an array.
pub(crate) struct Pattern<S> {
    pub path: &'static [&'static str],
    pub slot: S,
}

/// A value that was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar {
    /// At most `MAX_TEXT` bytes of it.
    Text(String),
    /// A whole number, not negative.
    Number(u64),
    True,
    /// False, null and every other number.
    Other,
}

/// Containers within one another that are told apart; no pattern is longer.
const LEVELS: usize = 8;
const MAX_KEY: usize = 64;
/// Bytes of a text that are kept.
pub(crate) const MAX_TEXT: usize = 400;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between values.
    Open,
    Text {
        key: bool,
        escaped: bool,
    },
    /// A number or a word.
    Bare,
    /// The root value is whole.
    Ended,
    /// Not JSON; nothing more is read.
    Broken,
}

/// One JSON value at a time; `reset` begins the next.
pub(crate) struct Scanner<S: 'static> {
    patterns: &'static [Pattern<S>],
    state: State,
    /// Containers that are open.
    depth: usize,
    /// For each of the outer containers: the patterns that lead into it, and whether it is an array.
    levels: [(u64, bool); LEVELS],
    /// The patterns that lead to the value that is next.
    alive: u64,
    /// A key comes next.
    key_next: bool,
    token: Vec<u8>,
    /// Whether the token is wanted at all.
    keep: bool,
}

impl<S: Copy> Scanner<S> {
    /// At most 64 patterns, of at most `LEVELS` keys each.
    pub(crate) fn new(patterns: &'static [Pattern<S>]) -> Self {
        debug_assert!(patterns.len() <= 64 && patterns.iter().all(|one| one.path.len() <= LEVELS));
        Self {
            patterns,
            state: State::Open,
            depth: 0,
            levels: [(0, false); LEVELS],
            alive: u64::MAX,
            key_next: false,
            token: Vec::new(),
            keep: false,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.state = State::Open;
        self.depth = 0;
        self.alive = u64::MAX;
        self.key_next = false;
        self.token.clear();
    }

    /// Whether a whole object or array has been read.
    pub(crate) fn ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether nothing more is read: the value is whole, or was none.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Broken)
    }

    pub(crate) fn feed(&mut self, mut bytes: &[u8], found: &mut impl FnMut(S, Scalar)) {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Ended | State::Broken => return,
                State::Text { key, escaped } => self.text(bytes, key, escaped, found),
                State::Bare => self.bare(bytes, found),
                State::Open => self.open(bytes),
            };
        }
    }

    fn open<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        match bytes[0] {
            b' ' | b'\t' | b'\r' | b'\n' | b':' => {}
            b'{' => self.enter(false),
            b'[' => self.enter(true),
            close @ (b'}' | b']') => self.leave(close == b']'),
            b',' => self.next_entry(),
            b'"' => {
                let key = self.key_next;
                self.keep = if key { self.inside() != 0 } else { self.wanted() };
                self.token.clear();
                self.state = State::Text { key, escaped: false };
            }
            _ if self.depth == 0 || self.key_next => self.state = State::Broken,
            _ => {
                self.keep = self.wanted();
                self.token.clear();
                self.state = State::Bare;
                return bytes;
            }
        }
        &bytes[1..]
    }

    fn text<'b>(
        &mut self,
        bytes: &'b [u8],
        key: bool,
        escaped: bool,
        found: &mut impl FnMut(S, Scalar),
    ) -> &'b [u8] {
        if escaped {
            self.collect(&bytes[..1], key);
            self.state = State::Text { key, escaped: false };
            return &bytes[1..];
        }
        let Some(stop) = memchr::memchr2(b'"', b'\\', bytes) else {
            self.collect(bytes, key);
            return &[];
        };
        self.collect(&bytes[..stop], key);
        if bytes[stop] == b'\\' {
            self.collect(b"\\", key);
            self.state = State::Text { key, escaped: true };
        } else {
            self.state = State::Open;
            if key {
                self.key_next = false;
                self.alive = if self.keep { self.lead_on(&unescape(&self.token)) } else { 0 };
            } else {
                if self.keep {
                    self.report(Scalar::Text(unescape(&self.token)), found);
                }
                if self.depth == 0 {
                    self.state = State::Broken;
                }
            }
        }
        &bytes[stop + 1..]
    }

    fn bare<'b>(&mut self, bytes: &'b [u8], found: &mut impl FnMut(S, Scalar)) -> &'b [u8] {
        let ends =
            |b: u8| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n' | b'"' | b'{' | b'[');
        let Some(stop) = bytes.iter().position(|&b| ends(b)) else {
            self.collect(bytes, false);
            return &[];
        };
        self.collect(&bytes[..stop], false);
        self.state = State::Open;
        if self.keep {
            self.report(bare_value(&self.token), found);
        }
        &bytes[stop..]
    }

    /// Keeps a token's beginning; a key that is too long is kept as one that no pattern has.
    fn collect(&mut self, bytes: &[u8], key: bool) {
        if self.keep {
            let room = (if key { MAX_KEY } else { MAX_TEXT }).saturating_sub(self.token.len());
            self.token.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn enter(&mut self, array: bool) {
        if let Some(level) = self.levels.get_mut(self.depth) {
            *level = (self.alive, array);
        }
        self.depth += 1;
        self.key_next = !array && self.depth <= LEVELS;
        self.alive = if array { self.lead_on("*") } else { 0 };
    }

    fn leave(&mut self, array: bool) {
        match self.depth.checked_sub(1) {
            None => self.state = State::Broken,
            Some(outer) if outer < LEVELS && self.levels[outer].1 != array => self.state = State::Broken,
            Some(outer) => {
                self.depth = outer;
                self.key_next = false;
                self.alive = 0;
                if outer == 0 {
                    self.state = State::Ended;
                }
            }
        }
    }

    fn next_entry(&mut self) {
        match self.depth.checked_sub(1).map(|inner| self.levels.get(inner)) {
            None => self.state = State::Broken,
            Some(Some((_, true))) => self.alive = self.lead_on("*"),
            Some(Some((_, false))) => self.key_next = true,
            // Too deep for any pattern: keys and values alike are passed over.
            Some(None) => {}
        }
    }

    /// The patterns that lead into the innermost container.
    fn inside(&self) -> u64 {
        self.depth.checked_sub(1).and_then(|inner| self.levels.get(inner)).map_or(0, |level| level.0)
    }

    /// Of those, the ones that lead on by this key.
    fn lead_on(&self, key: &str) -> u64 {
        let (mut on, inside) = (0, self.inside());
        if inside != 0 {
            for (index, pattern) in self.patterns.iter().enumerate() {
                let bit = 1 << index;
                if inside & bit != 0 && pattern.path.get(self.depth - 1) == Some(&key) {
                    on |= bit;
                }
            }
        }
        on
    }

    /// Whether any pattern ends at the value that is next.
    fn wanted(&self) -> bool {
        self.alive != 0 && self.ending().next().is_some()
    }

    fn ending(&self) -> impl Iterator<Item = S> {
        let (alive, depth) = (self.alive, self.depth);
        let patterns = self.patterns.iter().enumerate();
        patterns
            .filter(move |(i, one)| alive & (1 << i) != 0 && one.path.len() == depth)
            .map(|(_, one)| one.slot)
    }

    fn report(&self, value: Scalar, found: &mut impl FnMut(S, Scalar)) {
        for slot in self.ending() {
            found(slot, value.clone());
        }
    }
}

/// The text between quotes; one that was cut within an escape, or is wrong, as it stands.
fn unescape(raw: &[u8]) -> String {
    let plain = String::from_utf8_lossy(raw);
    if !raw.contains(&b'\\') {
        return plain.into_owned();
    }
    serde_json::from_str(&format!("\"{plain}\"")).unwrap_or_else(|_| plain.into_owned())
}

fn bare_value(token: &[u8]) -> Scalar {
    // Up to 2^53 every whole number is exact, and no count of tokens comes near.
    const MOST: u64 = 1 << 53;
    let text = std::str::from_utf8(token).unwrap_or_default();
    match (text, text.parse::<u64>(), text.parse::<f64>()) {
        ("true", ..) => Scalar::True,
        (_, Ok(number), _) => Scalar::Number(number.min(MOST)),
        (_, _, Ok(number)) if number >= 0.0 && number.fract() == 0.0 => {
            Scalar::Number((number as u64).min(MOST))
        }
        _ => Scalar::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Pattern<char>] = &[
        Pattern { path: &["a"], slot: 'a' },
        Pattern { path: &["b", "c"], slot: 'c' },
        Pattern { path: &["l", "*", "n"], slot: 'n' },
        Pattern { path: &["l", "*", "*"], slot: 's' },
    ];

    fn scan(text: &str, step: usize) -> (Vec<(char, Scalar)>, bool) {
        let (mut scanner, mut all) = (Scanner::new(TABLE), Vec::new());
        for piece in text.as_bytes().chunks(step) {
            scanner.feed(piece, &mut |slot, value| all.push((slot, value)));
        }
        (all, scanner.ended())
    }

    #[test]
    fn finds_what_the_patterns_name_and_nothing_else() {
        let text = r#" {"x":{"a":1,"c":[{"a":2}]}, "\u0061":"t\"\u00e9\n", "b":{"c":12.0,"d":{"c":9}},
            "l":[{"n":1},{"n":-2,"m":3},[4,"five"],true], "a":1e3, "c":7, "a":null}"#;
        let expected = vec![
            ('a', Scalar::Text("t\"é\n".to_owned())),
            ('c', Scalar::Number(12)),
            ('n', Scalar::Number(1)),
            ('n', Scalar::Other),
            ('s', Scalar::Number(4)),
            ('s', Scalar::Text("five".to_owned())),
            ('a', Scalar::Number(1000)),
            ('a', Scalar::Other),
        ];
        for step in [1, 2, 3, 7, 1000] {
            assert_eq!(scan(text, step), (expected.clone(), true), "step {step}");
        }
    }

    #[test]
    fn memory_stays_flat() {
        let mut scanner = Scanner::new(TABLE);
        let mut all = Vec::new();
        scanner.feed(b"{\"a\":\"", &mut |slot, value| all.push((slot, value)));
        for _ in 0..1000 {
            scanner.feed(&[b'x'; 4096], &mut |slot, value| all.push((slot, value)));
        }
        scanner.feed(b"\",\"", &mut |slot, value| all.push((slot, value)));
        for _ in 0..1000 {
            scanner.feed(&[b'k'; 4096], &mut |slot, value| all.push((slot, value)));
        }
        scanner.feed(b"\":1,\"b\":", &mut |slot, value| all.push((slot, value)));
        for _ in 0..1000 {
            scanner.feed(&[b'['; 4096], &mut |slot, value| all.push((slot, value)));
        }
        assert!(scanner.token.capacity() <= 2 * MAX_TEXT, "{}", scanner.token.capacity());
        assert_eq!(all, [('a', Scalar::Text("x".repeat(MAX_TEXT)))]);
    }

    #[test]
    fn what_is_not_json_is_left_alone() {
        for text in ["", "hello", "\"a\"", "]", "}{", "{\"b\":[}", "{1:2}", "[DONE]", "<html>{\"a\":1}"] {
            let (found, _) = scan(text, 1);
            assert_eq!(found, [], "{text}");
        }
    }
}
