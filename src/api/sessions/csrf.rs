//! A browser sends a session's cookie whoever's page asks it to. So a write shows two things more: that the page is ours
//! (`Origin`, or `Sec-Fetch-Site`), and a token that only a page of ours can have read.

use axum::extract::Request;
use axum::http::{HeaderMap, Method, header};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use crate::api::auth::Caller;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;

pub(super) const HEADER: &str = "x-csrf-token";

/// # Errors
/// 403. A key needs none of this: no browser sends it of its own accord.
pub(in crate::api) fn check(state: &ApiState, caller: &Caller, request: &Request) -> ApiResult<()> {
    let (Some(signed_in), Some(sign_in)) = (&caller.signed_in, &state.sign_in) else { return Ok(()) };
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let headers = request.headers();
    if !is_ours(headers, &sign_in.config.public_url.origin().ascii_serialization()) {
        return Err(ApiError::csrf(
            "a write of a session comes from a page of this server, and its browser says so",
        ));
    }
    let shown = single(headers, HEADER).unwrap_or_default();
    let expected = signed_in.csrf.expose_secret();
    if !bool::from(shown.as_bytes().ct_eq(expected.as_bytes())) {
        return Err(ApiError::csrf(
            "a write of a session shows its token (GET /api/v1/session) in X-CSRF-Token",
        ));
    }
    Ok(())
}

/// What does not say where it comes from is not ours.
fn is_ours(headers: &HeaderMap, own: &str) -> bool {
    let origin = headers.contains_key(header::ORIGIN).then(|| single(headers, "origin") == Some(own));
    let site = headers
        .contains_key("sec-fetch-site")
        .then(|| single(headers, "sec-fetch-site") == Some("same-origin"));
    match (origin, site) {
        (None, None) => false,
        (origin, site) => origin.unwrap_or(true) && site.unwrap_or(true),
    }
}

/// `None` where there is none, or more than one.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let value = all.next()?.to_str().ok()?;
    if all.next().is_some() { None } else { Some(value) }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn whose_page_it_is() {
        let ours = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            is_ours(&headers, "https://kage.example")
        };
        let own = ("origin", "https://kage.example");
        assert!(ours(&[own]) && ours(&[("sec-fetch-site", "same-origin")]));
        assert!(ours(&[own, ("sec-fetch-site", "same-origin")]));
        for other in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "https://kage.example.evil")],
            &[("origin", "http://kage.example")],
            &[("origin", "https://KAGE.example")],
            &[own, own],
            &[own, ("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")],
        ] {
            assert!(!ours(other), "{other:?}");
        }
    }
}
