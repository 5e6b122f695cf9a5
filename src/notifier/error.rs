//! Why the notifier does not start.

#[derive(Debug, thiserror::Error)]
pub enum NotifierError {
    #[error("webhook {hook}: {problem}")]
    Hook { hook: String, problem: String },
}
