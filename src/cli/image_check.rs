//! `kage image check` and `kage image new`: the conformance kit on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};

use crate::cli::escape;
use crate::cli::exit::{CliError, Exit};
use crate::cli::host::{self, Configuration};
use crate::cli::image::{self, BuildWith};
use crate::cli::image_folder;
use crate::cli::output::{self, Globals};
use crate::db;
use crate::db::Zone;
use crate::domain::model::Dialect;
use crate::image::manifest::{FILE_NAME, Manifest};
use crate::kit::check::{Extent, Surroundings, check};
use crate::kit::error::KitError;
use crate::kit::report::{Item, Report};
use crate::kit::scaffold::{self, Kind};
use crate::kit::secrets;
use crate::kit::stage::{Props, Stage};
use crate::sandbox::engine::Engine;
use crate::sandbox::image_check::{ImageFacts, image_environment, inspect_image};
use crate::sandbox::remap::Users;
use crate::sandbox::spec::SandboxUser;

#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    #[arg(value_name = "IMAGE", help = format!("{}; or the name of a registered image", image_folder::HELP))]
    image: String,
    /// Check this image of the engine's (tag or digest) with the folder's manifest [default: kage-cli-NAME:dev]
    #[arg(long, value_name = "REF")]
    existing: Option<String>,
    /// Build the folder's image first (it is not registered)
    #[arg(long, conflicts_with = "existing")]
    build: bool,
    #[command(flatten)]
    with: BuildWith,
    /// Leave out the faults of the model API, which take minutes
    #[arg(long)]
    quick: bool,
    /// Only the attempts whose id begins so: task, foreign-user, prompt-…, sigterm, budget-stop, model-refused, error-…, cut
    #[arg(long, value_name = "ID")]
    only: Option<String>,
    /// Keep in this folder what each attempt printed, its events, and its requests to the model
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

impl CheckArgs {
    fn extent(&self) -> Extent {
        Extent { quick: self.quick, only: self.only.clone() }
    }
}

#[derive(Debug, clap::Args)]
pub struct NewArgs {
    #[arg(value_name = "IMAGE", help = image_folder::HELP)]
    image: PathBuf,
    /// Protocol that it speaks: anthropic, responses, chat, gemini or ollama
    #[arg(long, default_value = "chat")]
    dialect: Dialect,
    /// What it is made of: program (a native one), node (from npm) or python (from PyPI)
    #[arg(long, default_value = "program")]
    kind: Kind,
}

/// # Errors
/// [`CliError::Host`].
pub fn new(args: &NewArgs, globals: &Globals) -> Result<Exit, CliError> {
    let (folder, name) = image_folder::to_make(&args.image).map_err(CliError::Host)?;
    scaffold::make(&folder, &name, args.dialect, args.kind)
        .map_err(|error| CliError::Host(anyhow::Error::new(error)))?;
    if globals.json {
        output::json(&serde_json::json!({ "folder": folder }))?;
    } else {
        let folder = escape::line(&folder.display().to_string());
        output::line(&format!("made {folder}"))?;
        output::note(&format!(
            "fill in the TODOs in {folder}/Dockerfile and {folder}/{FILE_NAME}, then: kage image check --build {folder}"
        ));
    }
    Ok(Exit::Success)
}

/// # Errors
/// [`CliError::Host`], for what is not the image's doing.
pub async fn run(args: &CheckArgs, globals: &Globals) -> Result<Exit, CliError> {
    let configuration = host::load()?;
    match report(&configuration, args, globals).await {
        Ok(report) => {
            if globals.json {
                let (passed, complete) = (report.passed(), !report.partial);
                output::json(
                    &serde_json::json!({ "passed": passed, "complete": complete, "report": report }),
                )?;
            } else {
                print_end(&report)?;
            }
            Ok(if report.passed() { Exit::Success } else { Exit::Failed })
        }
        Err(error) if matches!(error.downcast_ref(), Some(KitError::Interrupted)) => Ok(Exit::Interrupted),
        Err(error) => Err(match error.downcast_ref() {
            Some(KitError::NothingToTry { .. }) => CliError::Usage(format!("--only: {error}")),
            _ => CliError::Host(error),
        }),
    }
}

fn print_end(report: &Report) -> Result<(), CliError> {
    if !report.paths_written.is_empty() {
        output::line(&escape::line(&format!("writes {}", report.paths_written.join(" "))))?;
    }
    for line in report.summary() {
        output::line(&escape::line(&line))?;
    }
    Ok(())
}

async fn report(
    configuration: &Configuration,
    args: &CheckArgs,
    globals: &Globals,
) -> anyhow::Result<Report> {
    let engine = Engine::connect(&configuration.runner.docker).await?;
    let (manifest, image) = subject(&engine, args).await?;
    let surroundings = Surroundings {
        image_environment: image_environment(&engine, &image.digest).await?,
        known: secrets::known(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        ),
    };
    if !globals.json {
        output::line(&escape::line(&format!("{} {}", manifest.name, image.digest)))?;
    }
    let users = engine.info().await.context("engine")?.users;
    let stage = Stage::set(props(configuration, (engine, users), manifest, image, args.keep.clone())?)?;
    let quiet = globals.json;
    let tell = |item: &Item| {
        if !quiet {
            // A closed pipe is noticed by what is printed at the end.
            let _ = output::line(&escape::line(&item.line()));
        }
    };
    Ok(check(&stage, &args.extent(), &surroundings, tell).await?)
}

/// What is to be checked: from a folder, else from the registry.
async fn subject(engine: &Engine, args: &CheckArgs) -> anyhow::Result<(Manifest, ImageFacts)> {
    let given = Path::new(&args.image);
    if let Some(folder) = image_folder::find(given) {
        let manifest = Manifest::read(&folder)?;
        args.extent().refuse_nothing(&manifest)?;
        if args.build {
            let facts = image::build_image(engine, &folder, &manifest, &args.with).await?;
            return Ok((manifest, facts));
        }
        let reference = args.existing.clone().unwrap_or_else(|| image::tag(&manifest));
        let facts = inspect_image(engine, &reference).await?;
        let missing = || match &args.existing {
            Some(reference) => image::no_such_image(reference),
            None => anyhow!(
                "the engine has no image {reference}; build it: kage image check --build {}",
                folder.display()
            ),
        };
        return Ok((manifest, facts.ok_or_else(missing)?));
    }
    if args.build || args.existing.is_some() {
        image_folder::require(given)?;
    }
    let configuration = Configuration::load_with_database().with_context(|| {
        let missing = image_folder::missing(given);
        format!("{missing} (to begin one: kage image new {}), and no registered images", given.display())
    })?;
    let pool = configuration.pool(Zone::Runner).await?;
    let mut connection = pool.acquire().await?;
    let row = db::images::find(&mut connection, &args.image).await.context("database")?;
    let row = row.ok_or_else(|| {
        let missing = image_folder::missing(given);
        anyhow!("{missing}, and no image {:?} is registered: `kage image list` shows which are", args.image)
    })?;
    let manifest: Manifest = serde_json::from_value(row.manifest).context("the registered manifest")?;
    let facts = inspect_image(engine, &row.digest).await?;
    let gone = || {
        anyhow!(
            "the engine has no image {} any more: build and register it again: kage image build",
            row.digest
        )
    };
    Ok((manifest, facts.ok_or_else(gone)?))
}

fn props(
    configuration: &Configuration,
    (engine, users): (Engine, Users),
    manifest: Manifest,
    image: ImageFacts,
    keep: Option<PathBuf>,
) -> anyhow::Result<Props> {
    let runner = &configuration.runner;
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uid, gid) = if own.0 == 0 { (runner.uid, runner.uid) } else { own };
    let shim = shim(runner.shim.as_deref())?;
    // The runner's folder is where the engine sees what we see, also from within a container.
    let folder = if runner.data_dir.is_dir() { runner.data_dir.clone() } else { std::env::temp_dir() };
    let user = SandboxUser::new(uid, gid)
        .ok_or_else(|| anyhow!("KAGE_RUNNER_UID cannot be {uid}: give a user that is not root"))?;
    Ok(Props {
        engine,
        manifest,
        image,
        limits: runner.limits.clone(),
        runtime: runner.runtime.clone(),
        user: user.of_engine(users).ok_or_else(|| {
            anyhow!("who the engine's users are on this host cannot be told: see `kage doctor host`")
        })?,
        users,
        shim,
        folder,
        keep,
    })
}

/// The program that is PID 1 in every sandbox: `named` by the variable, else beside this one.
fn shim(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    const BUILT: &str = "`scripts/build shim` builds it and prints its path";
    if let Some(path) = named {
        if !path.is_file() {
            bail!(
                "KAGE_RUNNER_SHIM says that kage-shim is {}, and there is no such file: {BUILT}",
                path.display()
            );
        }
        return Ok(path.to_owned());
    }
    let path = std::env::current_exe().context("where this program is")?.with_file_name("kage-shim");
    if !path.is_file() {
        bail!("there is no kage-shim at {}: say with KAGE_RUNNER_SHIM where it is ({BUILT})", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_that_is_not_there_is_named_with_its_variable() {
        let error = shim(Some("/nonexistent".as_ref())).expect_err("none there").to_string();
        for word in ["KAGE_RUNNER_SHIM", "kage-shim", "/nonexistent"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
