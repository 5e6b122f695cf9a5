//! A line as one flat JSON object: the event's own fields, then those of the spans that it is in, the innermost first.
//! So `request_id`, or `task_id`, `run_id` and `attempt`, are where a person and a program look for them. Names with a dot
//! are for traces, and stay out.

use std::fmt;

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) struct Flat;

impl<S> FormatEvent<S, JsonFields> for Flat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (now, metadata) = (Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true), event.metadata());
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), now.into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        event.record(&mut Fields(&mut line));
        line.entry("target").or_insert_with(|| metadata.target().into());
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>();
            let fields =
                fields.and_then(|fields| serde_json::from_str::<Map<String, Value>>(&fields.fields).ok());
            for (name, value) in fields.into_iter().flatten().filter(|(name, _)| !name.contains('.')) {
                line.entry(name).or_insert(value);
            }
        }
        let line = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        // As a raw name is written in the source.
        let name = field.name().trim_start_matches("r#");
        self.0.entry(name).or_insert_with(|| value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::{EnvFilter, Layer as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("whole").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn ids_are_on_every_line_whatever_the_filter_leaves() {
        let kept = Kept::default();
        let writer = kept.clone();
        let logs = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let logs = logs.fmt_fields(JsonFields::new()).event_format(Flat).with_filter(EnvFilter::new("warn"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(logs), || {
            let run = tracing::error_span!("run", run_id = "r1", attempt = 2, otel.name = "a run");
            let _in = run.enter();
            let step = tracing::error_span!("step", attempt = 3);
            let _in = step.enter();
            tracing::info!("not shown");
            tracing::warn!(run_id = "own", level = "FORGED", "shown");
            tracing::error!(count = 7, "too");
        });
        let text = String::from_utf8(kept.0.lock().expect("whole").clone()).expect("UTF-8");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(
            (&lines[0]["run_id"], &lines[0]["attempt"], &lines[0]["level"]),
            (&"own".into(), &3.into(), &"WARN".into())
        );
        assert_eq!((&lines[1]["run_id"], &lines[1]["count"]), (&"r1".into(), &7.into()));
        assert!(!text.contains("otel"), "{text}");
    }
}
