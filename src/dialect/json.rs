//! JSON from a client: each key once, bounded in size, depth and number of values, so that what was checked is
//! what any provider's parser reads.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::dialect::answer::{Refusal, RefusalKind};

/// Bytes of one request.
pub const MAX_BODY: usize = 32 << 20;
/// Objects and arrays within one another.
const MAX_DEPTH: usize = 64;
/// Values of one request: each costs memory, whatever its size.
const MAX_VALUES: usize = 400_000;

/// Parses an object.
///
/// # Errors
/// `TooLarge` over the bounds above; `BadRequest` for what is no JSON object, or says a key twice.
pub(crate) fn parse(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if body.len() > MAX_BODY {
        return Err(Refusal::new(RefusalKind::TooLarge, format!("a request has at most {MAX_BODY} bytes")));
    }
    let mut left = MAX_VALUES;
    let mut overflow = None;
    let mut parser = serde_json::Deserializer::from_slice(body);
    let seed = Strict { depth: 0, left: &mut left, overflow: &mut overflow };
    let value = seed.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    match (value, overflow) {
        (_, Some(what)) => Err(Refusal::new(RefusalKind::TooLarge, what)),
        (Ok(Value::Object(map)), None) => Ok(map),
        (Ok(_), None) => Err(Refusal::new(RefusalKind::BadRequest, "the request is not a JSON object")),
        (Err(error), None) => {
            Err(Refusal::new(RefusalKind::BadRequest, format!("the request is not valid JSON: {error}")))
        }
    }
}

struct Strict<'a> {
    depth: usize,
    left: &'a mut usize,
    overflow: &'a mut Option<&'static str>,
}

impl Strict<'_> {
    fn inner(&mut self) -> Strict<'_> {
        Strict { depth: self.depth + 1, left: self.left, overflow: self.overflow }
    }

    fn too_much<E: Error>(self, what: &'static str) -> E {
        *self.overflow = Some(what);
        E::custom(what)
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Value, D::Error> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(self.too_much("the request holds too many values"));
        };
        *self.left = left;
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number without a value"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        if self.depth >= MAX_DEPTH {
            return Err(self.too_much("the request is nested too deep"));
        }
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.inner())? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        if self.depth >= MAX_DEPTH {
            return Err(self.too_much("the request is nested too deep"));
        }
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self.inner())?;
            if map.contains_key(&key) {
                let shown: String = key.chars().take(60).flat_map(char::escape_debug).collect();
                return Err(A::Error::custom(format_args!("the key \"{shown}\" is said twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(body: &str) -> RefusalKind {
        parse(body.as_bytes()).expect_err(body).kind
    }

    #[test]
    fn each_key_once_however_it_is_written() {
        for twice in [
            r#"{"a":1,"a":2}"#,
            r#"{"tools":[],"\u0074ools":[{"type":"web_search"}]}"#,
            r#"{"x":[{"y":{"k":1,"j":2,"k":1}}]}"#,
        ] {
            let refusal = parse(twice.as_bytes()).expect_err(twice);
            assert_eq!(refusal.kind, RefusalKind::BadRequest);
            assert!(refusal.message.contains("said twice"), "{}", refusal.message);
        }
    }

    #[test]
    fn only_one_whole_object_is_a_request() {
        for bad in
            ["", "{", "[]", "1", "null", "\"x\"", "{} {}", "{}x", "{\"a\":NaN}", "{\"a\":1e999}", "{a:1}"]
        {
            assert_eq!(kind(bad), RefusalKind::BadRequest, "{bad}");
        }
        assert!(parse(b"\xff{}").is_err() && parse(b"{\"a\":\"\xc3\"}").is_err(), "not UTF-8");
        assert!(parse(b"{\"a\":\"\\ud800\"}").is_err(), "half a character");
        assert_eq!(
            parse(b" {\"b\":1,\"a\":[2.50,-3,true,null]}\n").map(|m| Value::Object(m).to_string()),
            Ok(r#"{"b":1,"a":[2.5,-3,true,null]}"#.to_owned())
        );
    }

    #[test]
    fn depth_size_and_number_are_bounded() {
        let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert_eq!(kind(&nested(MAX_DEPTH)), RefusalKind::TooLarge);
        assert_eq!(kind(&nested(1_000_000)), RefusalKind::TooLarge);
        let many = |n: usize| format!("{{\"a\":[{}0]}}", "0,".repeat(n));
        assert!(parse(many(1000).as_bytes()).is_ok());
        assert_eq!(kind(&many(MAX_VALUES)), RefusalKind::TooLarge);
        assert_eq!(kind(&" ".repeat(MAX_BODY + 1)), RefusalKind::TooLarge);
    }
}
