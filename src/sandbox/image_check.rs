//! What of an image could weaken a sandbox. Images are the operator's, but a mistake in one must not open a wall.

use bollard::errors::Error as ApiError;
use serde::Serialize;

use crate::sandbox::engine::Engine;
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::ImageDigest;

/// An image as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageFacts {
    pub digest: ImageDigest,
    /// Bytes unpacked.
    pub size: u64,
    pub architecture: String,
    /// RFC 3339, as the engine says it.
    pub created: Option<String>,
    pub tags: Vec<String>,
    /// What the image would run by itself; a sandbox runs the shim instead.
    pub entrypoint: Vec<String>,
    /// Why no sandbox may be made from it; empty for a good image.
    pub refusals: Vec<String>,
}

impl ImageFacts {
    /// # Errors
    /// [`SandboxError::ImageRefused`] with all reasons.
    pub fn check(&self) -> Result<(), SandboxError> {
        if self.refusals.is_empty() {
            return Ok(());
        }
        let reason = self.refusals.join("; ");
        Err(SandboxError::ImageRefused { image: self.digest.to_string(), reason })
    }
}

/// Makes sure that a sandbox may be made from an image. Asks the engine once for each.
///
/// # Errors
/// [`SandboxError::ImageMissing`], [`SandboxError::ImageRefused`], or the engine is away.
pub async fn require_good(engine: &Engine, digest: &ImageDigest) -> Result<(), SandboxError> {
    if engine.good_images().contains(digest) {
        return Ok(());
    }
    let image = inspect_image(engine, digest.as_str()).await?;
    image.ok_or_else(|| SandboxError::ImageMissing { image: digest.to_string() })?.check()?;
    engine.good_images().insert(digest.clone());
    Ok(())
}

/// Looks an image up by tag, name or digest. `None` if the engine has none.
///
/// # Errors
/// Those of the engine.
pub async fn inspect_image(engine: &Engine, reference: &str) -> Result<Option<ImageFacts>, SandboxError> {
    let question = async {
        match engine.api().inspect_image(reference).await {
            Ok(image) => Ok(Some(image)),
            Err(ApiError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(other) => Err(other),
        }
    };
    let Some(image) = engine.call("image inspect", engine.deadlines().ask, question).await? else {
        return Ok(None);
    };
    let nonsense = |reason: String| SandboxError::Answer { call: "image inspect", reason };
    let id = image.id.ok_or_else(|| nonsense("an image without an id".to_owned()))?;
    let config = image.config.unwrap_or_default();
    let mut refusals = Vec::new();
    // A declared volume becomes a writable folder of the engine's, outside every limit.
    for path in config.volumes.unwrap_or_default() {
        refusals.push(format!("it declares VOLUME {path}, which would be writable and without a limit"));
    }
    let triggers = config.on_build.unwrap_or_default();
    if !triggers.is_empty() {
        refusals.push("it has ONBUILD triggers: it is made to build others from, not to run".to_owned());
    }
    if image.os.as_deref().is_some_and(|os| os != "linux") {
        refusals.push("it is not a Linux image".to_owned());
    }
    Ok(Some(ImageFacts {
        digest: id.parse().map_err(|error| nonsense(format!("{error}")))?,
        size: image.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
        architecture: image.architecture.unwrap_or_default(),
        created: image.created.map(|at| at.to_string()),
        tags: image.repo_tags.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        refusals,
    }))
}

/// The image's own ENV, as `NAME=value`. It never reaches a CLI.
///
/// # Errors
/// [`SandboxError::ImageMissing`], or those of the engine.
pub async fn image_environment(engine: &Engine, digest: &ImageDigest) -> Result<Vec<String>, SandboxError> {
    let question = engine.api().inspect_image(digest.as_str());
    let image = engine.call("image inspect", engine.deadlines().ask, question).await?;
    Ok(image.config.and_then(|config| config.env).unwrap_or_default())
}
