//! `/api/v1/tasks`.

pub(super) mod cancel;
mod check;
pub(super) mod get;
pub(super) mod list;
pub(super) mod progress;
mod queue;
mod quota;
pub(super) mod stats;
pub(super) mod submit;
