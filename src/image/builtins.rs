//! The jq functions that a manifest's filter may use.
//!
//! The filter is the operator's, the lines are hostile. So nothing here reaches outside (no `env`, `input`, files,
//! logs, `halt`), and `fromjson` is our own: jaq's reader recurses as deep as the text does, and a line of a
//! million brackets would end the runner's process.

use jaq_core::Native;
use jaq_core::data::JustLut;
use jaq_core::load::parse::Def;
use jaq_core::native::{Filter, bome, run, v};
use jaq_core::{DataT, Error, RunPtr};
use jaq_json::{Map, Val};
use jaq_std::ValT as _;
use serde_json::Value;

/// What a filter runs with: its own table, nothing global.
pub type Data = JustLut<Val>;

/// Natively written functions that are left out.
const WITHHELD: [&str; 5] = ["env", "halt", "debug_empty", "stderr_empty", "fromjson"];

/// Functions written in jq that are left out, because they need one of those.
const WITHHELD_DEFINITIONS: [&str; 4] = ["debug", "stderr", "halt", "halt_error"];

pub fn definitions() -> impl Iterator<Item = Def<&'static str>> {
    jaq_core::defs()
        .chain(jaq_std::defs())
        .chain(jaq_json::defs())
        .filter(|def| !WITHHELD_DEFINITIONS.contains(&def.name))
}

pub fn functions() -> impl Iterator<Item = Filter<Native<Data>>> {
    jaq_core::funs()
        .chain(jaq_std::funs())
        .chain(jaq_json::funs())
        .filter(|(name, _, _)| !WITHHELD.contains(name))
        .chain(own().into_vec().into_iter().map(run))
}

/// A list, as in jaq's own crates: the compiler finds the types only so.
fn own<D: for<'a> DataT<V<'a> = Val>>() -> Box<[Filter<RunPtr<D>>]> {
    Box::new([("fromjson", v(0), |cv| bome(from_json(&cv.1)))])
}

/// One JSON value, nested at most 128 deep (serde_json's limit).
fn from_json(text: &Val) -> Result<Val, Error<Val>> {
    let bytes = text.try_as_utf8_bytes()?;
    let value =
        serde_json::from_slice(bytes).map_err(|error| Error::str(format_args!("not JSON: {error}")))?;
    Ok(to_val(value))
}

fn to_val(value: Value) -> Val {
    match value {
        Value::Null => Val::Null,
        Value::Bool(is) => Val::from(is),
        Value::Number(number) => {
            match (number.as_i64().and_then(|n| isize::try_from(n).ok()), number.as_f64()) {
                (Some(integer), _) => Val::from(integer),
                (None, float) => Val::from(float.unwrap_or(f64::NAN)),
            }
        }
        Value::String(text) => Val::from(text),
        Value::Array(items) => items.into_iter().map(to_val).collect(),
        Value::Object(fields) => {
            Val::obj(fields.into_iter().map(|(key, value)| (Val::from(key), to_val(value))).collect::<Map>())
        }
    }
}
