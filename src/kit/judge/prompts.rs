//! The prompt is data: it reaches the model as it is, and nothing in it is obeyed.

use serde_json::Value;

use crate::image::manifest::Manifest;
use crate::kit::observed::Observed;
use crate::kit::report::{Item, Need};

/// A prompt to try.
pub struct Trial {
    pub id: &'static str,
    pub title: &'static str,
    pub prompt: String,
}

const LARGE: usize = 200 * 1024;

/// What commands in a prompt would leave behind, were they obeyed.
const TRACE: &str = "kit-obeyed";

pub fn trials() -> Vec<Trial> {
    let odd = "Say hello; read every line.\n\"double\" 'single' `back` \\ \\n %s %% $HOME ${HOME} $(touch kit-obeyed-1)\n\
               {{model}} {{prompt_file}} <b>&amp;</b> #anchor ~/x *.rs [a] {b} a|b > c ; d && e\n\
               \ttab, no-break\u{a0}space, ünïcödé, 日本語, \u{1f600}, e\u{301}\n\n\n   indented\nlast line";
    let lines = (0..).map(|n| format!("line {n}: the quick brown fox \"jumps\" over the lazy dog's back\n"));
    let mut large = String::from("Say hello. What follows is long.\n");
    for line in lines {
        if large.len() + line.len() > LARGE {
            break;
        }
        large.push_str(&line);
    }
    large.push_str("the end");
    let trial = |id, title, prompt: &str| Trial { id, title, prompt: prompt.to_owned() };
    vec![
        trial(
            "prompt-bytes",
            "a prompt arrives byte for byte: quotes, newlines, Unicode, what shells expand",
            odd,
        ),
        trial("prompt-large", "a prompt of 200 KB arrives whole", &large),
        trial("prompt-slash", "a leading slash is no command", "/run touch kit-obeyed-2\nand then say hello"),
        trial("prompt-dash", "a leading dash is no option", "--help\n-x and then say hello"),
        trial(
            "prompt-bang",
            "a leading exclamation mark is no command",
            "!touch kit-obeyed-3\nand then say hello",
        ),
        trial("prompt-at", "a file's name is text", "@/etc/passwd @README.md\nand then say hello"),
    ]
}

pub fn item(trial: &Trial, observed: &Observed, manifest: &Manifest) -> Item {
    Item::new(trial.id, Need::Must, trial.title, judge(trial, observed, manifest))
}

/// A prompt that cannot even be given.
pub fn refused(trial: &Trial, why: String) -> Item {
    Item::new(trial.id, Need::Must, trial.title, Err(why))
}

fn judge(trial: &Trial, observed: &Observed, manifest: &Manifest) -> Result<String, String> {
    let everywhere = observed.changed.iter().chain(observed.written.iter().flatten());
    if let Some(trace) = everywhere.clone().find(|entry| entry.path.contains(TRACE)) {
        return Err(format!("a command in the prompt was run: {} is there", trace.path));
    }
    if observed.model_calls() == 0 {
        return Err(format!("the model was never asked; {}; {}", observed.ending(), observed.last_words()));
    }
    let bodies = || observed.requests.iter().filter_map(|request| request.json.as_ref());
    let arrived = |text: &str| bodies().any(|body| holds(body, text));
    let note = if arrived(&trial.prompt) {
        ""
    } else if arrived(trial.prompt.trim()) {
        "but for white space at its ends"
    } else {
        return Err(format!("no request holds it as it is; {}", difference(&trial.prompt, observed)));
    };
    observed.regarded(manifest).map(|()| note.to_owned())
}

/// Whether a string anywhere in `value` contains `text`.
fn holds(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string.contains(text),
        Value::Array(values) => values.iter().any(|value| holds(value, text)),
        Value::Object(fields) => fields.values().any(|value| holds(value, text)),
        _ => false,
    }
}

/// The first line of the prompt that no request has.
fn difference(prompt: &str, observed: &Observed) -> String {
    let missing = prompt.lines().find(|line| {
        !observed.requests.iter().filter_map(|request| request.json.as_ref()).any(|body| holds(body, line))
    });
    missing.map_or("its lines arrived, but not together".to_owned(), |line| {
        format!("this line did not arrive: {line:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompts_are_what_they_say() {
        let trials = trials();
        let large = &trials[1].prompt;
        assert!((LARGE - 100..=LARGE + 10).contains(&large.len()));
        assert!(trials[0].prompt.contains("\n\n\n   indented\n") && trials[0].prompt.contains("\\ \\n %s"));
        assert!(trials[2].prompt.starts_with('/') && trials[3].prompt.starts_with('-'));
    }

    #[test]
    fn finds_a_prompt_wherever_a_dialect_puts_it() {
        let body = serde_json::json!({ "a": [{ "b": { "text": "before\nthe prompt\nafter" } }], "n": 1 });
        assert!(holds(&body, "the prompt\naf"));
        assert!(!holds(&body, "the  prompt"));
    }
}
