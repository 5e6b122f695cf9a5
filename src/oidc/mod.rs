//! We as an OpenID Connect relying party: authorization code flow with PKCE, at one provider that is found by discovery.
//!
//! ```text
//! client    HTTP: deadlines, bounded answers, no redirects, https
//! provider  what discovery said, and the keys that it signs with
//! party     sends a browser there, and finds out who comes back        claims   what a verified token says
//! ```

mod claims;
mod client;
pub mod error;
pub mod party;
mod provider;
