//! A folder to begin a CLI image with.

use std::fs;
use std::path::Path;

use crate::domain::model::Dialect;
use crate::domain::name::Name;
use crate::kit::error::KitError;

const DOCKERFILE: &str = include_str!("scaffold/Dockerfile");
const MANIFEST: &str = include_str!("scaffold/cli.toml");

/// Makes `folder` with a Dockerfile that builds and a manifest that is valid; both say what to fill in.
///
/// # Errors
/// [`KitError::InTheWay`] if the folder is there, [`KitError::File`].
pub fn make(folder: &Path, name: &Name, dialect: Dialect) -> Result<(), KitError> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(KitError::file(parent))?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(KitError::InTheWay(folder.to_owned()));
        }
        made => made.map_err(KitError::file(folder))?,
    }
    for (file, text) in [("Dockerfile", DOCKERFILE), (crate::image::manifest::FILE_NAME, MANIFEST)] {
        let path = folder.join(file);
        let text = text
            .replace("@NAME@", name.as_str())
            .replace("@DIALECT@", dialect.as_str())
            .replace("@ENVIRONMENT@", environment(dialect));
        fs::write(&path, text).map_err(KitError::file(&path))?;
    }
    Ok(())
}

/// The variables that most CLIs of a dialect read.
const fn environment(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Anthropic => {
            "ANTHROPIC_BASE_URL = \"{{gateway}}\"\nANTHROPIC_API_KEY = \"{{token}}\"\nANTHROPIC_MODEL = \"{{model}}\""
        }
        Dialect::Responses | Dialect::Chat => {
            "OPENAI_BASE_URL = \"{{gateway}}/v1\"\nOPENAI_API_KEY = \"{{token}}\"\nOPENAI_MODEL = \"{{model}}\""
        }
        Dialect::Gemini => {
            "GOOGLE_GEMINI_BASE_URL = \"{{gateway}}\"\nGEMINI_API_KEY = \"{{token}}\"\nGEMINI_MODEL = \"{{model}}\""
        }
        Dialect::Ollama => "OLLAMA_HOST = \"{{gateway}}\"\nOLLAMA_MODEL = \"{{model}}\"",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Manifest;

    #[test]
    fn makes_a_manifest_that_is_valid_and_overwrites_nothing() {
        let parent = tempfile::tempdir().expect("tempdir");
        let folder = parent.path().join("images/my-cli");
        let name: Name = "my-cli".parse().expect("a name");
        for dialect in Dialect::ALL {
            let folder = parent.path().join(dialect.as_str());
            make(&folder, &name, dialect).expect("makes it");
            let manifest = Manifest::read(&folder).expect("valid");
            assert_eq!(manifest.model.as_ref().map(|model| model.dialect), Some(dialect));
        }
        make(&folder, &name, Dialect::Chat).expect("makes it");
        let manifest = Manifest::read(&folder).expect("valid");
        assert_eq!(manifest.name, name);
        assert_eq!(manifest.model.as_ref().map(|model| model.dialect), Some(Dialect::Chat));
        assert!(manifest.mapping().is_some());
        assert!(fs::read_to_string(folder.join("Dockerfile")).expect("reads").contains("my-cli"));
        assert!(matches!(make(&folder, &name, Dialect::Chat), Err(KitError::InTheWay(_))));
    }
}
