//! Where a person wants to go when it has signed in: a page of ours, and nothing that a browser could take for another
//! host's.

use url::Url;

/// Most bytes.
const MOST: usize = 1024;

/// The path, as it was given. `None`: it is not to be followed.
pub(super) fn check<'a>(given: &'a str, public_url: &Url) -> Option<&'a str> {
    // Browsers take a backslash for a slash, and leave tabs and line ends out.
    let plain = given.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let path = given.starts_with('/') && !given.starts_with("//");
    let joined = public_url.join(given).ok()?;
    let ours = joined.origin() == public_url.origin() && joined.path().starts_with('/');
    // Not back to where it begins, and what a path resolves to is no other path of hosts.
    let elsewhere = !joined.path().starts_with("//") && !joined.path().starts_with("/auth/");
    (plain && path && ours && elsewhere && given.len() <= MOST).then_some(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_host_is_followed() {
        let url = Url::parse("https://kage.example").expect("a URL");
        for good in ["/", "/tasks/1?a=b&c=//d#e", "/a/../b", "/%2F%2Fevil", "/@evil"] {
            assert_eq!(check(good, &url), Some(good));
        }
        for bad in [
            "",
            "//evil",
            "///evil",
            "/\\evil",
            "\\\\evil",
            "https://evil",
            "https:evil",
            "javascript:alert(1)",
            "evil",
            "/\t/evil",
            "/\n/evil",
            "/a\r\nSet-Cookie: x=1",
            " /",
            "/ä",
            "/a/..//evil",
            "/.//evil",
            "/auth/oidc/login",
            "/./auth/oidc/login",
            "/a\u{0}",
        ] {
            assert_eq!(check(bad, &url), None, "{bad:?}");
        }
        assert_eq!(check(&format!("/{}", "a".repeat(MOST)), &url), None);
    }
}
