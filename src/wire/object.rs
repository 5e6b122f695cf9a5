//! Objects of JSON, and nothing else. serde takes an array for a struct too, field by field in their order: a body of which
//! no document says anything.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A `T` that was written as an object.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// # Errors
/// If it is neither an object nor absent, or the object is no `T`.
pub fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// # Errors
/// If it is no list, or one of it is no object or no `T`.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Vec::<Object<T>>::deserialize(deserializer)?.into_iter().map(|object| object.0).collect())
}

#[cfg(test)]
mod tests {
    use super::Object;
    use crate::wire::key::NewKey;
    use crate::wire::task::{Budget, NewTask};

    #[test]
    fn fields_go_by_name_and_never_by_place() {
        let by_place = r#"["a", ["tasks:read"], null, null, null, null, null, null]"#;
        assert!(serde_json::from_str::<NewKey>(by_place).is_ok(), "serde takes it");
        assert!(serde_json::from_str::<Object<NewKey>>(by_place).is_err());
        let key = serde_json::from_str::<Object<NewKey>>(r#"{"name": "a", "scopes": ["tasks:read"]}"#);
        assert_eq!(key.expect("a key").0.name, "a");

        let task = |assignment: &str, budget: &str| {
            let text = format!(
                r#"{{"description": "0123456789", "cli_assignments": [{assignment}], "budget": {budget}}}"#
            );
            serde_json::from_str::<Object<NewTask>>(&text).map(|task| task.0)
        };
        let object = r#"{"cli_name": "shell", "budget": {"tokens": 1}}"#;
        let task_of = task(object, r#"{"usd": 1}"#).expect("a task");
        assert_eq!(task_of.budget, Some(Budget { usd: Some(1.0), tokens: None }));
        assert!(task(object, "null").is_ok());
        assert!(task(r#"["shell", {}, 600, null, false, null, null, null]"#, "null").is_err());
        assert!(task(object, "[1, null]").is_err());
        assert!(task(r#"{"cli_name": "shell", "budget": [1, null]}"#, "null").is_err());
    }
}
