//! A folder to begin a CLI image with.

use std::fs;
use std::path::Path;

use crate::domain::model::Dialect;
use crate::domain::name::Name;
use crate::kit::error::KitError;

const MANIFEST: &str = include_str!("scaffold/cli.toml");
/// The last stage, as in every image of `images/`.
const FINAL: &str = include_str!("scaffold/final.Dockerfile");
/// npm's own lock, as in every image that needs it: one stage serves all.
const NODE_LOCK: &str = include_str!("../../images/codex/requirements-node.txt");

/// What a CLI is made of, and so how it is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// One native program.
    Program,
    /// Packages of npm, and a Node to run them.
    Node,
    /// Packages of PyPI in a virtual environment.
    Python,
}

impl Kind {
    /// The stage that the CLI is installed in.
    const fn stages(self) -> &'static str {
        match self {
            Self::Program => include_str!("scaffold/program.Dockerfile"),
            Self::Node => include_str!("scaffold/node.Dockerfile"),
            Self::Python => include_str!("scaffold/python.Dockerfile"),
        }
    }

    /// What pins the CLI, beside the Dockerfile.
    const fn locks(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Program => &[("SHA256SUMS", include_str!("scaffold/SHA256SUMS"))],
            Self::Node => &[
                ("package.json", include_str!("scaffold/package.json")),
                ("package-lock.json", include_str!("scaffold/package-lock.json")),
                ("requirements-node.txt", NODE_LOCK),
            ],
            Self::Python => &[("requirements.txt", include_str!("scaffold/requirements.txt"))],
        }
    }

    const fn command(self) -> &'static str {
        match self {
            Self::Program => r#""/opt/@NAME@/@NAME@""#,
            Self::Node => r#""/opt/@NAME@/node", "/opt/@NAME@/node_modules/@NAME@/TODO.js""#,
            Self::Python => r#""/opt/@NAME@/bin/@NAME@""#,
        }
    }
}

/// Makes `folder` with a Dockerfile that builds and a manifest that is valid; both say what to fill in.
///
/// # Errors
/// [`KitError::InTheWay`] if the folder is there, [`KitError::File`].
pub fn make(folder: &Path, name: &Name, dialect: Dialect, kind: Kind) -> Result<(), KitError> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(KitError::file(parent))?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(KitError::InTheWay(folder.to_owned()));
        }
        made => made.map_err(KitError::file(folder))?,
    }
    let dockerfile = format!("{}{FINAL}", kind.stages());
    let files = [("Dockerfile", dockerfile.as_str()), (crate::image::manifest::FILE_NAME, MANIFEST)];
    for (file, text) in files.iter().chain(kind.locks()) {
        let path = folder.join(file);
        let text = text
            .replace("@COMMAND@", kind.command())
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
            make(&folder, &name, dialect, Kind::Program).expect("makes it");
            let manifest = Manifest::read(&folder).expect("valid");
            assert_eq!(manifest.model.as_ref().map(|model| model.dialect), Some(dialect));
        }
        make(&folder, &name, Dialect::Chat, Kind::Program).expect("makes it");
        let manifest = Manifest::read(&folder).expect("valid");
        assert_eq!(manifest.name, name);
        assert_eq!(manifest.model.as_ref().map(|model| model.dialect), Some(Dialect::Chat));
        assert!(manifest.mapping().is_some());
        assert!(fs::read_to_string(folder.join("Dockerfile")).expect("reads").contains("my-cli"));
        assert!(matches!(make(&folder, &name, Dialect::Chat, Kind::Node), Err(KitError::InTheWay(_))));
    }

    /// What builds behind a proxy that inspects TLS, and from mirrors, is what the images here do.
    #[test]
    fn each_kind_is_made_as_the_images_here_are() {
        let images = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/images"));
        let read = |path: &Path| fs::read_to_string(path).expect("reads");
        let part = |text: &str, from: &str, to: &str| {
            let start = text.find(from).unwrap_or_else(|| panic!("no {from}"));
            let length = text[start..].find(to).unwrap_or_else(|| panic!("no {to}"));
            text[start..start + length].to_owned()
        };
        let parent = tempfile::tempdir().expect("tempdir");
        for (kind, name, from, to) in [
            (Kind::Node, "codex", "# npm, in a stage", "COPY package.json"),
            (Kind::Python, "aider", "# The second is there", "# What only"),
            (Kind::Program, "codex", "# The second is there", "COPY "),
        ] {
            let folder = parent.path().join(format!("{kind:?}"));
            make(&folder, &name.parse().expect("a name"), Dialect::Chat, kind).expect("makes it");
            let (made, real) =
                (read(&folder.join("Dockerfile")), read(&images.join(name).join("Dockerfile")));
            assert!(made.contains(part(&real, from, to).trim_end()), "{kind:?}: {made}");
            let last = real.rfind("\nFROM ${BASE_IMAGE}\n").expect("a last stage");
            assert!(made.ends_with(&real[last..]), "{kind:?}: {made}");
            assert!(crate::image::certificates::wanted(&folder).expect("reads"));
            for entry in fs::read_dir(&folder).expect("a folder") {
                let text = read(&entry.expect("an entry").path());
                assert!(
                    !["@NAME@", "@COMMAND@", "@DIALECT@"].iter().any(|hole| text.contains(hole)),
                    "{text}"
                );
            }
        }
    }
}
