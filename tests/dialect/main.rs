//! The dialect room from outside: what real CLIs send passes, what leads outside does not, and an answer reads
//! the same however it is cut.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod attacks;
mod bounds;
mod corpus;
mod paths;
mod readings;
mod references;
mod requests;

use kage::dialect::answer::{Refusal, RefusalKind};
use kage::dialect::request::{Checked, OnServerTool, Rules, check};
use kage::dialect::route::Call;
use kage::domain::model::Dialect;
use serde_json::Value;

const GENERATE: Call = Call::Generate { stream_hint: None, model_in_path: None };
const COUNT: Call = Call::CountTokens { model_in_path: None };

fn strict() -> Rules {
    Rules {
        server_tools: Vec::new(),
        on_server_tool: OnServerTool::Remove,
        remote_references: false,
        max_output_tokens: 32_000,
        default_output_tokens: 8_192,
    }
}

fn call_of(dialect: Dialect) -> Call {
    if dialect == Dialect::Gemini {
        Call::Generate { stream_hint: Some(true), model_in_path: Some("gemini-2.5-pro".to_owned()) }
    } else {
        GENERATE
    }
}

fn try_check(dialect: Dialect, body: &Value, rules: &Rules) -> Result<Checked, Refusal> {
    check(dialect, &call_of(dialect), body.to_string().as_bytes(), rules)
}

#[track_caller]
fn checked(dialect: Dialect, body: &Value) -> Checked {
    try_check(dialect, body, &strict()).unwrap_or_else(|refusal| panic!("{refusal} in {body}"))
}

#[track_caller]
fn refused(dialect: Dialect, body: &Value) -> RefusalKind {
    match try_check(dialect, body, &strict()) {
        Err(refusal) => refusal.kind,
        Ok(checked) => panic!("{body} went through as {}", checked.body),
    }
}
