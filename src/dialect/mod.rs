//! What the five dialects say, and no more: which calls there are (`route`), what a request may hold
//! (`request`), what an answer cost (`usage`), and how each says no (`answer`). Pure: bytes in, bytes out.
//! A request is parsed, checked against an allow list and written anew; nothing that was not understood
//! goes on.

pub mod answer;
mod anthropic;
mod chat;
mod figures;
mod gemini;
mod json;
mod ollama;
pub mod request;
mod responses;
pub mod route;
mod scan;
mod scrub;
pub mod usage;
