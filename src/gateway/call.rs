//! ONE call, told from top to bottom: what it is, whether it may be, what it may cost, the provider's answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use secrecy::SecretString;
use tracing::{Instrument as _, Span};

use crate::db::model_calls::CallOutcome;
use crate::dialect::answer::{self, Refusal, RefusalKind};
use crate::dialect::request::{self, Checked, Rules};
use crate::dialect::route::{self, Call};
use crate::domain::model::Dialect;
use crate::gateway::body::BodyError;
use crate::gateway::booked::Booked;
use crate::gateway::catalog::{self, Resolved};
use crate::gateway::content::{self, Content};
use crate::gateway::environment::Environment;
use crate::gateway::ledger::Ask;
use crate::gateway::relay::{self, Body};
use crate::gateway::served::ServedRun;
use crate::gateway::upstream::{self, SendError};
use crate::gateway::{body, booked, credential, headers, local, notices, refused, tariff};
use crate::traces;

/// Bodies above it are checked away from the threads that pass answers on.
const LARGE_BODY: usize = 256 * 1024;

impl From<BodyError> for Unserved {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Gone => {
                Self::not_booked(Refusal::new(RefusalKind::BadRequest, "the request's body broke off"))
            }
            BodyError::Refused(refusal) => refusal.into(),
        }
    }
}

/// Answers a request, whatever it is, as a part of its run's trace. The provider is told nothing of that.
pub(super) async fn answer(
    environment: Arc<Environment>,
    run: Arc<ServedRun>,
    request: Request<Incoming>,
) -> Response<Body> {
    use tracing::field::Empty;
    let span = tracing::error_span!(
        target: traces::TARGET,
        parent: None,
        "call", task_id = %run.task, run_id = %run.run, attempt = run.attempt, otel.name = "model call", otel.kind = "client", model.provider = run.provider.name,
        model.name = Empty, model.outcome = Empty, model.refusal = Empty, model.tokens.input = Empty,
        model.tokens.output = Empty, model.cost.micros = Empty
    );
    traces::continue_from(&span, run.traceparent.as_deref());
    answered(environment, run, request).instrument(span).await
}

async fn answered(
    environment: Arc<Environment>,
    run: Arc<ServedRun>,
    request: Request<Incoming>,
) -> Response<Body> {
    let head_only = request.method() == Method::HEAD;
    match serve(&environment, &run, request).await {
        Ok(response) if head_only => response.map(|_| relay::full(Bytes::new())),
        Ok(response) => response,
        Err(Unserved { refusal, to_book }) => {
            Span::current().record("model.refusal", refusal.kind.as_str());
            notices::refused(&environment, &run, &refusal);
            let response = refuse(run.dialect, &refusal);
            if to_book {
                refused::book(&environment, &run, &refusal, response.status().as_u16()).await;
            }
            response
        }
    }
}

/// Why a request is not answered by the provider.
struct Unserved {
    refusal: Refusal,
    /// Nothing of it is in the books yet.
    to_book: bool,
}

impl Unserved {
    /// Of something that costs nothing, or that is in the books as a call.
    fn not_booked(refusal: Refusal) -> Self {
        Self { refusal, to_book: false }
    }
}

impl From<Refusal> for Unserved {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, to_book: true }
    }
}

/// A refusal in the dialect's own words.
pub(super) fn refuse(dialect: Dialect, refusal: &Refusal) -> Response<Body> {
    let answer = answer::answer(dialect, refusal);
    let mut response = Response::new(relay::full(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

async fn serve(
    environment: &Arc<Environment>,
    run: &Arc<ServedRun>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Unserved> {
    let started = Instant::now();
    let uri = request.uri();
    let call = route::route(run.dialect, request.method().as_str(), uri.path(), uri.query())
        .map_err(Unserved::not_booked)?;
    let costs = matches!(call, Call::Generate { .. });
    let served = serve_call(environment, run, call, request, started).await;
    served.map_err(|unserved| Unserved { to_book: unserved.to_book && costs, ..unserved })
}

async fn serve_call(
    environment: &Arc<Environment>,
    run: &Arc<ServedRun>,
    call: Call,
    request: Request<Incoming>,
    started: Instant,
) -> Result<Response<Body>, Unserved> {
    if run.is_stopped() {
        return Err(Refusal::new(RefusalKind::BudgetExhausted, "the run's budget is exhausted").into());
    }
    run.admit().map_err(|retry_after_secs| {
        Refusal::new(RefusalKind::RateLimited { retry_after_secs }, "too many requests in one minute")
    })?;
    if !matches!(call, Call::Generate { .. } | Call::CountTokens { .. }) {
        let models = catalog::listed(&run.provider, &run.policy, &run.model);
        let text = local::answer(run.dialect, &call, &models).to_string();
        let mut response = Response::new(relay::full(text));
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return Ok(response);
    }
    let busy = || {
        let kind = RefusalKind::RateLimited { retry_after_secs: booked::BUSY_SECS };
        Refusal::new(kind, "too many calls of this run at once")
    };
    let permit = Arc::clone(&run.calls).try_acquire_owned().map_err(|_| busy())?;
    let (parts, body) = request.into_parts();
    let (body, _memory) = body::read(environment, run, body).await?;
    let checked = check(environment, run, &call, &body, run.rules.clone()).await?;
    let resolved = catalog::resolve(&run.provider, &run.policy, &checked.model).ok_or_else(|| {
        let shown: String = checked.model.chars().take(100).flat_map(char::escape_debug).collect();
        Refusal::new(RefusalKind::ModelNotAllowed, format!("the model {shown} is not allowed"))
    })?;
    let new: Vec<&str> =
        checked.removed.iter().map(String::as_str).filter(|removed| run.is_new(removed)).collect();
    if !new.is_empty() {
        notices::remark(
            environment,
            run,
            "model.scrub",
            &format!("taken out of requests: {}", new.join("; ")),
        );
    }
    let prepared = Prepared { call, client: parts.headers, resolved };
    if matches!(prepared.call, Call::CountTokens { .. }) {
        return Ok(count_tokens(environment, run, &prepared, checked).await?);
    }
    generate(environment, run, &prepared, checked, &body, started, permit).await
}

/// What is known of a call that may be made.
struct Prepared {
    call: Call,
    client: HeaderMap,
    resolved: Resolved,
}

async fn check(
    environment: &Environment,
    run: &ServedRun,
    call: &Call,
    body: &Bytes,
    rules: Rules,
) -> Result<Checked, Refusal> {
    if body.len() <= LARGE_BODY {
        return request::check(run.dialect, call, body, &rules);
    }
    let overloaded = || Refusal::new(RefusalKind::Overloaded, "the gateway is closing");
    let _turn = environment.parsing.acquire().await.map_err(|_| overloaded())?;
    let (dialect, call, body) = (run.dialect, call.clone(), body.clone());
    let checked = tokio::task::spawn_blocking(move || request::check(dialect, &call, &body, &rules)).await;
    checked.map_err(|_| overloaded())?
}

/// Books, sends and relays a call that costs something.
async fn generate(
    environment: &Arc<Environment>,
    run: &Arc<ServedRun>,
    prepared: &Prepared,
    mut checked: Checked,
    body: &Bytes,
    started: Instant,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> Result<Response<Body>, Unserved> {
    let mut resolved = prepared.resolved.clone();
    resolved.price =
        tariff::with_server_tools(&run.provider, &resolved.model, resolved.price, &checked.server_tools)?;
    let ask = Ask {
        model_asked: checked.model.clone(),
        resolved,
        input: checked.input_estimate,
        most_input: checked.input_bound,
        output: checked.output_limit,
        streamed: checked.stream,
    };
    let mut booked = Booked::hold(environment, run, ask, started, permit).await?;
    run.note_booked();
    let output = booked.output();
    if output < checked.output_limit {
        // A smaller answer can be paid: the request is written anew with that limit.
        let rules = Rules { max_output_tokens: output, default_output_tokens: output, ..run.rules.clone() };
        checked = check(environment, run, &prepared.call, body, rules).await?;
    }
    if let Some(note) = &prepared.resolved.price_note {
        notices::remark(environment, run, "model.price", note);
    }
    let secret = match secret(environment, run).await {
        Ok(secret) => secret,
        Err(refusal) => {
            booked.end(CallOutcome::UpstreamAuth, None, Some(refusal.message.clone())).await;
            return Err(Unserved::not_booked(refusal));
        }
    };
    let call_secs = run.provider.call_secs.map_or(environment.config.call, Duration::from_secs);
    let deadline = tokio::time::Instant::now() + call_secs;
    booked.sent = true;
    booked.secret.clone_from(&secret);
    let said = &mut booked.content;
    let answered = match send(environment, run, prepared, checked, secret.as_ref(), deadline, said).await {
        Ok(answer) if answer.status().is_success() => relay::success(booked, answer, deadline).await,
        Ok(answer) => upstream_error(booked, answer).await,
        Err(Unsent { outcome, refusal, detail }) => {
            booked.sent = outcome != CallOutcome::Unreachable;
            tracing::warn!(run = %run.run, provider = run.provider.name, detail, "gateway.upstream_failed");
            booked.end(outcome, None, Some(refusal.message.clone())).await;
            Err(refusal)
        }
    };
    answered.map_err(Unserved::not_booked)
}

async fn secret(environment: &Environment, run: &ServedRun) -> Result<Option<SecretString>, Refusal> {
    environment.credentials.of(&run.provider).await.map_err(|error| {
        tracing::error!(provider = run.provider.name, %error, "gateway.credential_missing");
        let text = format!("the operator's credential for provider {} is missing", run.provider.name);
        Refusal::new(RefusalKind::UpstreamAuth, text)
    })
}

/// A call that got no answer.
struct Unsent {
    outcome: CallOutcome,
    refusal: Refusal,
    /// For the operator's log alone.
    detail: String,
}

async fn send(
    environment: &Environment,
    run: &ServedRun,
    prepared: &Prepared,
    mut checked: Checked,
    secret: Option<&SecretString>,
    deadline: tokio::time::Instant,
    content: &mut Content,
) -> Result<reqwest::Response, Unsent> {
    let model = &prepared.resolved.model;
    checked.set_model(run.dialect, model);
    let path = route::upstream_path(run.dialect, &prepared.call, model, checked.stream);
    let mut out = upstream::provider_headers(&run.provider, secret);
    headers::to_provider(run.dialect, &prepared.client, checked.stream, &mut out);
    // A `Value` has no keys but text.
    let body = serde_json::to_vec(&checked.body).unwrap_or_default();
    drop(checked);
    content.note_request(&body);
    let idle = run.provider.idle_secs.map_or(environment.config.idle, Duration::from_secs);
    let until = deadline.min(tokio::time::Instant::now() + idle);
    let sending = environment.upstream.send(&run.provider, Method::POST, &path, out, body.into());
    let unsent = |outcome, kind, text: &str, detail: String| Unsent {
        outcome,
        refusal: Refusal::new(kind, format!("provider {}: {text}", run.provider.name)),
        detail,
    };
    tokio::select! {
        () = run.end.cancelled() => {
            Err(unsent(CallOutcome::Aborted, RefusalKind::Revoked, "the run has ended", String::new()))
        }
        answer = tokio::time::timeout_at(until, sending) => match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error @ (SendError::Connect(_) | SendError::Setup(_)))) => {
                let kind = RefusalKind::UpstreamUnavailable;
                Err(unsent(CallOutcome::Unreachable, kind, "it cannot be reached", error.to_string()))
            }
            Ok(Err(error @ SendError::Broken(_))) => {
                let kind = RefusalKind::UpstreamBroken;
                Err(unsent(CallOutcome::Broken, kind, "its answer broke off", error.to_string()))
            }
            Err(_) => {
                let kind = RefusalKind::UpstreamTimeout;
                Err(unsent(CallOutcome::Timeout, kind, "it does not answer", String::new()))
            }
        },
    }
}

/// An answer with another status than 2xx. What concerns the operator's account stays here; what concerns the
/// request is passed on in the provider's words.
async fn upstream_error(mut booked: Booked, answer: reqwest::Response) -> Result<Response<Body>, Refusal> {
    let status = answer.status();
    let (name, secret) = (booked.run.provider.name.clone(), booked.secret.clone());
    let refusal =
        |kind, text: &str| Refusal::new(kind, format!("provider {name}: {text} (HTTP {})", status.as_u16()));
    let head = headers::to_client(answer.headers(), headers::BodyKind::Json, secret.as_ref());
    let retry_after = answer.headers().get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after_secs = retry_after.and_then(|text| text.parse().ok()).unwrap_or(5).min(3600);
    let document = if status.as_u16() >= 400 {
        relay::short_document(answer, &mut booked.content).await
    } else {
        booked.content.leave_out(content::REDIRECT);
        None
    };
    if answer::is_about_the_key(booked.run.dialect, status.as_u16(), document.as_deref()) {
        let refusal = refusal(RefusalKind::UpstreamAuth, "it refuses the operator's credential or account");
        tracing::error!(provider = name, status = status.as_u16(), "gateway.credential_refused");
        booked.end(CallOutcome::UpstreamAuth, None, Some(refusal.message.clone())).await;
        return Err(refusal);
    }
    let fallback = match status.as_u16() {
        429 => refusal(RefusalKind::RateLimited { retry_after_secs }, "it asks to slow down"),
        413 => refusal(RefusalKind::TooLarge, "the request is too large for it"),
        400..500 => refusal(RefusalKind::BadRequest, "it refuses the request"),
        300..400 => refusal(RefusalKind::UpstreamBroken, "it redirects, which is not followed"),
        _ => refusal(RefusalKind::UpstreamUnavailable, "it reports a failure"),
    };
    let passed = document.filter(|text| is_clean(text, secret.as_ref()));
    booked.status = passed.as_ref().map(|_| status.as_u16());
    let (environment, run) = (Arc::clone(&booked.environment), Arc::clone(&booked.run));
    booked.end(CallOutcome::UpstreamError, None, Some(fallback.message.clone())).await;
    let Some(document) = passed else { return Err(fallback) };
    notices::refused(&environment, &run, &fallback);
    let mut response = Response::new(relay::full(document));
    *response.status_mut() = status;
    *response.headers_mut() = head;
    Ok(response)
}

/// Whether a document of the provider's may go on to the CLI.
fn is_clean(text: &Bytes, secret: Option<&SecretString>) -> bool {
    !secret.is_some_and(|secret| credential::appears_in(secret, text))
}

/// How long a request is: asked of the provider, costs nothing, is not booked.
async fn count_tokens(
    environment: &Arc<Environment>,
    run: &Arc<ServedRun>,
    prepared: &Prepared,
    checked: Checked,
) -> Result<Response<Body>, Refusal> {
    let secret = secret(environment, run).await?;
    let deadline = tokio::time::Instant::now() + environment.config.idle;
    // It is no entry of the trail.
    let content = &mut Content::default();
    let sent = send(environment, run, prepared, checked, secret.as_ref(), deadline, content).await;
    let answer = sent.map_err(|unsent| unsent.refusal)?;
    let status = answer.status();
    let broken = || {
        let text = format!("provider {}: it cannot count (HTTP {})", run.provider.name, status.as_u16());
        Refusal::new(RefusalKind::UpstreamBroken, text)
    };
    let head = headers::to_client(answer.headers(), headers::BodyKind::Json, secret.as_ref());
    if !status.is_success() {
        return Err(broken());
    }
    let document =
        relay::short_document(answer, content).await.filter(|text| is_clean(text, secret.as_ref()));
    let document = document.ok_or_else(broken)?;
    let mut response = Response::new(relay::full(document));
    *response.headers_mut() = head;
    Ok(response)
}
