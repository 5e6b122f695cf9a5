//! An entry as an event of OCSF 1.3: class API Activity (6003), category Application Activity.
//!
//! `unmapped` has the whole canonical entry, so nothing is lost, and `metadata.uid` with `index` leads back to the log.

use chrono::DateTime;
use serde_json::{Map, Value, json};

use crate::trail::error::TrailError;

const VERSION: &str = "1.3.0";
const CATEGORY: u64 = 6;
const CLASS: u64 = 6003;

/// Create 1, Read 2, Update 3, Delete 4, Other 99.
fn activity(action: &str) -> (u64, &'static str) {
    match action.rsplit('.').next().unwrap_or_default() {
        "create" | "submit" | "register" | "approve" | "start" => (1, "Create"),
        "read" | "list" | "show" | "export" => (2, "Read"),
        "state" | "update" | "fetch" | "fetched" | "merge" | "end" | "rotate" | "cancel" => (3, "Update"),
        "delete" | "remove" | "removed" | "revoke" => (4, "Delete"),
        _ => (99, "Other"),
    }
}

/// Success 1, Failure 2.
fn status(outcome: &str) -> (u64, &'static str, u64, &'static str) {
    match outcome {
        "done" => (1, "Success", 1, "Informational"),
        "refused" => (2, "Failure", 3, "Medium"),
        _ => (2, "Failure", 2, "Low"),
    }
}

/// One event.
///
/// # Errors
/// [`TrailError::Malformed`] if the entry has no time.
pub fn event(index: u64, entry: &Value, version: &str) -> Result<Value, TrailError> {
    let text = |name: &str| entry[name].as_str().unwrap_or_default();
    let at = DateTime::parse_from_rfc3339(text("at"))
        .map_err(|error| TrailError::malformed("entry", format!("its time: {error}")))?;
    let (activity_id, activity_name) = activity(text("action"));
    let (status_id, status, severity_id, severity) = status(text("outcome"));
    let (kind, uid) = text("object").split_once(':').unwrap_or((text("object"), ""));
    let mut user =
        Map::from_iter([("type".to_owned(), json!(text("actor_kind"))), ("type_id".to_owned(), json!(99))]);
    user.insert("name".to_owned(), json!(text("actor_kind")));
    if let Some(id) = entry["actor_id"].as_str() {
        user.insert("uid".to_owned(), json!(id));
    }
    let mut metadata = json!({
        "version": VERSION,
        "product": { "name": "Kage Bunshin", "vendor_name": "Kage Bunshin", "version": version },
        "uid": text("id"),
        "sequence": index,
        "log_name": "audit",
    });
    let mut api = json!({ "operation": text("action") });
    if let Some(request) = entry["request_id"].as_str() {
        api["request"] = json!({ "uid": request });
        metadata["correlation_uid"] = json!(request);
    }
    let http = entry["route"].as_str().and_then(|route| route.split_once(' ')).map(|(method, path)| {
        let mut http = json!({ "http_method": method, "url": { "path": path } });
        if let Some(request) = entry["request_id"].as_str() {
            http["uid"] = json!(request);
        }
        http
    });
    // Required by the class; what has no address says where it came from by its role.
    let source = match entry["address"].as_str() {
        Some(address) => json!({ "ip": address }),
        None => json!({ "name": text("actor_kind") }),
    };
    let mut event = json!({
        "category_uid": CATEGORY,
        "category_name": "Application Activity",
        "class_uid": CLASS,
        "class_name": "API Activity",
        "activity_id": activity_id,
        "activity_name": activity_name,
        "type_uid": CLASS * 100 + activity_id,
        "type_name": format!("API Activity: {activity_name}"),
        "time": at.timestamp_millis(),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "actor": { "user": user },
        "api": api,
        "src_endpoint": source,
        "resources": [{ "type": kind, "uid": uid }],
        "metadata": metadata,
        "unmapped": { "index": index, "entry": entry },
    });
    if let Some(http) = http {
        event["http_request"] = http;
    }
    Ok(event)
}
