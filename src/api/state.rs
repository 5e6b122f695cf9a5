//! What the handlers share.

use std::sync::Arc;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::api::alarms::Alarms;
use crate::api::bearers::Bearers;
use crate::api::bodies::Bodies;
use crate::api::hub::Hub;
use crate::api::limits::Limits;
use crate::api::refusals::Refusals;
use crate::api::sessions::SignIn;
use crate::api::streams::Streams;
use crate::config::api::ApiConfig;
use crate::lifecycle::Lifecycle;

#[derive(Clone)]
pub(super) struct ApiState {
    pub pool: PgPool,
    pub config: Arc<ApiConfig>,
    pub hub: Arc<Hub>,
    pub bearers: Arc<Bearers>,
    pub refusals: Arc<Refusals>,
    pub limits: Arc<Limits>,
    pub alarms: Arc<Alarms>,
    /// `None`: nobody signs in.
    pub sign_in: Option<Arc<SignIn>>,
    pub streams: Arc<Streams>,
    pub bodies: Arc<Bodies>,
    /// Streams end when it is cancelled.
    pub soft: CancellationToken,
}

impl ApiState {
    pub fn new(pool: PgPool, config: ApiConfig, lifecycle: &Lifecycle) -> Self {
        Self {
            pool,
            hub: Arc::new(Hub::default()),
            bearers: Arc::new(Bearers::default()),
            refusals: Arc::new(Refusals::default()),
            limits: Arc::new(Limits::new(config.edge.rates)),
            alarms: Arc::new(Alarms::default()),
            sign_in: None,
            streams: Arc::new(Streams::new(config.streams, config.streams_key)),
            bodies: Arc::new(Bodies::new(config.bodies_bytes)),
            config: Arc::new(config),
            soft: lifecycle.soft().clone(),
        }
    }
}
