//! What `kage image new`, `check` and `build` are given: the folder of an image, by its path or by its name in `images/`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use crate::domain::name::Name;
use crate::image::manifest::FILE_NAME;

/// In the help of each of them.
pub const HELP: &str = "The image's folder: its path, or its name in images/";

/// Where images are looked for by their names.
const IMAGES: &str = "images";

/// The folder with a manifest that is meant: one of that path, else one of that name.
pub fn find(given: &Path) -> Option<PathBuf> {
    [given.to_owned(), Path::new(IMAGES).join(given)]
        .into_iter()
        .find(|folder| folder.join(FILE_NAME).is_file())
}

/// As [`find`].
///
/// # Errors
/// Says where it was looked for, and what to do.
pub fn require(given: &Path) -> anyhow::Result<PathBuf> {
    find(given).ok_or_else(|| anyhow!("{}; to begin one: kage image new {}", missing(given), given.display()))
}

/// That [`find`] found none.
pub fn missing(given: &Path) -> String {
    let given = given.display();
    if given.to_string().contains('/') {
        format!("there is no {FILE_NAME} in {given}")
    } else {
        format!("there is no {FILE_NAME} in {given} or {IMAGES}/{given}")
    }
}

/// The folder that is to be made, and the CLI's name.
///
/// # Errors
/// The last part of the path is no name.
pub fn to_make(given: &Path) -> anyhow::Result<(PathBuf, Name)> {
    let last = given.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = last.parse().with_context(|| {
        format!("{last:?} cannot be a CLI's name; give one such as my-cli, or a path that ends in one")
    })?;
    let alone = given.components().count() == 1 && !given.to_string_lossy().contains('/');
    Ok((if alone { Path::new(IMAGES).join(given) } else { given.to_owned() }, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_in_images_and_a_path_is_a_path() {
        for (given, folder) in [
            ("my-cli", "images/my-cli"),
            ("images/my-cli", "images/my-cli"),
            ("./my-cli", "./my-cli"),
            ("/srv/clis/my-cli/", "/srv/clis/my-cli/"),
        ] {
            let (made, name) = to_make(given.as_ref()).expect("a name");
            assert_eq!((made, name.as_str()), (PathBuf::from(folder), "my-cli"), "{given}");
        }
        for given in ["", "My CLI", "images/..", "/", "images/Big"] {
            let error = to_make(given.as_ref()).expect_err("no name");
            assert!(format!("{error:#}").contains("such as my-cli"), "{error:#}");
        }
    }

    #[test]
    fn what_is_not_found_says_how_to_begin() {
        let folder = tempfile::tempdir().expect("tempdir");
        let error = require(folder.path()).expect_err("no manifest").to_string();
        assert!(error.contains("no cli.toml in /") && error.contains("kage image new /"), "{error}");
        std::fs::write(folder.path().join(FILE_NAME), "").expect("write");
        assert_eq!(find(folder.path()).as_deref(), Some(folder.path()));
        assert!(missing("none".as_ref()).ends_with("in none or images/none"));
    }
}
