//! Sends spans to a collector: OTLP over HTTP, in protobuf. They wait in a bounded queue; what does not fit is dropped, and
//! nothing of a request or a run ever waits for the collector.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider,
    ShouldSample,
};
use reqwest::redirect;
use tokio::runtime::Handle;
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use crate::traces::TARGET;

/// Of the protocol, beneath the endpoint.
const SIGNAL: &str = "v1/traces";
/// Spans that wait at most.
const WAITING: usize = 8192;
const EVERY: Duration = Duration::from_secs(1);
/// For one batch.
const WITHIN: Duration = Duration::from_secs(10);
/// For what is left at the end.
const LAST_WITHIN: Duration = Duration::from_secs(3);
/// Of a collector's answer.
const ANSWER_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("KAGE_OTLP_ENDPOINT: {0}")]
    Client(#[source] reqwest::Error),
    #[error("KAGE_OTLP_ENDPOINT: {0}")]
    Exporter(#[source] ExporterBuildError),
}

/// A process's way to the collector.
pub struct Exporting {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Exporting {
    /// # Errors
    /// [`SetupError`]. That nobody answers there is none: it is logged at each batch.
    pub fn start(role: &str, endpoint: &Url) -> Result<Self, SetupError> {
        let url = format!("{}/{SIGNAL}", endpoint.as_str().trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(WITHIN)
            .with_http_client(Sender::new().map_err(SetupError::Client)?)
            .build()
            .map_err(SetupError::Exporter)?;
        let batch =
            BatchConfigBuilder::default().with_max_queue_size(WAITING).with_scheduled_delay(EVERY).build();
        // Without what the SDK would find out about this machine and its environment.
        let resource = Resource::builder_empty()
            .with_service_name(format!("kage-{role}"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batch).build())
            .with_resource(resource)
            .with_sampler(Ours)
            // Events are lines of the log, whose words may be anybody's.
            .with_max_events_per_span(0)
            .with_max_attributes_per_span(32)
            .build();
        let tracer = provider.tracer("kage");
        Ok(Self { provider, tracer })
    }

    /// Sends what waits, and ends.
    pub async fn end(self) {
        // It blocks on the exporter's thread, which needs this runtime.
        let ended =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(LAST_WITHIN)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("traces.not_all_sent");
        }
    }
}

/// Not with a filter of the layer's own: where a library asks whether a line would be logged, as sqlx does, and then
/// logs none, the registry keeps that answer for the next span, and loses it.
pub fn layer<S>(exporting: &Exporting) -> OpenTelemetryLayer<S, SdkTracer>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_opentelemetry::layer()
        .with_tracer(exporting.tracer.clone())
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        // The sampler looks at it.
        .with_target(true)
}

/// Samples the spans with our [`TARGET`], and no other. A client's word that it is not to be seen counts for nothing.
#[derive(Debug, Clone, Copy)]
struct Ours;

impl ShouldSample for Ours {
    fn should_sample(
        &self,
        _: Option<&Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        attributes: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let ours = attributes.iter().any(|it| it.key.as_str() == "target" && it.value.as_str() == TARGET);
        SamplingResult {
            decision: if ours { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop },
            attributes: Vec::new(),
            // A client's would be passed on to the collector.
            trace_state: TraceState::default(),
        }
    }
}

/// The exporter has a thread of its own without a runtime: requests are made on ours.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
}

impl Sender {
    fn new() -> Result<Self, reqwest::Error> {
        // Fails only where one is installed already, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The environment's own proxies count for nothing, as everywhere here.
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(WITHIN)
            .redirect(redirect::Policy::none())
            .build()?;
        Ok(Self { client, runtime: Handle::current() })
    }
}

#[async_trait::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let request = reqwest::Request::try_from(request).map_err(reqwest::Error::without_url)?;
            let answer = client.execute(request).await.map_err(reqwest::Error::without_url)?;
            read(answer).await
        });
        sent.await?
    }
}

async fn read(mut answer: reqwest::Response) -> Result<Response<Bytes>, HttpError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + chunk.len() > ANSWER_BYTES {
            return Err("the collector's answer is too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    let mut response = Response::new(body.freeze());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}
