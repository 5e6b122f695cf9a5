//! A whole check: which attempts are made, and what they come to.

use std::time::Duration;

use kage_model_server::fault::{Fault, Kind};
use kage_model_server::scenario;

use crate::domain::model::Dialect;
use crate::image::manifest::Manifest;
use crate::kit::attempt::{Plan, attempt};
use crate::kit::error::KitError;
use crate::kit::judge::faults::{self, Expected};
use crate::kit::judge::{gateway, prompts, secrecy, task};
use crate::kit::observed::Observed;
use crate::kit::report::{Figures, Item, Need, Report};
use crate::kit::secrets::Known;
use crate::kit::stage::Stage;
use crate::sandbox::refusals::tally::Refused;

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

    /// A check of nothing finds nothing wrong, and must not pass for one.
    ///
    /// # Errors
    /// [`KitError::NothingToTry`] with the ids that there are.
    pub fn refuse_nothing(&self, manifest: &Manifest) -> Result<(), KitError> {
        let ids = attempts(manifest, self.quick);
        match &self.only {
            Some(only) if !ids.iter().any(|id| id.starts_with(only)) => {
                Err(KitError::NothingToTry { only: only.clone(), ids, quick: self.quick })
            }
            _ => Ok(()),
        }
    }
}

/// The ids of all attempts, in their order.
fn attempts(manifest: &Manifest, quick: bool) -> Vec<&'static str> {
    if manifest.model.is_none() {
        return vec!["starts"];
    }
    let mut ids = vec!["task", "foreign-user"];
    ids.extend(prompts::trials(manifest).iter().map(|trial| trial.id));
    if !quick {
        ids.push("sigterm");
        ids.extend(faults::trials().iter().map(|trial| trial.id));
    }
    ids
}

/// How many items a whole check has; a test compares.
fn whole(manifest: &Manifest) -> usize {
    if manifest.model.is_none() {
        return 2;
    }
    // Beside those of the task: image, system-calls and errors-told, and one for each other attempt.
    3 + task::count(manifest) + gateway::COUNT + secrecy::COUNT + attempts(manifest, false).len() - 1
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
    tell: impl FnMut(&Item),
) -> Result<Report, KitError> {
    extent.refuse_nothing(&stage.manifest)?;
    let report = Report {
        cli: stage.manifest.name.to_string(),
        image: stage.image.digest.to_string(),
        items: Vec::new(),
        of: whole(&stage.manifest),
        partial: (extent.quick && stage.manifest.model.is_some()) || extent.only.is_some(),
        figures: Figures { image_bytes: stage.image.size, ..Figures::default() },
        paths_written: Vec::new(),
        hosts_asked: Vec::new(),
    };
    let mut check = Check { stage, extent, report, tell };
    check.add([image_item(stage)]);
    let Some(access) = &stage.manifest.model else {
        check.add([without_model(stage).await?]);
        return Ok(check.report);
    };
    if extent.wants("task") && !check.task(access.dialect, surroundings).await? {
        // What does not even start need not be tried in twenty ways.
        return Ok(check.report);
    }
    if extent.wants("foreign-user") {
        check.add([as_foreign_user(stage, on_task(stage, "foreign-user")).await?]);
    }
    check.prompts().await?;
    if !extent.quick {
        check.faults(access.dialect).await?;
    }
    Ok(check.report)
}

struct Check<'a, T> {
    stage: &'a Stage,
    extent: &'a Extent,
    report: Report,
    tell: T,
}

/// The task that the kit knows, undisturbed.
fn on_task(stage: &Stage, id: &'static str) -> Plan {
    Plan {
        id,
        prompt: task::PROMPT.to_owned(),
        script: task::script(),
        faults: Vec::new(),
        fixed: None,
        user: stage.user,
        within: TASK_WITHIN,
        terminate_when_asked: false,
    }
}

impl<T: FnMut(&Item)> Check<'_, T> {
    fn add(&mut self, items: impl IntoIterator<Item = Item>) {
        for item in items {
            (self.tell)(&item);
            self.report.items.push(item);
        }
    }

    /// Whether the model was asked at all.
    async fn task(&mut self, dialect: Dialect, surroundings: &Surroundings) -> Result<bool, KitError> {
        let manifest = &self.stage.manifest;
        let observed = attempt(self.stage, &on_task(self.stage, "task")).await?;
        self.add(task::items(&observed, manifest));
        self.add(gateway::items(dialect, &observed));
        self.add(secrecy::items(&observed, &surroundings.image_environment, &surroundings.known));
        self.add([syscalls_item(&observed)]);
        note_figures(&mut self.report, &observed);
        Ok(observed.model_calls() > 0)
    }

    async fn prompts(&mut self) -> Result<(), KitError> {
        let talk = scenario::find("talk").unwrap_or_else(task::script);
        for trial in
            prompts::trials(&self.stage.manifest).into_iter().filter(|trial| self.extent.wants(trial.id))
        {
            let plan =
                Plan { prompt: trial.prompt.clone(), script: talk.clone(), ..on_task(self.stage, trial.id) };
            let item = match attempt(self.stage, &plan).await {
                Ok(observed) => prompts::item(&trial, &observed, &self.stage.manifest),
                Err(KitError::Launch(error)) => prompts::refused(&trial, error.to_string()),
                Err(error) => return Err(error),
            };
            self.add([item]);
        }
        Ok(())
    }

    async fn faults(&mut self, dialect: Dialect) -> Result<(), KitError> {
        let manifest = &self.stage.manifest;
        if self.extent.wants("sigterm") {
            let silent = Fault { kind: Kind::Silent, turn: None, times: None };
            let plan =
                Plan { faults: vec![silent], terminate_when_asked: true, ..on_task(self.stage, "sigterm") };
            let observed = attempt(self.stage, &plan).await?;
            self.add([faults::sigterm_item(&observed)]);
        }
        let mut stopped = Vec::new();
        for trial in faults::trials().into_iter().filter(|trial| self.extent.wants(trial.id)) {
            let mut plan = Plan {
                faults: trial.faults(),
                fixed: trial.fixed(dialect),
                within: Duration::from_secs(trial.within_secs()),
                ..on_task(self.stage, trial.id)
            };
            let mut observed = attempt(self.stage, &plan).await?;
            if !observed.met_fault() {
                // A CLI without an agent's loop takes one turn only.
                plan.faults.iter_mut().for_each(|fault| fault.turn = None);
                observed = attempt(self.stage, &plan).await?;
            }
            if trial.expected == Expected::Stops && observed.met_fault() {
                stopped.push((trial.id, observed.regarded(manifest)));
            }
            self.add([trial.item(&observed, manifest)]);
        }
        if faults::trials()
            .iter()
            .any(|trial| trial.expected == Expected::Stops && self.extent.wants(trial.id))
        {
            self.add([faults::told_item(&stopped)]);
        }
        Ok(())
    }
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
    let within = Duration::from_secs(faults::STOPS_WITHIN_SECS);
    let plan = Plan { prompt: String::new(), within, ..on_task(stage, "starts") };
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

fn syscalls_item(observed: &Observed) -> Item {
    let (id, title) =
        ("system-calls", "which system calls are refused, and which addresses it wants to reach");
    if observed.exited.spawn_error.is_some() {
        return Item::not_measured(id, Need::Note, title, "the CLI could not be started");
    }
    let Some(refused) = &observed.refused else {
        return Item::not_measured(id, Need::Note, title, "this runtime does not tell of them");
    };
    let one = |kind: &Refused| {
        let form = if kind.form.is_empty() { String::new() } else { format!(" ({})", kind.form) };
        let usual = if kind.quiet { " [usual]" } else { "" };
        format!("{}{form} x{}{usual}", kind.call, kind.count)
    };
    let named: Vec<String> = refused.iter().map(one).collect();
    Item::new(id, Need::Note, title, Ok(if named.is_empty() { "none".to_owned() } else { named.join(", ") }))
}

fn note_figures(report: &mut Report, observed: &Observed) {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    report.figures = Figures {
        image_bytes: report.figures.image_bytes,
        sandbox_ms: Some(ms(observed.sandbox)),
        first_output_ms: observed.first_output.map(ms),
        first_request_ms: observed.first_request.map(ms),
        task_ms: observed.idle().is_none().then(|| ms(observed.total)),
        memory_peak_bytes: observed.memory_peak,
        most_processes: observed.most_processes,
    };
    report.paths_written = secrecy::paths_written(observed);
    report.hosts_asked = observed.hosts_asked.iter().flatten().cloned().collect();
}
