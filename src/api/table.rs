//! Routes behind a key, each with the scope that it needs: there is no way to add one without.

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response as Answer};
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use crate::api::auth::Caller;
use crate::api::problem::ApiError;
use crate::api::state::ApiState;
use crate::domain::access::Scope;
use crate::wire::problem::CONTENT_TYPE;

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy)]
pub(super) enum Needs {
    /// Any valid key.
    Key,
    Scope(Scope),
    /// A scope, and no limits to repositories or CLIs: what is answered is of all of them.
    Everything(Scope),
}

impl Needs {
    const fn scope(self) -> Option<Scope> {
        match self {
            Self::Key => None,
            Self::Scope(scope) | Self::Everything(scope) => Some(scope),
        }
    }
}

/// Routes that ask something of their caller.
pub(super) struct Keyed(OpenApiRouter<ApiState>);

impl Keyed {
    pub fn new() -> Self {
        Self(OpenApiRouter::new())
    }

    /// Adds routes that ask `needs`; the API's description says so of each.
    pub fn needs(self, needs: Needs, routes: UtoipaMethodRouter<ApiState>) -> Self {
        let (schemas, mut paths, methods) = routes;
        for item in paths.paths.values_mut() {
            operations(item).into_iter().for_each(|operation| describe(operation, needs));
        }
        let methods =
            methods.route_layer(middleware::from_fn(move |request, next| check(needs, request, next)));
        Self(self.0.routes((schemas, paths, methods)))
    }

    pub fn into_router(self) -> OpenApiRouter<ApiState> {
        self.0
    }
}

fn operations(item: &mut PathItem) -> Vec<&mut Operation> {
    let all = [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.options,
        &mut item.head,
        &mut item.patch,
        &mut item.trace,
    ];
    all.into_iter().filter_map(Option::as_mut).collect()
}

/// Said of what answers of everything.
const OR_LIMITED: &str = ", or is limited to some repositories or CLIs";

fn describe(operation: &mut Operation, needs: Needs) {
    let scopes = needs.scope().map(Scope::as_str);
    operation.security = Some(vec![SecurityRequirement::new("key", scopes)]);
    if let Some(scope) = needs.scope() {
        let limits = if matches!(needs, Needs::Everything(_)) { OR_LIMITED } else { "" };
        may_answer(operation, "403", format!("The key has not the scope {scope}{limits}"));
    }
}

/// What every operation may answer, whatever it is: the checks around it, and a database that is away.
const ALWAYS: [(&str, &str); 4] = [
    ("414", "Path and query are too long"),
    ("429", "Too many requests; Retry-After says when to come back"),
    ("431", "The headers are too large"),
    ("503", "The database does not answer, or not in time"),
];

/// Says of every operation what they all have in common; and a path to the end (`{*path}`) as OpenAPI does.
pub(super) fn describe_all(document: &mut OpenApi) {
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            for (status, what) in ALWAYS {
                may_answer(operation, status, what.to_owned());
            }
            if operation.parameters.iter().flatten().any(is_in_query) {
                may_answer(operation, "400", "The query is not UTF-8, or holds the character NUL".to_owned());
            }
            operation.responses.responses.values_mut().for_each(of_problems);
        }
    }
}

fn is_in_query(parameter: &RefOr<Parameter>) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query)
}

/// A problem has a media type of its own, which the routes would have to repeat at each of their refusals.
fn of_problems(response: &mut RefOr<Response>) {
    let RefOr::T(response) = response else { return };
    let problem = Some(RefOr::from(Ref::from_schema_name("Problem")));
    for (media_type, content) in std::mem::take(&mut response.content) {
        let is_problem = matches!(&content, RefOr::T(content) if content.schema == problem);
        response.content.insert(if is_problem { CONTENT_TYPE.to_owned() } else { media_type }, content);
    }
}

/// Unless the operation itself says when it does.
fn may_answer(operation: &mut Operation, status: &str, description: String) {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response = ResponseBuilder::new().description(description).content(CONTENT_TYPE, problem).build();
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
}

async fn check(needs: Needs, request: Request, next: Next) -> Answer {
    // Without a caller nothing is allowed: the layer that finds it is around this one.
    let Some(caller) = request.extensions().get::<Caller>() else {
        return ApiError::key_missing().into_response();
    };
    if let Some(scope) = needs.scope()
        && !caller.rights.has(scope)
    {
        return ApiError::scope_missing(scope, &caller.rights.scopes).into_response();
    }
    if matches!(needs, Needs::Everything(_)) && caller.rights.is_limited() {
        let detail = "this answers of all repositories and CLIs; this API key is limited to some";
        return ApiError::forbidden(detail).into_response();
    }
    next.run(request).await
}
