//! Whether the gateway would let the CLI's requests through, and what it would take out of them.

use std::collections::BTreeSet;

use crate::dialect::request::{OnServerTool, Rules, check};
use crate::dialect::route::{Call, route};
use crate::domain::model::Dialect;
use crate::image::template::TOKEN;
use crate::kit::observed::{Observed, shortened};
use crate::kit::report::{Item, Need, counted};

/// The gateway's own rules, where the operator has set none.
const RULES: Rules = Rules {
    server_tools: Vec::new(),
    on_server_tool: OnServerTool::Remove,
    remote_references: false,
    max_output_tokens: 1 << 20,
    default_output_tokens: 1 << 16,
};

/// How many items there are.
pub const COUNT: usize = 3;

pub fn items(dialect: Dialect, observed: &Observed) -> Vec<Item> {
    let (mut refused, mut removed) = (BTreeSet::new(), BTreeSet::new());
    for request in &observed.requests {
        let what = format!("{} {}", request.method, request.path);
        let call = match route(dialect, &request.method, &request.path, request.query.as_deref()) {
            Ok(call) => call,
            Err(refusal) => {
                refused.insert(format!("{what}: {}", refusal.message));
                continue;
            }
        };
        if matches!(call, Call::Models | Call::Version | Call::Hello) {
            continue;
        }
        let body = request.json.as_ref().map(ToString::to_string).unwrap_or_default();
        match check(dialect, &call, body.as_bytes(), &RULES) {
            Ok(checked) => removed.extend(checked.removed),
            Err(refusal) => {
                refused.insert(format!("{what}: {}", refusal.message));
            }
        }
    }
    let words = |set: &BTreeSet<String>| shortened(&set.iter().cloned().collect::<Vec<_>>().join("; "));
    // A request that the scripted model does not know is one too: only of none nothing can be said.
    let item = |id, need, title, seen| match observed.requests.is_empty() {
        true => Item::not_measured(id, need, title, "no request came"),
        false => Item::new(id, need, title, seen),
    };
    vec![
        item(
            "gateway-accepts",
            Need::Must,
            "asks only what the gateway lets through",
            if refused.is_empty() {
                Ok(counted(observed.requests.len(), "request", "requests"))
            } else {
                Err(words(&refused))
            },
        ),
        item(
            "gateway-removes",
            Need::Note,
            "what the gateway takes out of its requests",
            Ok(if removed.is_empty() { "nothing".to_owned() } else { words(&removed) }),
        ),
        item("placeholder", Need::Must, "sends no credential but the placeholder", credentials(observed)),
    ]
}

/// What came in headers that carry credentials.
fn credentials(observed: &Observed) -> Result<String, String> {
    let mut foreign = BTreeSet::new();
    for (name, value) in observed.requests.iter().flat_map(|request| &request.headers) {
        let carries =
            ["authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie"];
        let sent = value.strip_prefix("Bearer ").unwrap_or(value);
        if carries.contains(&name.as_str()) && sent != TOKEN {
            foreign.insert(name.clone());
        }
    }
    if foreign.is_empty() {
        return Ok(String::new());
    }
    let names: Vec<_> = foreign.into_iter().collect();
    Err(format!("{} held something else; use {{{{token}}}} in the manifest", names.join(", ")))
}
