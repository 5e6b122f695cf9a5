//! Builds a CLI's image from its folder, with the engine's own builder.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::query_parameters::BuildImageOptions;
use bytes::Bytes;
use futures::StreamExt;

use crate::image::certificates::{self, Certificates};
use crate::image::context::{self, Extra};
use crate::image::error::ImageError;
use crate::sandbox::engine::Engine;
use crate::sandbox::error::SandboxError;
use crate::sandbox::image_check::{ImageFacts, inspect_image};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildRequest<'a> {
    /// Folder with the `Dockerfile`.
    pub folder: &'a Path,
    /// Name and tag for the engine's list, such as `kage-cli-shell:dev`. Runs use the digest.
    pub tag: &'a str,
    /// Values for the Dockerfile's `ARG`s.
    pub args: &'a [(&'a str, &'a str)],
    pub labels: &'a [(&'a str, &'a str)],
    /// For a Dockerfile that asks for them.
    pub certificates: Option<&'a Certificates>,
    /// The engine's network for `RUN` steps; its default if none.
    pub network: Option<&'a str>,
    /// For the whole build.
    pub deadline: Duration,
}

/// Builds, and gives each line of the builder's output to `line` as it comes.
///
/// # Errors
/// [`ImageError::Context`] and [`ImageError::File`] for the folder, [`ImageError::Build`] with what the builder said
/// last, [`ImageError::Engine`] if the engine is away, too slow, or the image is one that no sandbox may be made from.
pub async fn build(
    engine: &Engine,
    request: &BuildRequest<'_>,
    mut line: impl FnMut(&str),
) -> Result<ImageFacts, ImageError> {
    let folder = request.folder.to_owned();
    let given = request.certificates.cloned();
    let pack = move || {
        let given = if certificates::wanted(&folder)? { given } else { None };
        let extra =
            given.as_ref().map(|ca| Extra { name: certificates::FILE_NAME, bytes: ca.pem().as_bytes() });
        context::pack(&folder, extra)
    };
    let archive = tokio::task::spawn_blocking(pack)
        .await
        .map_err(|error| ImageError::Build(format!("packing the folder: {error}")))??;

    let pairs = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let options = BuildImageOptions {
        t: Some(request.tag.to_owned()),
        buildargs: Some(pairs(request.args)),
        labels: Some(pairs(request.labels)),
        networkmode: request.network.map(str::to_owned),
        rm: true,
        forcerm: true,
        ..BuildImageOptions::default()
    };
    let digest = async {
        let mut answers = std::pin::pin!(engine.api().build_image(
            options,
            None,
            Some(bollard::body_full(Bytes::from(archive))),
        ));
        let (mut digest, mut rest) = (None, String::new());
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            for text in [answer.stream, answer.status].into_iter().flatten() {
                rest.push_str(&text);
                // `status` carries whole lines without a newline only while it pulls.
                while let Some(end) = rest.find('\n') {
                    line(rest[..end].trim_end_matches('\r'));
                    rest.drain(..=end);
                }
            }
            if let Some(id) = answer.aux.and_then(|aux| aux.id) {
                digest = Some(id);
            }
        }
        if !rest.is_empty() {
            line(&rest);
        }
        Ok(digest)
    };
    let digest = match engine.call("build", request.deadline, digest).await {
        Ok(Some(digest)) => digest,
        Ok(None) => return Err(ImageError::Build("the builder named no image".to_owned())),
        Err(SandboxError::Refused { message, .. }) => return Err(ImageError::Build(message)),
        Err(other) => return Err(other.into()),
    };
    let facts = inspect_image(engine, &digest).await?.ok_or(SandboxError::ImageMissing { image: digest })?;
    facts.check()?;
    Ok(facts)
}
