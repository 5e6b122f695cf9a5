//! `kage api`: the network-facing role. It knows Postgres and nothing else: no engine, no repositories,
//! no model credentials.
//!
//! This page is the route table. Each endpoint is a file: its request, its answer, its refusals.

mod audit;
mod auth;
mod edge;
mod extract;
mod health;
mod hub;
mod listener;
mod problem;
mod quarantine;
mod repositories;
mod runs;
mod state;
mod tasks;

use axum::Router;
use axum::middleware;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::api::state::ApiState;
use crate::config::api::ApiConfig;
use crate::lifecycle::Lifecycle;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Kage Bunshin",
        description = "Hands coding tasks to AI command-line agents in locked-down sandboxes, without trusting them. \
                       Errors are RFC 9457 problem details.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&KeyScheme),
    components(schemas(
        crate::wire::problem::Problem,
        crate::wire::event::Connected,
        crate::wire::event::Log,
        crate::wire::event::Notice,
        crate::wire::event::Security,
        crate::wire::event::Progress,
        crate::wire::event::RunResult,
        crate::wire::event::State,
        crate::wire::event::TaskComplete,
    ))
)]
struct Document;

struct KeyScheme;

impl utoipa::Modify for KeyScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        document.components.get_or_insert_default().add_security_scheme("key", scheme);
    }
}

/// Every route that there is.
fn table() -> (OpenApiRouter<ApiState>, OpenApiRouter<ApiState>) {
    let open = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::index))
        .routes(routes!(health::live))
        .routes(routes!(health::live_v1))
        .routes(routes!(health::ready));
    let keyed = OpenApiRouter::new()
        .routes(routes!(tasks::submit::submit_task, tasks::list::list_tasks))
        .routes(routes!(tasks::stats::task_stats))
        .routes(routes!(tasks::get::get_task, tasks::cancel::cancel_task))
        .routes(routes!(tasks::progress::task_progress))
        .routes(routes!(runs::diff::run_diff))
        .routes(routes!(runs::log::run_log))
        .routes(routes!(runs::files::run_files))
        .routes(routes!(repositories::register_repository, repositories::list_repositories))
        .routes(routes!(repositories::get_repository, repositories::remove_repository))
        .routes(routes!(repositories::fetch_repository))
        .routes(routes!(quarantine::list_configuration))
        .routes(routes!(quarantine::list_approvals, quarantine::approve_configuration))
        .routes(routes!(quarantine::revoke_approval))
        .merge(audit::routes());
    (open, keyed)
}

/// The API's description, as `/openapi.json` serves it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (open, keyed) = table();
    open.nest("/api/v1", keyed).into_openapi()
}

fn router(state: &ApiState) -> Router {
    let (open, keyed) = table();
    let keyed = keyed.route_layer(middleware::from_fn_with_state(state.clone(), auth::require_key));
    let (router, document) = open.nest("/api/v1", keyed).split_for_parts();
    router
        .merge(SwaggerUi::new(edge::DOCS).url("/openapi.json", document))
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(axum::extract::DefaultBodyLimit::max(state.config.body_bytes))
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(middleware::from_fn(edge::guard))
        .with_state(state.clone())
}

/// Binds the address.
///
/// # Errors
/// If the address is in use or not ours.
pub async fn bind(config: &ApiConfig) -> std::io::Result<TcpListener> {
    TcpListener::bind(config.listen).await
}

/// Serves until the soft token; open streams end then, and their clients resume elsewhere.
///
/// # Errors
/// If the listener breaks.
pub async fn serve(
    listener: TcpListener,
    pool: PgPool,
    config: ApiConfig,
    lifecycle: &Lifecycle,
) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    let state = ApiState::new(pool, config, lifecycle);
    lifecycle.spawn_essential("hub", hub::listen(state.clone()));
    tracing::info!(%address, "api.listening");
    let listener = listener::Guarded::new(listener, &state.config);
    axum::serve(listener, router(&state))
        .with_graceful_shutdown(lifecycle.soft().clone().cancelled_owned())
        .await
}
