//! Keeps what looks like a secret out of what is stored. Against accidents: who has a secret and wants to get it past this,
//! spells it otherwise.
//!
//! ```text
//! forms     how vendors' keys look      patterns  all that is looked for      stream  a stream in pieces      known  ours, kept up to date
//! ```

pub mod forms;
pub mod known;
pub mod patterns;
pub mod stream;
