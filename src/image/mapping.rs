//! From a CLI's output lines to events, by the manifest's jq filter.
//!
//! The filter's input is the line as a string (`.`), without its newline; one that speaks JSON begins with
//! `fromjson?`. Its outputs are objects
//! ([`MappedEvent`]) with a `kind`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use jaq_core::load::{Arena, Error as LoadError, Errors, File, Loader, import};
use jaq_core::{Compiler, Ctx, Filter, Vars, unwrap_valr};
use jaq_json::Val;

use crate::image::builtins::{Data, definitions, functions};
use crate::image::mapped::{MappedEvent, event};

/// Longer lines are not looked at, in bytes.
pub const MAX_LINE: usize = 1024 * 1024;

/// Most outputs of one line; the others are ignored.
pub const MAX_OUTPUTS: usize = 16;

/// A compiled filter.
#[derive(Clone)]
pub struct Mapping {
    filter: Arc<Filter<Data>>,
}

/// What a line came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mapped {
    pub events: Vec<MappedEvent>,
    /// Outputs that are no event, errors of the filter, outputs over the limit, lines over the limit.
    pub ignored: u32,
}

/// Why a filter does not compile. Lines and columns count from 1, within the filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter, line {line}, column {column}: {message}")]
pub struct InvalidFilter {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mapping")
    }
}

impl Mapping {
    /// # Errors
    /// [`InvalidFilter`] with the place of the first mistake.
    pub fn compile(filter: &str) -> Result<Self, InvalidFilter> {
        let arena = Arena::default();
        let loader = Loader::new(definitions());
        let program = File { code: filter, path: () };
        let modules = loader.load(&arena, program).map_err(|errors| unreadable(filter, errors))?;
        // Data files are asked for apart from modules, and are refused as well.
        import(&modules, |_| Err("there are no files here".to_owned()))
            .map_err(|errors| unreadable(filter, errors))?;
        let filter = Compiler::default().with_funs(functions()).compile(modules).map_err(|errors| {
            let errors =
                errors.into_iter().flat_map(|(_, errors)| errors).map(|(part, kind)| (kind, part)).collect();
            first_named(filter, errors)
        })?;
        Ok(Self { filter: Arc::new(filter) })
    }

    /// The events of one line. Takes any bytes, and always comes back as fast as the operator's filter does.
    pub fn map_line(&self, line: &[u8]) -> Mapped {
        if line.len() > MAX_LINE {
            return Mapped { events: Vec::new(), ignored: 1 };
        }
        // A bug in a filter's function must cost one line, not the run.
        catch_unwind(AssertUnwindSafe(|| self.run(line))).unwrap_or(Mapped { events: Vec::new(), ignored: 1 })
    }

    fn run(&self, line: &[u8]) -> Mapped {
        let input = Val::utf8_str(line.to_vec());
        let context = Ctx::<Data>::new(&self.filter.lut, Vars::new([]));
        let mut mapped = Mapped::default();
        for output in self.filter.id.run((context, input)).map(unwrap_valr) {
            match output.ok().as_ref().and_then(event) {
                Some(_) if mapped.events.len() == MAX_OUTPUTS => mapped.ignored += 1,
                Some(event) => mapped.events.push(event),
                None => mapped.ignored += 1,
            }
            if mapped.ignored > 0
                && (mapped.ignored as usize >= MAX_OUTPUTS || mapped.events.len() == MAX_OUTPUTS)
            {
                break;
            }
        }
        mapped
    }
}

fn unreadable(filter: &str, errors: Errors<&str, ()>) -> InvalidFilter {
    match errors.into_iter().next().map(|(_, error)| error) {
        Some(LoadError::Lex(errors)) => {
            first(filter, errors, |expected| format!("expected {}", expected.as_str()))
        }
        Some(LoadError::Parse(errors)) => {
            first(filter, errors, |expected| format!("expected {}", expected.as_str()))
        }
        Some(LoadError::Io(errors)) => {
            let errors = errors.into_iter().map(|(part, message)| (message, part)).collect();
            first(filter, errors, String::clone)
        }
        None => InvalidFilter { line: 1, column: 1, message: "cannot be read".to_owned() },
    }
}

fn first<E>(filter: &str, errors: Vec<(E, &str)>, say: impl Fn(&E) -> String) -> InvalidFilter {
    let Some((error, part)) = errors.into_iter().next() else {
        return InvalidFilter { line: 1, column: 1, message: "cannot be read".to_owned() };
    };
    let message = say(&error);
    let found: String = part.chars().take(40).collect();
    let message = if found.is_empty() {
        format!("{message}, found the end")
    } else {
        format!("{message}, found `{found}`")
    };
    let (line, column) = place(filter, part);
    InvalidFilter { line, column, message }
}

fn first_named(filter: &str, errors: Vec<(jaq_core::compile::Undefined, &str)>) -> InvalidFilter {
    let Some((kind, part)) = errors.into_iter().next() else {
        return InvalidFilter { line: 1, column: 1, message: "cannot be compiled".to_owned() };
    };
    let (line, column) = place(filter, part);
    InvalidFilter { line, column, message: format!("there is no {} `{part}` here", kind.as_str()) }
}

fn place(filter: &str, part: &str) -> (usize, usize) {
    let start = (part.as_ptr() as usize).wrapping_sub(filter.as_ptr() as usize);
    let before = filter.get(..start).unwrap_or(filter);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::mapped::{MAX_MESSAGE, Usage};

    const CLI: &str = r#"
        fromjson? |
        if .type == "say" then {kind: "progress", message: .text}
        elif .type == "cost" then {kind: "usage", input_tokens: .in, output_tokens: .out, cost_usd: .usd}
        elif .type == "bad" then {kind: "error", message: .text}
        elif .type == "many" then range(.n) | {kind: "warning", message: tostring}
        elif .type == "odd" then 1, {kind: "unknown"}, {kind: "progress"}, {kind: "progress", message: "ok"}
        elif .type == "inner" then .text | fromjson | {kind: "progress", message: type}
        else empty end"#;

    fn mapping() -> Mapping {
        Mapping::compile(CLI).expect("compiles")
    }

    fn one(event: MappedEvent) -> Mapped {
        Mapped { events: vec![event], ignored: 0 }
    }

    #[test]
    fn maps_lines_to_events() {
        let mapping = mapping();
        assert_eq!(
            mapping.map_line(br#"{"type":"say","text":"a \"b\""}"#),
            one(MappedEvent::Progress("a \"b\"".into()))
        );
        assert_eq!(
            mapping.map_line(br#"{"type":"bad","text":"x\u0000y"}"#),
            one(MappedEvent::Error("x\u{fffd}y".into()))
        );
        let usage = Usage { input_tokens: Some(7), output_tokens: None, cost_usd: Some(0.25) };
        assert_eq!(
            mapping.map_line(br#"{"type":"cost","in":7,"out":-1,"usd":0.25}"#),
            one(MappedEvent::Usage(usage))
        );
        for nothing in [&b"plain text"[..], b"", b"{", b"[1,2]", b"null", b"\xff\xfe", br#"{"type":"other"}"#]
        {
            assert_eq!(mapping.map_line(nothing).events, [], "{nothing:?}");
        }
    }

    #[test]
    fn what_is_no_event_is_counted() {
        let odd = mapping().map_line(br#"{"type":"odd"}"#);
        assert_eq!(odd, Mapped { events: vec![MappedEvent::Progress("ok".into())], ignored: 3 });
        let many = mapping().map_line(br#"{"type":"many","n":1000000000}"#);
        assert_eq!(
            (many.events.len(), many.ignored),
            (MAX_OUTPUTS, 1),
            "an endless filter is left after its outputs"
        );
        let failed = mapping().map_line(br#"{"type":"inner","text":7}"#);
        assert_eq!((failed.events.len(), failed.ignored), (0, 1));
    }

    #[test]
    fn a_hostile_line_neither_hangs_nor_ends_the_process() {
        let mapping = mapping();
        let deep = "[".repeat(MAX_LINE);
        assert_eq!(mapping.map_line(deep.as_bytes()), Mapped::default());
        let deep = format!("{{\"a\":{}", "{\"a\":".repeat(150_000));
        assert_eq!(mapping.map_line(deep.as_bytes()), Mapped::default());
        // Behind a string, where no look at the line itself would see it.
        let hidden = serde_json::json!({"type": "inner", "text": "[".repeat(500_000)}).to_string();
        assert_eq!(mapping.map_line(hidden.as_bytes()).ignored, 1);
        let long = "x".repeat(MAX_LINE + 1);
        assert_eq!(mapping.map_line(long.as_bytes()).ignored, 1);
        let text = "é".repeat(MAX_MESSAGE);
        let line = serde_json::json!({"type": "say", "text": text}).to_string();
        let [MappedEvent::Progress(cut)] = &mapping.map_line(line.as_bytes()).events[..] else {
            panic!("one event")
        };
        assert!(cut.len() <= MAX_MESSAGE + '…'.len_utf8() && cut.ends_with("é…"));
    }

    #[test]
    fn the_line_is_a_string_for_those_that_are_not_json() {
        let filter = r#"select(startswith("> ")) | {kind: "progress", message: .[2:]}"#;
        let mapping = Mapping::compile(filter).expect("compiles");
        assert_eq!(mapping.map_line(b"> step 1"), one(MappedEvent::Progress("step 1".into())));
        assert_eq!(mapping.map_line(b"step 1"), Mapped::default());
    }

    #[test]
    fn a_filter_that_does_not_compile_says_where() {
        for (filter, line, column, word) in [
            ("fromjson? |\n  {kind: progres}", 2, 10, "progres"),
            (". | | .", 1, 5, "|"),
            ("{kind: \"a\"", 1, 11, "brace"),
            ("$ENV", 1, 1, "$ENV"),
            ("$__prog_args", 1, 1, "variable"),
        ] {
            let error = Mapping::compile(filter).expect_err(filter);
            assert_eq!((error.line, error.column), (line, column), "{error}");
            assert!(error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn a_filter_reaches_nothing_outside() {
        for filter in [
            "env",
            "$ENV",
            "input",
            "inputs",
            "debug",
            "debug(1)",
            "stderr",
            "halt",
            "halt_error",
            "halt(1)",
            "input_filename",
            "import \"a\" as a; .",
            "include \"a\"; .",
            "import \"/etc/passwd\" as $d; $d",
            "$__loc__ | env",
            "get_search_list",
        ] {
            assert!(Mapping::compile(filter).is_err(), "{filter}");
        }
    }
}
