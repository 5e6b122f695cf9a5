//! What a submitted task must keep to.

use serde_json::Value;

use crate::api::problem::{ApiError, ApiResult};
use crate::domain::model_name::ModelName;
use crate::domain::name::Name;
use crate::domain::prompt;
use crate::domain::runtime;
use crate::wire::task::{Assignment, Budget, NewTask};

/// Most bytes of a description.
const DESCRIPTION_BYTES: usize = prompt::MAX_BYTES;
/// Most bytes of one assignment's context.
const CONTEXT_BYTES: usize = 64 << 10;
/// Most USD and tokens of a budget: far from where the sums overflow.
const BUDGET_USD: f64 = 1e6;
const BUDGET_TOKENS: u64 = 1_000_000_000_000;

/// What can be told from the request alone.
pub(super) fn request(request: &NewTask) -> ApiResult<()> {
    let refuse = |detail: String| Err(ApiError::invalid(detail));
    let characters = request.description.chars().count();
    if request.description.trim().chars().count() < 10 {
        return refuse(format!("description: at least 10 characters, this has {characters}"));
    }
    if request.description.len() > DESCRIPTION_BYTES {
        let bytes = request.description.len();
        return refuse(format!("description: at most {DESCRIPTION_BYTES} bytes, this has {bytes}"));
    }
    if !(1..=4).contains(&request.cli_assignments.len()) {
        return refuse(format!("cli_assignments: 1 to 4, these are {}", request.cli_assignments.len()));
    }
    if request.max_retries > 5 {
        return refuse(format!("max_retries: 0 to 5, this is {}", request.max_retries));
    }
    if !(1..=60).contains(&request.retry_delay) {
        return refuse(format!("retry_delay: 1 to 60 seconds, this is {}", request.retry_delay));
    }
    let texts = [&request.created_by, &request.base_revision, &request.repository];
    let names = request.cli_assignments.iter().map(|assignment| &assignment.cli_name);
    let mut texts = texts.into_iter().flatten().chain(names).chain([&request.description]);
    if texts.any(|text| text.contains('\0')) {
        return refuse("a text holds the character NUL, which cannot be stored".to_owned());
    }
    if request.created_by.as_ref().is_some_and(|by| by.len() > 256) {
        return refuse("created_by: at most 256 bytes".to_owned());
    }
    budget("budget", request.budget)?;
    for (index, assignment) in request.cli_assignments.iter().enumerate() {
        budget(&format!("cli_assignments[{index}].budget"), assignment.budget)?;
        if let Some(Err(problem)) = assignment.model.as_ref().map(|model| model.parse::<ModelName>()) {
            return refuse(format!("cli_assignments[{index}].model: {problem}"));
        }
        if !(60..=3600).contains(&assignment.timeout) {
            return refuse(format!(
                "cli_assignments[{index}].timeout: 60 to 3600 seconds, this is {}",
                assignment.timeout
            ));
        }
        if assignment.idle_timeout.is_some_and(|secs| !(1..=3600).contains(&secs)) {
            return refuse(format!("cli_assignments[{index}].idle_timeout: 1 to 3600 seconds"));
        }
        let context = serde_json::to_string(&assignment.context).expect("a JSON object");
        if context.len() > CONTEXT_BYTES {
            return refuse(format!(
                "cli_assignments[{index}].context: at most {CONTEXT_BYTES} bytes as JSON"
            ));
        }
        if assignment.context.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)) {
            return refuse(format!(
                "cli_assignments[{index}].context holds the character NUL, which cannot be stored"
            ));
        }
    }
    Ok(())
}

/// Whether a text in a JSON value holds the character NUL. As deep as the parser lets it be.
fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn budget(field: &str, budget: Option<Budget>) -> ApiResult<()> {
    let Some(budget) = budget else { return Ok(()) };
    if budget.usd.is_none() && budget.tokens.is_none() {
        return Err(ApiError::invalid(format!("{field}: it needs usd or tokens")));
    }
    if budget.usd.is_some_and(|usd| !(usd > 0.0 && usd <= BUDGET_USD)) {
        return Err(ApiError::invalid(format!("{field}.usd: more than 0, at most {BUDGET_USD}")));
    }
    if budget.tokens.is_some_and(|tokens| !(1..=BUDGET_TOKENS).contains(&tokens)) {
        return Err(ApiError::invalid(format!("{field}.tokens: 1 to {BUDGET_TOKENS}")));
    }
    Ok(())
}

/// What can only be told with the image's manifest at hand.
pub(super) fn assignment(index: usize, request: &NewTask, manifest: &Value) -> ApiResult<()> {
    let Some(assignment) = request.cli_assignments.get(index) else { return Ok(()) };
    within_bound(index, request, manifest)?;
    let asks_model = manifest.get("model").is_some_and(|model| !model.is_null());
    if !asks_model {
        let given = [("model", assignment.model.is_some()), ("budget", assignment.budget.is_some())];
        if let Some((field, _)) = given.into_iter().find(|(_, given)| *given) {
            let cli = &assignment.cli_name;
            let detail = format!("cli_assignments[{index}].{field}: the CLI {cli:?} asks no model");
            return Err(ApiError::invalid(detail));
        }
        return Ok(());
    }
    let context = Value::Object(assignment.context.clone());
    let length = prompt::compose(&request.description, &context).len();
    if length > prompt::MAX_BYTES {
        let most = prompt::MAX_BYTES;
        let detail = format!(
            "cli_assignments[{index}].context: with the description it makes a prompt of {length} bytes; at most {most}"
        );
        return Err(ApiError::invalid(detail));
    }
    Ok(())
}

/// Whether a runner that is there may give the run what it asks for. `offered`: each runner's default and all that it
/// allows. Where no runner is there, the one that comes decides.
pub(super) fn runtime(
    index: usize,
    assignment: &Assignment,
    manifest: &Value,
    offered: &[(String, Vec<String>)],
) -> ApiResult<()> {
    let asked = assignment.runtime.as_ref().map(Name::as_str);
    let demanded = manifest.get("runtime").and_then(Value::as_str);
    let mut refused = None;
    for (default, allowed) in offered {
        match runtime::choose(asked, demanded, default, &allowed.iter().cloned().collect()) {
            Ok(_) => return Ok(()),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) => Err(ApiError::invalid(format!("cli_assignments[{index}].runtime: {error}"))),
        None => Ok(()),
    }
}

/// Some CLIs take no long prompt: their manifests say how long one may be.
fn within_bound(index: usize, request: &NewTask, manifest: &Value) -> ApiResult<()> {
    let (Some(assignment), Some(most)) =
        (request.cli_assignments.get(index), manifest.get("max_prompt_bytes").and_then(Value::as_u64))
    else {
        return Ok(());
    };
    let length = if manifest.get("model").is_some_and(|model| !model.is_null()) {
        prompt::compose(&request.description, &Value::Object(assignment.context.clone())).len()
    } else {
        request.description.len()
    };
    if length as u64 > most {
        let detail = format!(
            "cli_assignments[{index}]: description and context make a prompt of {length} bytes; the CLI {:?} takes {most}",
            assignment.cli_name
        );
        return Err(ApiError::invalid(detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_prompt_longer_than_its_cli_takes_is_refused() {
        let request = |length: usize, context: Value| -> NewTask {
            let body = json!({ "description": "x".repeat(length),
                               "cli_assignments": [{ "cli_name": "short", "context": context }] });
            serde_json::from_value(body).expect("a task")
        };
        let bounded = json!({ "model": { "dialect": "chat", "default": "m" }, "max_prompt_bytes": 2000 });
        let judge = |request: &NewTask, manifest: &Value| assignment(0, request, manifest).is_ok();
        assert!(judge(&request(2000, json!({})), &bounded));
        assert!(!judge(&request(2001, json!({})), &bounded));
        assert!(!judge(&request(2000, json!({ "key": "value" })), &bounded), "the context counts");
        assert!(judge(&request(2001, json!({})), &json!({ "model": bounded["model"] })), "no bound");
        let without_model = json!({ "max_prompt_bytes": 2000 });
        assert!(
            judge(&request(2000, json!({ "key": "value" })), &without_model),
            "it gets the description alone"
        );
        assert!(!judge(&request(2001, json!({})), &without_model));
    }
}
