//! The OCI runtimes that the operator allows, as the engine knows them.

use std::collections::BTreeSet;

use crate::config::runner::RunnerConfig;
use crate::domain::runtime::{self, RuntimeRefused};
use crate::runner::failure::StartError;
use crate::sandbox::engine::{Engine, EngineInfo};
use crate::sandbox::reporting;

#[derive(Debug)]
pub(super) struct Runtimes {
    default: String,
    /// The default among them.
    allowed: BTreeSet<String>,
    /// Those of them that tell of refused calls.
    reporting: BTreeSet<String>,
}

impl Runtimes {
    /// # Errors
    /// The engine is away, or does not know one of them.
    pub async fn open(engine: &Engine, info: EngineInfo, config: &RunnerConfig) -> Result<Self, StartError> {
        let default = config.runtime.clone().unwrap_or(info.default_runtime);
        let allowed: BTreeSet<String> =
            config.runtimes_allowed.iter().cloned().chain([default.clone()]).collect();
        // The default is tried when the first run needs it, as it was always.
        if let Some(unknown) = config.runtimes_allowed.iter().find(|name| !info.runtimes.contains(*name)) {
            return Err(StartError::Runtime { name: unknown.clone(), known: info.runtimes });
        }
        let mut reporting = BTreeSet::new();
        for name in &allowed {
            if reporting::reports(engine, Some(name)).await? {
                reporting.insert(name.clone());
            }
        }
        Ok(Self { default, allowed, reporting })
    }

    pub fn choose(&self, asked: Option<&str>, demanded: Option<&str>) -> Result<String, RuntimeRefused> {
        runtime::choose(asked, demanded, &self.default, &self.allowed)
    }

    pub fn reports(&self, name: &str) -> bool {
        self.reporting.contains(name)
    }

    pub fn any_reports(&self) -> bool {
        !self.reporting.is_empty()
    }

    pub fn default(&self) -> &str {
        &self.default
    }

    pub fn allowed(&self) -> Vec<String> {
        self.allowed.iter().cloned().collect()
    }
}
