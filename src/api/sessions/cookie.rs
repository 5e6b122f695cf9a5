//! Two cookies: one of a session, one of a sign-in that has begun. Over TLS their names begin with `__Host-`: no other host
//! and no plain HTTP can have set them.

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use secrecy::ExposeSecret;

use crate::api::sessions::SignIn;
use crate::api::state::ApiState;
use crate::domain::session::CookieSecret;

#[derive(Debug, Clone, Copy)]
pub(super) enum Cookie {
    Session,
    SignIn,
}

impl Cookie {
    const fn name(self, secure: bool) -> &'static str {
        match (self, secure) {
            (Self::Session, true) => "__Host-kage-session",
            (Self::Session, false) => "kage-session",
            (Self::SignIn, true) => "__Host-kage-sign-in",
            (Self::SignIn, false) => "kage-sign-in",
        }
    }
}

/// What a request shows. `None` where there is none, or more than one: then one of them is somebody else's.
pub(super) fn read(sign_in: &SignIn, headers: &HeaderMap, cookie: Cookie) -> Option<CookieSecret> {
    let name = cookie.name(sign_in.config.is_secure());
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(given, _)| *given == name)
        .map(|(_, value)| value);
    let value = found.next()?;
    if found.next().is_some() { None } else { CookieSecret::parse(value) }
}

/// Whether a request shows one at all.
pub(super) fn is_shown(sign_in: &SignIn, headers: &HeaderMap, cookie: Cookie) -> bool {
    let name = cookie.name(sign_in.config.is_secure());
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .any(|pair| pair.trim().split('=').next() == Some(name))
}

/// Sets one, for so many seconds.
pub(super) fn set(
    sign_in: &SignIn,
    response: &mut Response,
    cookie: Cookie,
    secret: &CookieSecret,
    secs: u32,
) {
    append(sign_in, response, cookie, secret.shown().expose_secret(), secs);
}

/// Takes one back.
pub(super) fn clear(sign_in: &SignIn, response: &mut Response, cookie: Cookie) {
    append(sign_in, response, cookie, "", 0);
}

/// Takes a session's cookie back that is of no use any more.
pub(in crate::api) fn forget(state: &ApiState, response: &mut Response) {
    if let Some(sign_in) = &state.sign_in {
        clear(sign_in, response, Cookie::Session);
    }
}

/// Lax: the provider's answer comes from its pages, and must show the cookie of its sign-in.
fn append(sign_in: &SignIn, response: &mut Response, cookie: Cookie, value: &str, secs: u32) {
    let secure = sign_in.config.is_secure();
    let name = cookie.name(secure);
    let tls = if secure { "; Secure" } else { "" };
    let text = format!("{name}={value}; Path=/; Max-Age={secs}; HttpOnly; SameSite=Lax{tls}");
    if let Ok(mut value) = HeaderValue::from_str(&text) {
        value.set_sensitive(true);
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}
