//! What the five dialects say, and no more: which calls there are (`route`), what a request may hold
//! (`request`), what an answer cost (`usage`), and how each says no (`answer`). Pure: bytes in, bytes out.
//! A request is parsed, checked against an allow list and written anew; nothing that was not understood
//! goes on.

pub mod answer;
pub mod json;
pub mod route;
