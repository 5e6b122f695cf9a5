//! `kage api`: the network-facing role. It knows Postgres and nothing else: no engine, no repositories,
//! no model credentials.
//!
//! This page is the route table. Each endpoint is a file: its request, its answer, its refusals.

mod alarms;
mod audit;
mod audit_tiles;
mod auth;
mod bearers;
mod bodies;
mod cors;
mod edge;
mod extract;
mod first_key;
mod health;
mod hub;
mod in_span;
mod keys;
mod limits;
mod listener;
mod network;
mod origin;
mod problem;
mod quarantine;
mod refusals;
mod repositories;
mod runs;
mod security_events;
mod sessions;
mod state;
mod streams;
mod table;
mod tasks;
pub mod tls;

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
use crate::api::table::{Keyed, Needs};
use crate::config::api::ApiConfig;
use crate::domain::access::Scope;
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

/// Every route that there is, with what it needs: those for everybody, those below `/api/v1`, and the way out.
fn table() -> (OpenApiRouter<ApiState>, OpenApiRouter<ApiState>, OpenApiRouter<ApiState>) {
    let open = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::index))
        .routes(routes!(health::live))
        .routes(routes!(health::live_v1))
        .routes(routes!(health::ready))
        .routes(routes!(sessions::login::sign_in))
        .routes(routes!(sessions::callback::finish_sign_in));
    let scope = Needs::Scope;
    let (read, write) = (scope(Scope::TasksRead), scope(Scope::TasksWrite));
    let (repos, keys) = (scope(Scope::ReposWrite), scope(Scope::KeysAdmin));
    let audit = Needs::Everything(Scope::AuditRead);
    let keyed = Keyed::new()
        .needs(write, routes!(tasks::submit::submit_task))
        .needs(read, routes!(tasks::list::list_tasks))
        .needs(read, routes!(tasks::stats::task_stats))
        .needs(read, routes!(tasks::get::get_task))
        .needs(write, routes!(tasks::cancel::cancel_task))
        .needs(read, routes!(tasks::progress::task_progress))
        .needs(read, routes!(runs::diff::run_diff))
        .needs(read, routes!(runs::log::run_log))
        .needs(read, routes!(runs::files::run_files))
        .needs(repos, routes!(repositories::register_repository))
        .needs(read, routes!(repositories::list_repositories))
        .needs(read, routes!(repositories::get_repository))
        .needs(repos, routes!(repositories::remove_repository))
        .needs(repos, routes!(repositories::fetch_repository))
        .needs(read, routes!(quarantine::list_configuration))
        .needs(read, routes!(quarantine::list_approvals))
        .needs(repos, routes!(quarantine::approve_configuration))
        .needs(repos, routes!(quarantine::revoke_approval))
        .needs(Needs::Key, routes!(keys::own::own_key))
        .needs(keys, routes!(keys::create::create_key))
        .needs(keys, routes!(keys::list::list_keys))
        .needs(keys, routes!(keys::list::get_key))
        .needs(keys, routes!(keys::rotate::rotate_key))
        .needs(keys, routes!(keys::revoke::revoke_key))
        .needs(Needs::Key, routes!(sessions::own::own_session))
        .needs(keys, routes!(sessions::list::list_sessions))
        .needs(keys, routes!(sessions::revoke::revoke_session))
        .needs(audit, routes!(audit::list_audit))
        .needs(audit, routes!(audit::prove_audit))
        .needs(audit, routes!(audit::audit_checkpoint))
        .needs(audit, routes!(audit::export_audit))
        .needs(audit, routes!(audit_tiles::audit_tile))
        .needs(audit, routes!(security_events::list_security_events))
        .into_router();
    let leave = Keyed::new().needs(Needs::Key, routes!(sessions::logout::sign_out)).into_router();
    (open, keyed, leave)
}

/// The API's description, as `/openapi.json` serves it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (open, keyed, leave) = table();
    let mut document = open.nest("/api/v1", keyed).merge(leave).into_openapi();
    table::describe_all(&mut document);
    document
}

fn router(state: &ApiState) -> Router {
    let (open, keyed, leave) = table();
    let known = middleware::from_fn_with_state(state.clone(), auth::require_key);
    let (keyed, leave) = (keyed.route_layer(known.clone()), leave.route_layer(known));
    let (router, mut document) = open.nest("/api/v1", keyed).merge(leave).split_for_parts();
    table::describe_all(&mut document);
    let router = router
        .merge(SwaggerUi::new(edge::DOCS).url("/openapi.json", document))
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(axum::extract::DefaultBodyLimit::max(state.config.body_bytes))
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(middleware::from_fn_with_state(state.clone(), limits::of_address));
    // Around the limits: what they say may be read too, and a preflight is answered without a key.
    let router = match cors::layer(&state.config.edge.cors_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(middleware::from_fn_with_state(state.clone(), edge::guard))
        .layer(middleware::from_fn_with_state(state.clone(), origin::mark))
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
/// If the listener breaks, or TLS cannot be spoken with the files that are given.
pub async fn serve(
    listener: TcpListener,
    pool: PgPool,
    config: ApiConfig,
    lifecycle: &Lifecycle,
) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    let mut state = ApiState::new(pool, config, lifecycle);
    state.sign_in = sessions::SignIn::open(&state.config).map_err(std::io::Error::other)?;
    first_key::make_known(&state).await.map_err(std::io::Error::other)?;
    lifecycle.spawn_essential("hub", hub::listen(state.clone()));
    lifecycle.spawn_essential("bearers", bearers::follow(state.clone()));
    lifecycle.spawn_essential("refusals", refusals::write(state.clone()));
    lifecycle.spawn_essential("alarms", alarms::write(state.clone()));
    let tls = match &state.config.edge.tls {
        None => None,
        Some(config) => {
            let (tls, follower) = tls::open(config).map_err(std::io::Error::other)?;
            lifecycle.spawn_essential("certificate", follower.run(state.clone()));
            Some(tls)
        }
    };
    tracing::info!(%address, tls = tls.is_some(), "api.listening");
    let listener = listener::Guarded::new(listener, &state.config, tls);
    let service = router(&state).into_make_service_with_connect_info::<origin::Peer>();
    axum::serve(listener, service).with_graceful_shutdown(lifecycle.soft().clone().cancelled_owned()).await
}
