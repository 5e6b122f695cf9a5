//! `kage image`: CLI images, built by the engine and registered by digest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde_json::json;

use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::Configuration;
use crate::cli::image_build_log::BuildLog;
use crate::cli::image_check::{self, CheckArgs, NewArgs};
use crate::cli::image_events::{self, EventsArgs};
use crate::cli::image_folder;
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::db::error::DbError;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::image::base;
use crate::image::build::{BuildRequest, build};
use crate::image::certificates::Certificates;
use crate::image::error::ImageError;
use crate::image::manifest::Manifest;
use crate::sandbox::engine::Engine;
use crate::sandbox::image_check::{ImageFacts, inspect_image};

const BUILD_WITHIN: Duration = Duration::from_secs(3600);

/// Handed on to a build where they are set: a way out, and mirrors of one's own.
const HANDED_ON: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "PIP_INDEX_URL",
    "NPM_CONFIG_REGISTRY",
];

/// Build, list and inspect CLI images (on the runner's host)
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Build an image and register it under its manifest's name
    Build {
        #[arg(value_name = "IMAGE", help = image_folder::HELP)]
        image: PathBuf,
        #[command(flatten)]
        with: BuildWith,
        /// Register this image of the engine's (tag or digest) with the folder's manifest, without building
        #[arg(long, value_name = "REF")]
        existing: Option<String>,
    },
    /// List registered images
    List,
    /// Make an image's folder to begin with
    New(NewArgs),
    /// Run an image's CLI in the real sandbox against a scripted model, and report what holds
    Check(CheckArgs),
    /// Show what an image's `events` filter makes of a CLI's output, on standard input: one event a line, as JSON
    Events(EventsArgs),
    /// Show a registered image: manifest, digest, and whether the engine has it
    Inspect {
        /// The name that it is registered under
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// What a build stands on and needs.
#[derive(Debug, Clone, clap::Args)]
pub struct BuildWith {
    /// Base image, as the build argument BASE_IMAGE [default: the Dockerfile's; for debian:RELEASE-slim
    /// kage-base:RELEASE where the engine has that]
    #[arg(long, value_name = "REF", env = "KAGE_IMAGE_BASE")]
    base: Option<String>,
    /// Certificates (PEM) of a proxy that inspects TLS, for a Dockerfile that takes them
    #[arg(long, value_name = "FILE", env = "KAGE_BUILD_CA")]
    build_ca: Option<PathBuf>,
}

/// # Errors
/// [`CliError::Host`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = Configuration::load_with_database;
    let done = match args.command {
        Command::New(args) => return image_check::new(&args, globals),
        Command::Check(args) => return image_check::run(&args, globals).await,
        Command::Events(args) => return image_events::run(&args),
        Command::Build { image, with, existing } => {
            let folder = image_folder::require(&image).map_err(CliError::Host)?;
            build_and_register(&configuration()?, globals, &folder, &with, existing).await
        }
        Command::List => list(&configuration()?, globals).await,
        Command::Inspect { name } => inspect(&configuration()?, globals, &name).await,
    };
    done.map_err(CliError::Host)?;
    Ok(Exit::Success)
}

async fn build_and_register(
    configuration: &Configuration,
    globals: &Globals,
    folder: &Path,
    with: &BuildWith,
    existing: Option<String>,
) -> anyhow::Result<()> {
    let manifest = Manifest::read(folder)?;
    let engine = Engine::connect(&configuration.runner.docker).await?;
    let facts = match existing {
        Some(reference) => {
            let facts = inspect_image(&engine, &reference).await?;
            facts.ok_or_else(|| no_such_image(&reference))?
        }
        None => build_image(&engine, folder, &manifest, with).await?,
    };
    facts.check()?;
    let pool = configuration.pool(Zone::Runner).await?;
    let name = manifest.name.as_str();
    let entry = Entry {
        actor: Actor::Host,
        action: "image.register",
        object: format!("image:{name}"),
        outcome: Outcome::Done,
        details: json!({ "digest": facts.digest }),
    };
    let write = async {
        let mut transaction = pool.begin().await?;
        db::images::register(&mut transaction, name, facts.digest.as_str(), &json!(manifest)).await?;
        db::audit::append(&mut transaction, &entry).await?;
        transaction.commit().await?;
        Ok::<(), DbError>(())
    };
    write.await.context("database")?;
    if globals.json {
        output::json(&json!({ "name": name, "digest": facts.digest }))?;
    } else {
        output::line(&format!("registered {name} {}", facts.digest))?;
    }
    Ok(())
}

/// `--existing` names none.
pub fn no_such_image(reference: &str) -> anyhow::Error {
    anyhow!(
        "the engine has no image {reference}: `docker images` lists those that it has; without --existing it is built"
    )
}

/// What a built image is called in the engine's list.
pub fn tag(manifest: &Manifest) -> String {
    format!("kage-cli-{}:dev", manifest.name)
}

/// Builds a folder's image under its tag.
///
/// # Errors
/// Those of the build and of the engine.
pub async fn build_image(
    engine: &Engine,
    folder: &Path,
    manifest: &Manifest,
    with: &BuildWith,
) -> anyhow::Result<ImageFacts> {
    let base = match &with.base {
        Some(base) => Some(base.clone()),
        None => local_base(engine, folder).await?,
    };
    let certificates = with.build_ca.as_deref().map(Certificates::read).transpose()?;
    let handed_on: Vec<(&str, String)> = HANDED_ON
        .into_iter()
        .filter_map(|name| {
            std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value))
        })
        .collect();
    let base = base.iter().map(|base| (base::ARGUMENT, base.as_str()));
    let args: Vec<(&str, &str)> =
        base.chain(handed_on.iter().map(|(name, value)| (*name, value.as_str()))).collect();
    let tag = tag(manifest);
    let labels = [("kage.image", manifest.name.as_str())];
    let request = BuildRequest {
        folder,
        tag: &tag,
        args: &args,
        labels: &labels,
        certificates: certificates.as_ref(),
        network: None,
        deadline: BUILD_WITHIN,
    };
    let mut log = BuildLog::default();
    let built =
        build(engine, &request, |text| log.lines(text).iter().for_each(|line| output::note(line))).await;
    built.map_err(|error| match error {
        ImageError::Build(why) => {
            let folder = folder.display();
            let mend = if log.untrusted() {
                format!(
                    "a certificate was not trusted; behind a proxy that inspects TLS give its certificates with \
                     --build-ca FILE, and let {folder}/Dockerfile take them (docs/cli-images.md)"
                )
            } else {
                format!("mend {folder}/Dockerfile and build again")
            };
            anyhow!("the image could not be built: {why}; {mend}")
        }
        other => other.into(),
    })
}

/// The engine's own image of the release that the Dockerfile names, if it has one.
async fn local_base(engine: &Engine, folder: &std::path::Path) -> anyhow::Result<Option<String>> {
    let Some(local) = base::declared(folder)?.as_deref().and_then(base::local_name) else { return Ok(None) };
    Ok(inspect_image(engine, &local).await?.map(|_| local))
}

async fn list(configuration: &Configuration, globals: &Globals) -> anyhow::Result<()> {
    let pool = configuration.pool(Zone::Runner).await?;
    let images = db::images::list(&pool).await.context("database")?;
    if globals.json {
        output::json(&images)?;
        return Ok(());
    }
    for image in images {
        let description =
            image.manifest.get("description").and_then(serde_json::Value::as_str).unwrap_or_default();
        output::line(&escape::line(&format!("{}  {}  {description}", image.name, image.digest)))?;
    }
    Ok(())
}

async fn inspect(configuration: &Configuration, globals: &Globals, name: &str) -> anyhow::Result<()> {
    let pool = configuration.pool(Zone::Runner).await?;
    let mut connection = pool.acquire().await?;
    let image = db::images::find(&mut connection, name).await.context("database")?;
    let image = image
        .ok_or_else(|| anyhow!("no CLI image {name:?} is registered: `kage image list` shows which are"))?;
    let engine = Engine::connect(&configuration.runner.docker).await?;
    let facts = inspect_image(&engine, &image.digest).await?;
    let value = json!({ "registered": image, "engine": facts });
    if globals.json {
        output::json(&value)?;
    } else {
        for line in serde_json::to_string_pretty(&value)?.lines() {
            output::line(&escape::line(line))?;
        }
    }
    Ok(())
}
