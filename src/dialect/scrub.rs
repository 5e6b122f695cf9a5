//! The tools with which every dialect's check takes a request apart: keep what is listed, name what went, say
//! no to what leads outside.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::dialect::answer::{Refusal, RefusalKind};
use crate::domain::model::SERVER_TOOL_KINDS;

/// How many removals are told; a client chooses the names, and could choose many.
const MAX_TOLD: usize = 40;
const MAX_NAME: usize = 60;

/// A cap on a number of tokens that a client asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutputCap {
    pub most: u64,
    /// Where the client asks for none.
    pub default: u64,
}

/// What a checked request will do.
pub(crate) struct Outline {
    pub stream: bool,
    /// Tokens.
    pub output_limit: u64,
}

/// What a check may let through, and what it has seen and taken away so far.
pub(crate) struct Scrub<'a> {
    /// Kinds of server tools, or exact type names, that may pass.
    pub server_tools: &'a [String],
    pub refuse_tools: bool,
    pub remote_references: bool,
    pub output: OutputCap,
    /// What was taken away, in words.
    pub removed: Vec<String>,
    /// Images within the request, or referred to.
    pub images: u64,
    /// Bytes of the JSON text that are images, in base64.
    pub image_bytes: u64,
    /// Documents, sound and the like within the request.
    pub documents: u64,
    /// Bytes of the JSON text that are these, in base64.
    pub document_bytes: u64,
    /// Kinds of tools that the provider may run for this request.
    pub allowed_tools: BTreeSet<&'static str>,
    /// Documents that the provider fetches: of unknown length.
    pub remote_documents: u64,
}

impl<'a> Scrub<'a> {
    pub(crate) fn new(
        server_tools: &'a [String],
        refuse_tools: bool,
        remote_references: bool,
        output: OutputCap,
    ) -> Self {
        Self {
            server_tools,
            refuse_tools,
            remote_references,
            output,
            removed: Vec::new(),
            images: 0,
            image_bytes: 0,
            documents: 0,
            document_bytes: 0,
            allowed_tools: BTreeSet::new(),
            remote_documents: 0,
        }
    }

    /// Takes a note of something that was taken away, once.
    pub(crate) fn note(&mut self, what: String) {
        if self.removed.len() < MAX_TOLD && !self.removed.contains(&what) {
            self.removed.push(what);
        } else if self.removed.len() == MAX_TOLD {
            self.removed.push("and more".to_owned());
        }
    }

    /// Keeps only the `known` keys of an object at `place`.
    pub(crate) fn keep(&mut self, map: &mut Map<String, Value>, known: &[&str], place: &str) {
        map.retain(|key, _| {
            let keep = known.contains(&key.as_str());
            if !keep {
                self.note(if place.is_empty() { shown(key) } else { format!("{place}.{}", shown(key)) });
            }
            keep
        });
        // A cache that is kept longer costs more than what is reserved for it.
        if let Some(Value::Object(cache)) = map.get_mut("cache_control")
            && cache.remove("ttl").is_some()
        {
            self.note("cache_control.ttl".to_owned());
        }
    }

    /// Takes a key away; a null is taken away without a word.
    pub(crate) fn drop_key(&mut self, map: &mut Map<String, Value>, key: &str) {
        if map.shift_remove(key).is_some_and(|value| !value.is_null()) {
            self.note(key.to_owned());
        }
    }

    /// Whether a tool that the provider runs may pass. `kind` is ours, `name` the provider's. One of no known kind never does.
    ///
    /// # Errors
    /// `ToolNotAllowed` where the rules say that such a request is refused.
    pub(crate) fn server_tool(&mut self, kind: &str, name: &str) -> Result<bool, Refusal> {
        let known = SERVER_TOOL_KINDS.iter().find(|known| **known == kind);
        if let Some(known) = known.filter(|known| self.server_tools.iter().any(|allowed| allowed == *known)) {
            self.allowed_tools.insert(known);
            return Ok(true);
        }
        let what = if kind == name { kind.to_owned() } else { format!("{kind} ({})", shown(name)) };
        if self.refuse_tools {
            return Err(Refusal::new(
                RefusalKind::ToolNotAllowed,
                format!("the tool {what} would run at the provider, which is not allowed here"),
            ));
        }
        self.note(format!("tool {what}"));
        Ok(false)
    }

    /// Something that the provider would look up by itself.
    ///
    /// # Errors
    /// `ReferenceNotAllowed` unless the rules allow such.
    pub(crate) fn reference(&mut self, what: &str) -> Result<(), Refusal> {
        if self.remote_references {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalKind::ReferenceNotAllowed,
            format!("{} refers to something outside the request, which is not allowed here", shown(what)),
        ))
    }

    /// A top-level key by which the provider looks something up; null is none.
    pub(crate) fn reference_key(&mut self, map: &mut Map<String, Value>, key: &str) -> Result<(), Refusal> {
        match map.get(key) {
            None => Ok(()),
            Some(Value::Null) => {
                map.shift_remove(key);
                Ok(())
            }
            Some(_) => self.reference(key),
        }
    }

    /// A picture or document given as a URL: within the request only as a base64 `data:` URL.
    pub(crate) fn data_url(&mut self, url: &Value, what: &str, image: bool) -> Result<(), Refusal> {
        let Some(url) = url.as_str() else {
            return Err(bad(format!("{what} is not text")));
        };
        let within = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
        match within {
            Some((mime, data)) if is_mime(mime) => {
                self.within(image && mime.starts_with("image/"), data);
                Ok(())
            }
            _ => {
                self.reference(what)?;
                self.outside(image);
                Ok(())
            }
        }
    }

    /// Counts data that is in the request itself.
    pub(crate) fn within(&mut self, image: bool, data: &str) {
        if image {
            self.images += 1;
            self.image_bytes += data.len() as u64;
        } else {
            self.documents += 1;
            self.document_bytes += data.len() as u64;
        }
    }

    /// Counts data that the provider fetches.
    pub(crate) fn outside(&mut self, image: bool) {
        if image {
            self.images += 1;
        } else {
            self.remote_documents += 1;
        }
    }

    /// Bounds the number of tokens under `key`; writes the default where there is none. Nought is none: to
    /// several providers it means without end.
    pub(crate) fn cap_output(&mut self, map: &mut Map<String, Value>, key: &str) -> Result<u64, Refusal> {
        let asked = match map.get(key) {
            None | Some(Value::Null) => None,
            Some(value) => Some(whole(value).ok_or_else(|| bad(format!("{key} is not a whole number")))?),
        };
        let asked = asked.filter(|asked| *asked > 0);
        let limit = asked.unwrap_or(self.output.default).min(self.output.most).max(1);
        if asked.is_some_and(|asked| asked > limit) {
            self.note(format!("{key} over {limit}"));
        }
        map.insert(key.to_owned(), limit.into());
        Ok(limit)
    }
}

/// A number of tokens: whole, not negative. Some clients write `4096.0`.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        // Up to 2^53 every whole number is exact.
        (number >= 0.0 && number.fract() == 0.0 && number <= 9_007_199_254_740_992.0).then_some(number as u64)
    })
}

pub(crate) fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::BadRequest, message)
}

/// A name that a client chose, fit for one line of a log.
pub(crate) fn shown(name: &str) -> String {
    let mut short: String = name.chars().take(MAX_NAME).flat_map(char::escape_debug).collect();
    if name.chars().nth(MAX_NAME).is_some() {
        short.push('…');
    }
    short
}

pub(crate) fn object<'v>(value: &'v mut Value, place: &str) -> Result<&'v mut Map<String, Value>, Refusal> {
    value.as_object_mut().ok_or_else(|| bad(format!("{place} is not an object")))
}

pub(crate) fn list<'v>(value: &'v mut Value, place: &str) -> Result<&'v mut Vec<Value>, Refusal> {
    value.as_array_mut().ok_or_else(|| bad(format!("{place} is not a list")))
}

/// The list under a key; none where the key is absent or null.
pub(crate) fn list_in<'v>(
    map: &'v mut Map<String, Value>,
    key: &str,
) -> Result<Option<&'v mut Vec<Value>>, Refusal> {
    match map.get_mut(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => list(value, key).map(Some),
    }
}

/// The word under a key, copied, so that the object can be changed meanwhile.
pub(crate) fn word(map: &Map<String, Value>, key: &str) -> Option<String> {
    map.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// A true or false under a key; absent and null are `absent`.
pub(crate) fn flag(map: &Map<String, Value>, key: &str, absent: bool) -> Result<bool, Refusal> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(absent),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(bad(format!("{key} is neither true nor false"))),
    }
}

/// A key that holds text, and no list of parts that would have to be looked at.
pub(crate) fn only_text(map: &Map<String, Value>, key: &str) -> Result<(), Refusal> {
    match map.get(key) {
        None | Some(Value::Null | Value::String(_)) => Ok(()),
        Some(_) => Err(bad(format!("{key} is not text"))),
    }
}

/// More than one answer costs more than one output limit.
pub(crate) fn one_answer(map: &Map<String, Value>, key: &str) -> Result<(), Refusal> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if whole(value) == Some(1) => Ok(()),
        Some(_) => Err(bad(format!("{key} may only be 1 here"))),
    }
}

/// Text that could be base64: nothing with a scheme, a path or a host in it.
pub(crate) fn is_base64(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_' | b'\n' | b'\r'))
}

fn is_mime(mime: &str) -> bool {
    mime.len() <= 100
        && mime
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'+' | b'.' | b'-' | b';' | b'=' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_kept_no_longer_than_it_is_paid_for() {
        let mut scrub = Scrub::new(&[], false, false, OutputCap { most: 1, default: 1 });
        let block = serde_json::json!({ "text": "x", "cache_control": { "type": "ephemeral", "ttl": "1h" } });
        let Value::Object(mut block) = block else { panic!("an object") };
        scrub.keep(&mut block, &["text", "cache_control"], "");
        assert_eq!(block["cache_control"], serde_json::json!({ "type": "ephemeral" }));
        assert_eq!(scrub.removed, ["cache_control.ttl"]);
    }
}
