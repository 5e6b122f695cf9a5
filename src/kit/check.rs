//! A whole check: which attempts are made, and what they come to.

use std::time::Duration;

use kage_model_server::fault::{Fault, Kind};
use kage_model_server::scenario;
use kage_model_server::script::Script;

use crate::kit::attempt::{Plan, attempt};
use crate::kit::error::KitError;
use crate::kit::judge::faults::{self, Expected};
use crate::kit::judge::{gateway, prompts, secrecy, task};
use crate::kit::observed::Observed;
use crate::kit::report::{Figures, Item, Need, Report};
use crate::kit::secrets::Known;
use crate::kit::stage::Stage;

/// For a task that nothing disturbs.
const TASK_WITHIN: Duration = Duration::from_secs(180);

/// What of a check is wanted.
#[derive(Debug, Clone, Default)]
pub struct Extent {
    /// Leave out the faults, which take minutes.
    pub quick: bool,
    /// Only attempts whose id begins so (`task`, `foreign-user`, and the ids of prompts and faults).
    pub only: Option<String>,
}

impl Extent {
    fn wants(&self, id: &str) -> bool {
        self.only.as_ref().is_none_or(|only| id.starts_with(only))
    }
}

/// What is known beside the stage.
#[derive(Debug)]
pub struct Surroundings {
    pub image_environment: Vec<String>,
    /// Secrets of this host.
    pub known: Vec<Known>,
}

/// Makes all attempts, and gives each item to `tell` as soon as it is known.
///
/// # Errors
/// [`KitError`], for what is not the image's doing.
pub async fn check(
    stage: &Stage,
    extent: &Extent,
    surroundings: &Surroundings,
    mut tell: impl FnMut(&Item),
) -> Result<Report, KitError> {
    let mut report = Report {
        cli: stage.manifest.name.to_string(),
        image: stage.image.digest.to_string(),
        items: Vec::new(),
        figures: Figures { image_bytes: stage.image.size, ..Figures::default() },
        paths_written: Vec::new(),
        hosts_asked: Vec::new(),
    };
    let mut add = |report: &mut Report, items: Vec<Item>| {
        items.iter().for_each(&mut tell);
        report.items.extend(items);
    };
    add(&mut report, vec![image_item(stage)]);
    let Some(access) = &stage.manifest.model else {
        add(&mut report, vec![without_model(stage).await?]);
        return Ok(report);
    };
    let plan = |id: &'static str, prompt: &str, script: Script, within: Duration| Plan {
        id,
        prompt: prompt.to_owned(),
        script,
        faults: Vec::new(),
        fixed: None,
        user: stage.user,
        within,
        terminate_when_asked: false,
    };
    let on_task = |id| plan(id, task::PROMPT, task::script(), TASK_WITHIN);
    if extent.wants("task") {
        let observed = attempt(stage, &on_task("task")).await?;
        add(&mut report, task::items(&observed, &stage.manifest));
        add(&mut report, gateway::items(access.dialect, &observed));
        add(&mut report, secrecy::items(&observed, &surroundings.image_environment, &surroundings.known));
        add(&mut report, vec![syscalls_item()]);
        note_figures(&mut report, &observed);
        // What does not even start need not be tried in twenty ways.
        if observed.model_calls() == 0 {
            return Ok(report);
        }
    }
    if extent.wants("foreign-user") {
        add(&mut report, vec![as_foreign_user(stage, on_task("foreign-user")).await?]);
    }
    let talk = || scenario::find("talk").unwrap_or_else(task::script);
    for trial in prompts::trials().into_iter().filter(|trial| extent.wants(trial.id)) {
        let item = match attempt(stage, &plan(trial.id, &trial.prompt, talk(), TASK_WITHIN)).await {
            Ok(observed) => prompts::item(&trial, &observed, &stage.manifest),
            Err(KitError::Launch(error)) => prompts::refused(&trial, error.to_string()),
            Err(error) => return Err(error),
        };
        add(&mut report, vec![item]);
    }
    if extent.quick {
        return Ok(report);
    }
    if extent.wants("sigterm") {
        let silent = Fault { kind: Kind::Silent, turn: None, times: None };
        let plan = Plan { faults: vec![silent], terminate_when_asked: true, ..on_task("sigterm") };
        add(&mut report, vec![faults::sigterm_item(&attempt(stage, &plan).await?)]);
    }
    let mut stopped = Vec::new();
    for trial in faults::trials().into_iter().filter(|trial| extent.wants(trial.id)) {
        let plan = Plan {
            faults: trial.faults(),
            fixed: trial.fixed(access.dialect),
            within: Duration::from_secs(trial.within_secs()),
            ..on_task(trial.id)
        };
        let observed = attempt(stage, &plan).await?;
        if trial.expected == Expected::Stops {
            stopped.push((trial.id, observed.regarded(&stage.manifest)));
        }
        add(&mut report, vec![trial.item(&observed, &stage.manifest)]);
    }
    add(&mut report, vec![faults::told_item(&stopped)]);
    Ok(report)
}

async fn as_foreign_user(stage: &Stage, plan: Plan) -> Result<Item, KitError> {
    let Some(user) = stage.foreign_user() else {
        let title = "does the same as a user whom the image does not know";
        return Ok(Item::not_measured("foreign-user", Need::Must, title, "that takes root"));
    };
    let observed = attempt(stage, &Plan { user, ..plan }).await?;
    Ok(task::foreign_item(&observed, &stage.manifest))
}

/// What its prompt means to a CLI without a model nobody can know here.
async fn without_model(stage: &Stage) -> Result<Item, KitError> {
    let plan = Plan {
        id: "starts",
        prompt: String::new(),
        script: task::script(),
        faults: Vec::new(),
        fixed: None,
        user: stage.user,
        within: Duration::from_secs(faults::STOPS_WITHIN_SECS),
        terminate_when_asked: false,
    };
    let observed = attempt(stage, &plan).await?;
    let seen = match &observed.exited.spawn_error {
        Some(error) => Err(error.clone()),
        None => Ok(format!("{}; no [model]: nothing else can be checked", observed.ending())),
    };
    Ok(Item::new("starts", Need::Must, "starts under the sandbox's profile, on a read-only root", seen))
}

fn image_item(stage: &Stage) -> Item {
    let seen = stage.image.check().map(|()| String::new()).map_err(|error| error.to_string());
    Item::new("image", Need::Must, "a sandbox may be made from the image", seen)
}

fn syscalls_item() -> Item {
    let why = "the sandbox refuses with EPERM and keeps no record yet";
    Item::not_measured("system-calls", Need::Note, "which system calls are refused", why)
}

fn note_figures(report: &mut Report, observed: &Observed) {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    report.figures = Figures {
        image_bytes: report.figures.image_bytes,
        sandbox_ms: Some(ms(observed.sandbox)),
        first_output_ms: observed.first_output.map(ms),
        first_request_ms: observed.first_request.map(ms),
        task_ms: Some(ms(observed.total)),
        memory_peak_bytes: observed.memory_peak,
        most_processes: observed.most_processes,
    };
    report.paths_written = secrecy::paths_written(observed);
    report.hosts_asked = observed.hosts_asked.iter().flatten().cloned().collect();
}
