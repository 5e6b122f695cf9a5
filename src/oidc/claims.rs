//! What a verified document of claims says.

use serde_json::Value;

/// Values of a claim that are looked at.
const MOST_VALUES: usize = 1000;

/// The values of a claim, by name or by JSON pointer: a string, or those of a list. `None` if it is not there. An e-mail
/// address counts only if the provider says that it has been verified.
pub(super) fn values(claims: &Value, claim: &str) -> Option<Vec<String>> {
    let found = if claim.starts_with('/') { claims.pointer(claim) } else { claims.get(claim) }?;
    if claim == "email" && claims.get("email_verified") != Some(&Value::Bool(true)) {
        return Some(Vec::new());
    }
    let texts = match found {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => {
            items.iter().take(MOST_VALUES).filter_map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    Some(texts)
}

/// What the provider calls the person.
pub(super) fn name(claims: &Value) -> Option<&str> {
    ["preferred_username", "name", "email"]
        .into_iter()
        .find_map(|claim| claims.get(claim).and_then(Value::as_str).filter(|name| !name.trim().is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_found_where_they_are_said_to_be() {
        let claims = json!({
            "groups": ["a", 1, null, ["b"], "c"], "role": "x", "realm_access": { "roles": ["r"] }, "n": 5,
            "https://a/b": ["u"], "email": "a@b.example",
        });
        let of = |claim| values(&claims, claim);
        assert_eq!(of("groups"), Some(vec!["a".to_owned(), "c".to_owned()]));
        assert_eq!(of("role"), Some(vec!["x".to_owned()]));
        assert_eq!(of("/realm_access/roles"), Some(vec!["r".to_owned()]));
        assert_eq!(of("https://a/b"), Some(vec!["u".to_owned()]));
        assert_eq!((of("n"), of("none"), of("/none/at")), (Some(vec![]), None, None));
        assert_eq!(of("email"), Some(vec![]), "nobody has verified it");
        for said in [json!("true"), json!(1), json!(false)] {
            let claims = json!({ "email": "a@b.example", "email_verified": said });
            assert_eq!(values(&claims, "email"), Some(vec![]), "{said}");
        }
        let claims = json!({ "email": "a@b.example", "email_verified": true });
        assert_eq!(
            (values(&claims, "email").map(|v| v.len()), name(&claims)),
            (Some(1), Some("a@b.example"))
        );
    }
}
