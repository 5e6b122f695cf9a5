//! What a CLI image is built on.

use std::fs;
use std::path::Path;

use crate::image::error::ImageError;

/// The build argument that every Dockerfile of ours takes its base from.
pub const ARGUMENT: &str = "BASE_IMAGE";

/// The base that a folder's Dockerfile names where it is told no other: the value of its first `ARG BASE_IMAGE=`.
///
/// # Errors
/// [`ImageError::File`].
pub fn declared(folder: &Path) -> Result<Option<String>, ImageError> {
    let path = folder.join("Dockerfile");
    let text = fs::read_to_string(&path).map_err(|error| ImageError::File { path, error })?;
    Ok(default_of(&text).map(str::to_owned))
}

fn default_of(dockerfile: &str) -> Option<&str> {
    let value = dockerfile.lines().find_map(|line| {
        let (word, rest) = line.trim_start().split_once(char::is_whitespace)?;
        let value = rest.trim_start().strip_prefix(ARGUMENT)?.strip_prefix('=')?;
        word.eq_ignore_ascii_case("ARG").then_some(value)
    })?;
    Some(value.trim().trim_matches(['"', '\''])).filter(|value| !value.is_empty())
}

/// What `scripts/host` calls the image that it makes of a Debian release where no registry answers.
pub fn local_name(reference: &str) -> Option<String> {
    let release = reference.strip_prefix("debian:")?.strip_suffix("-slim")?;
    let plain = !release.is_empty() && release.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| format!("kage-base:{release}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dockerfile_says_what_it_stands_on() {
        let text =
            "# ARG BASE_IMAGE=no\nARG OTHER=x\nARG BASE_IMAGE=debian:trixie-slim\nFROM ${BASE_IMAGE}\n";
        assert_eq!(default_of(text), Some("debian:trixie-slim"));
        assert_eq!(default_of("arg  BASE_IMAGE=\"kage-cli-opencode:dev\" \n"), Some("kage-cli-opencode:dev"));
        for none in
            ["ARG BASE_IMAGE\nFROM x", "ARG BASE_IMAGES=x", "FROM BASE_IMAGE=x", "", "ARG BASE_IMAGE="]
        {
            assert_eq!(default_of(none), None, "{none}");
        }
    }

    #[test]
    fn only_debian_has_a_local_stand_in() {
        assert_eq!(local_name("debian:bookworm-slim").as_deref(), Some("kage-base:bookworm"));
        for other in
            ["debian:trixie", "registry/debian:trixie-slim", "debian:-slim", "debian:a/b-slim", "kage:dev"]
        {
            assert_eq!(local_name(other), None, "{other}");
        }
    }
}
