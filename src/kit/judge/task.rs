//! The task of three turns: write a file, run a command, say so.

use kage_model_server::script;
use kage_model_server::script::{Action, Script, Turn};

use crate::domain::judgement::Judge;
use crate::image::manifest::Manifest;
use crate::image::mapped::{MappedEvent, Usage};
use crate::kit::judge::prompts;
use crate::kit::observed::{Ended, Observed};
use crate::kit::report::{Item, Need, counted};

const FILE: &str = "kit-hello.txt";
const CONTENT: &str = "Hello from the kit.\nIt's \"quoted\".\n";
const SHELL_FILE: &str = "kit-shell.txt";
const LAST_WORDS: &str = "The kit-hello file is written.";
/// Of each turn.
const USAGE: script::Usage = script::Usage { input: 1200, output: 34, cached_input: 0, cache_write: 0 };

pub fn script() -> Script {
    let turn = |text: &str, call: Vec<Action>| Turn {
        text: Some(text.to_owned()),
        call,
        usage: Some(USAGE),
        ..Turn::default()
    };
    let write = Action::WriteFile { path: FILE.to_owned(), content: CONTENT.to_owned() };
    let shell = Action::Shell { command: format!("cat {FILE} > {SHELL_FILE}") };
    let turns = vec![
        turn("I write the file first.", vec![write]),
        turn("Now the command.", vec![shell]),
        turn(LAST_WORDS, Vec::new()),
    ];
    Script { turns, repeat: false }
}

pub const PROMPT: &str = "Write kit-hello.txt, then run one command, then say that you are done.";

/// Whether the file came to be as the script says.
fn edited(observed: &Observed) -> Result<String, String> {
    let path = format!("/workspace/{FILE}");
    match observed.changed.iter().find(|entry| entry.path == path) {
        // Editors differ in whether they end a file with a newline.
        Some(entry) if entry.bytes.trim_ascii_end() == CONTENT.trim_ascii_end().as_bytes() => {
            Ok(String::new())
        }
        Some(entry) => Err(format!("{path} holds {:?}", String::from_utf8_lossy(&entry.bytes))),
        None => Err(format!("there is no {path}; {}; {}", observed.ending(), observed.last_words())),
    }
}

fn success(observed: &Observed, manifest: &Manifest) -> Result<String, String> {
    let said = observed.regarded(manifest).map(|()| observed.ending());
    said.map_err(|why| format!("{why}; {}", observed.last_words()))
}

/// As the runner's own user.
pub fn items(observed: &Observed, manifest: &Manifest) -> Vec<Item> {
    let mut items = vec![
        Item::new(
            "starts",
            Need::Must,
            "starts under the sandbox's profile, on a read-only root, and asks the model",
            match &observed.exited.spawn_error {
                Some(error) => Err(error.clone()),
                None if observed.model_calls() == 0 => {
                    Err(format!("no request came; {}; {}", observed.ending(), observed.last_words()))
                }
                None => Ok(String::new()),
            },
        ),
        // The script answers whatever it is asked.
        observed.item(
            "gets-the-prompt",
            Need::Must,
            "the model gets the prompt",
            prompts::arrives(PROMPT, observed).map(str::to_owned),
        ),
        observed.item("edits-a-file", Need::Must, "writes a file when the model says so", edited(observed)),
        observed.item(
            "runs-a-command",
            Need::Should,
            "runs a shell command when the model says so",
            if observed.changed.iter().any(|entry| entry.path == format!("/workspace/{SHELL_FILE}")) {
                Ok(String::new())
            } else {
                Err("it did not (a CLI without tools cannot)".to_owned())
            },
        ),
        observed.item("succeeds", Need::Must, "a good run counts as one", success(observed, manifest)),
        observed.item(
            "ends",
            Need::Should,
            "exits by itself after its last word",
            match observed.ended {
                Ended::ByItself => Ok(observed.final_event.map_or(String::new(), |at| {
                    let after = observed.total.saturating_sub(at).as_secs_f64();
                    format!("{after:.1} s after its final event")
                })),
                _ => Err(observed.ending()),
            },
        ),
    ];
    items.extend(event_items(observed, manifest));
    items.push(observed.item("usage", Need::Should, "says what it used", usage(observed)));
    items
}

/// How many those are.
pub const fn count(manifest: &Manifest) -> usize {
    if manifest.events.is_some() { 11 } else { 8 }
}

/// As a user whom the image does not know.
pub fn foreign_item(observed: &Observed, manifest: &Manifest) -> Item {
    let prompt = prompts::arrives(PROMPT, observed);
    let seen = edited(observed).and(prompt).and_then(|_| success(observed, manifest));
    Item::new("foreign-user", Need::Must, "does the same as a user whom the image does not know", seen)
}

fn event_items(observed: &Observed, manifest: &Manifest) -> Vec<Item> {
    if manifest.events.is_none() {
        let why = "the manifest has no `events` filter: watchers see the log alone";
        return vec![Item::new("events", Need::Should, "its output becomes events", Err(why.to_owned()))];
    }
    let has = |wanted: fn(&MappedEvent) -> bool| observed.events.iter().any(wanted);
    let found = |is: bool, missing: &str| if is { Ok(String::new()) } else { Err(missing.to_owned()) };
    let last_words = last_words(observed);
    let said = says(observed, &last_words);
    let calls = has(|event| matches!(event, MappedEvent::ToolCall { .. }));
    let results = has(|event| matches!(event, MappedEvent::ToolResult { .. }));
    let last = has(|event| matches!(event, MappedEvent::Final(_)));
    let need_last = if manifest.judge == Judge::Final { Need::Must } else { Need::Should };
    vec![
        observed.item(
            "events",
            Need::Must,
            "what the model says becomes an event",
            found(
                said,
                &format!("no event (`assistant` or `final`) has the model's last words {last_words:?}"),
            )
            .map(|_| counted(observed.events.len(), "event", "events")),
        ),
        observed.item(
            "events-tools",
            Need::Should,
            "tool calls and results become events",
            match (calls, results) {
                (true, true) => Ok(String::new()),
                (false, _) => Err("no `tool_call`".to_owned()),
                (true, false) => Err("no `tool_result`".to_owned()),
            },
        ),
        observed.item("events-final", need_last, "it says when it is done", found(last, "no `final`")),
        observed.item(
            "events-clean",
            Need::Should,
            "the filter gives out events only",
            if observed.ignored == 0 {
                Ok(String::new())
            } else {
                let outputs = counted(observed.ignored as usize, "output was", "outputs were");
                Err(format!("{outputs} none"))
            },
        ),
    ]
}

/// What the model said in the last turn that was played: a CLI without an agent's loop takes one only.
fn last_words(observed: &Observed) -> String {
    // A CLI that asks once more ("are you done?") gets the last turn again.
    let played = observed.requests.iter().filter_map(|request| request.turn).next_back();
    script().turn(played.unwrap_or(1).saturating_sub(1)).text.unwrap_or_default()
}

/// Whether the events hold a text, which may have come in pieces.
fn says(observed: &Observed, text: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<String>();
    let mut all = String::new();
    for event in &observed.events {
        match event {
            MappedEvent::Assistant(text) | MappedEvent::Progress(text) => all.push_str(&plain(text)),
            MappedEvent::Final(last) => all.push_str(&plain(last.message.as_deref().unwrap_or_default())),
            _ => {}
        }
    }
    all.contains(&plain(text))
}

/// What it claims in all, against what the model server gave out. Only a claim: the gateway counts for itself.
fn usage(observed: &Observed) -> Result<String, String> {
    let claimed = Usage::claimed(&observed.events);
    let Some(claimed) = claimed else {
        return Err("no `usage`; the gateway's own count is shown".to_owned());
    };
    let calls = observed.model_calls() as u64;
    let (input, output) = (calls * USAGE.input, calls * USAGE.output);
    let said = format!(
        "{} in, {} out; given were {input} in, {output} out",
        claimed.input_tokens.map_or("?".to_owned(), |n| n.to_string()),
        claimed.output_tokens.map_or("?".to_owned(), |n| n.to_string()),
    );
    let right = claimed.input_tokens == Some(input) && claimed.output_tokens == Some(output);
    if right { Ok(said) } else { Err(said) }
}
