//! What was said in a call to a model, for its audit entry.

use serde_json::{Value, json};

/// What was said in a call, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallContent {
    /// None: it is no text.
    pub request: Option<Said>,
    /// None: none came, or see `answer_left_out`.
    pub answer: Option<Said>,
    /// Why an answer that came is not there.
    pub answer_left_out: Option<&'static str>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Said {
    pub text: String,
    /// There is more of it.
    pub is_truncated: bool,
}

impl std::fmt::Debug for Said {
    /// It belongs into no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Said").field("bytes", &self.text.len()).finish_non_exhaustive()
    }
}

impl CallContent {
    /// For its entry in the audit trail.
    pub(super) fn details(&self) -> Value {
        let text = |said: &Option<Said>| said.as_ref().map(|said| said.text.clone());
        let is_truncated = |said: &Option<Said>| said.as_ref().is_some_and(|said| said.is_truncated);
        let mut details = json!({
            "request": text(&self.request),
            "request_truncated": is_truncated(&self.request),
            "answer": text(&self.answer),
            "answer_truncated": is_truncated(&self.answer),
        });
        if let Some(why) = self.answer_left_out {
            details["answer_left_out"] = json!(why);
        }
        details
    }
}
