//! What the gateway's loops and calls share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::PgPool;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::gateway::GatewayConfig;
use crate::gateway::catalog::Catalog;
use crate::gateway::credential::Credentials;
use crate::gateway::served::ServedRun;
use crate::gateway::upstream::{SetupError, Upstream};
use crate::lifecycle::Lifecycle;
use crate::redact::known::Known;
use crate::redact::patterns::Patterns;

/// Large bodies that are parsed at once: JSON takes many times its text's size in memory.
const PARSED_AT_ONCE: usize = 4;

pub(super) struct Environment {
    pub pool: PgPool,
    pub config: GatewayConfig,
    pub lifecycle: Lifecycle,
    pub catalog: Catalog,
    pub credentials: Credentials,
    /// What must not be stored of a CLI's or a provider's words.
    known: Known,
    pub upstream: Upstream,
    pub parsing: Semaphore,
    /// One permit for each kibibyte that requests of all runs take in memory.
    pub memory: Arc<Semaphore>,
    /// The grants are to be looked at.
    pub wake: Notify,
    /// Nobody comes in any more; calls under way go on.
    pub shut: CancellationToken,
    served: Mutex<HashMap<Uuid, Arc<ServedRun>>>,
}

impl Environment {
    pub fn open(
        pool: PgPool,
        config: GatewayConfig,
        lifecycle: &Lifecycle,
        to_the_last: bool,
    ) -> Result<Arc<Self>, SetupError> {
        let catalog = Catalog::new(&config.providers);
        let credentials = Credentials::new(&config.providers, &config.resolver);
        Ok(Arc::new(Self {
            upstream: Upstream::new(&config)?,
            catalog,
            known: Known::new(&credentials.all()),
            credentials,
            parsing: Semaphore::new(PARSED_AT_ONCE),
            memory: Arc::new(Semaphore::new(config.memory_bytes / 1024)),
            wake: Notify::new(),
            shut: if to_the_last { lifecycle.hard().clone() } else { lifecycle.soft().clone() },
            served: Mutex::default(),
            lifecycle: lifecycle.clone(),
            pool,
            config,
        }))
    }

    /// Another's words as they may be stored.
    pub fn without_secrets(&self, text: &str) -> String {
        let mut text = text.to_owned();
        self.patterns().redact_text(&mut text);
        text
    }

    /// What must not be stored.
    pub fn patterns(&self) -> Arc<Patterns> {
        self.known.patterns()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<ServedRun>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn served(&self, run: Uuid) -> Option<Arc<ServedRun>> {
        self.lock().get(&run).cloned()
    }

    pub fn all_served(&self) -> Vec<Arc<ServedRun>> {
        self.lock().values().cloned().collect()
    }

    pub fn serve(&self, run: Arc<ServedRun>) {
        self.lock().insert(run.run, run);
    }

    /// Its socket is closed and its calls are settled.
    pub fn forget(&self, run: &ServedRun) {
        let mut served = self.lock();
        if served.get(&run.run).is_some_and(|current| current.attempt == run.attempt) {
            served.remove(&run.run);
        }
    }
}
