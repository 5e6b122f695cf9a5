//! The prompt is data: it reaches the model as it is, and nothing in it is obeyed.

use crate::image::manifest::Manifest;
use crate::kit::observed::Observed;
use crate::kit::report::{Item, Need};

/// A prompt to try.
pub struct Trial {
    pub id: &'static str,
    pub title: &'static str,
    pub prompt: String,
    /// Longer prompts than this one are refused, and operators should know.
    pub bound: Option<usize>,
}

/// Bytes of a prompt that every CLI should take.
const LARGE: usize = 200 * 1024;

/// What commands in a prompt would leave behind, were they obeyed.
const TRACE: &str = "kit-obeyed";

pub fn trials(manifest: &Manifest) -> Vec<Trial> {
    let odd = "Say hello; read every line.\n\"double\" 'single' `back` \\ \\n %s %% $HOME ${HOME} $(touch kit-obeyed-1)\n\
               {{model}} {{prompt_file}} <b>&amp;</b> #anchor ~/x *.rs [a] {b} a|b > c ; d && e\n\
               \ttab, no-break\u{a0}space, ünïcödé, 日本語, \u{1f600}, e\u{301}\n\n\n   indented\nlast line";
    let bound = manifest.max_prompt_bytes.map(|bytes| bytes as usize).filter(|bytes| *bytes < LARGE);
    let trial = |id, title, prompt: &str| Trial { id, title, prompt: prompt.to_owned(), bound: None };
    let large = match bound {
        None => trial("prompt-large", "a prompt of 200 KB arrives whole", &long(LARGE)),
        Some(bytes) => {
            let title = "prompts may be long; one of max_prompt_bytes arrives whole";
            Trial { bound, ..trial("prompt-large", title, &long(bytes)) }
        }
    };
    vec![
        trial(
            "prompt-bytes",
            "a prompt arrives byte for byte: quotes, newlines, Unicode, what shells expand",
            odd,
        ),
        large,
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

/// A text of so many bytes, of many lines.
fn long(bytes: usize) -> String {
    const END: &str = "\nthe end";
    let lines = (0..).map(|n| format!("line {n}: the quick brown fox \"jumps\" over the lazy dog's back\n"));
    let mut text = String::from("Say hello. What follows is long.\n");
    for line in lines {
        if text.len() + line.len() + END.len() > bytes {
            break;
        }
        text.push_str(&line);
    }
    text.extend(std::iter::repeat_n('x', bytes.saturating_sub(text.len() + END.len())));
    text + END
}

pub fn item(trial: &Trial, observed: &Observed, manifest: &Manifest) -> Item {
    let seen = judge(trial, observed, manifest);
    match (seen, trial.bound) {
        (Ok(_), Some(bytes)) => {
            let said = format!(
                "one of {bytes} bytes does; a task with a longer one is refused when it is submitted (max_prompt_bytes)"
            );
            Item::new(trial.id, Need::Should, trial.title, Err(said))
        }
        (seen, _) => Item::new(trial.id, Need::Must, trial.title, seen),
    }
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
    let note = arrives(&trial.prompt, observed)?;
    observed.regarded(manifest).map(|()| note.to_owned())
}

/// Whether a request has the whole prompt, and what is to be said of it if so.
pub fn arrives(prompt: &str, observed: &Observed) -> Result<&'static str, String> {
    if observed.arrived(prompt) {
        Ok("")
    } else if observed.arrived(prompt.trim()) {
        Ok("but for white space at its ends")
    } else {
        Err(format!(
            "the model was asked, but no request holds it as it is; {}",
            difference(prompt, observed)
        ))
    }
}

/// The first line of the prompt that no request has.
fn difference(prompt: &str, observed: &Observed) -> String {
    let missing = prompt.lines().find(|line| !observed.arrived(line));
    missing.map_or("its lines arrived, but not together".to_owned(), |line| {
        format!("this line did not arrive: {line:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(more: &str) -> Manifest {
        let text = format!("name = \"x\"\ncommand = [\"x\"]\nprompt = \"argument\"\n{more}");
        Manifest::parse("x/cli.toml".as_ref(), &text).expect("good")
    }

    #[test]
    fn the_prompts_are_what_they_say() {
        let trials = trials(&manifest(""));
        let large = &trials[1];
        assert_eq!((large.prompt.len(), large.bound), (LARGE, None));
        assert!(large.prompt.ends_with("\nthe end"));
        assert!(trials[0].prompt.contains("\n\n\n   indented\n") && trials[0].prompt.contains("\\ \\n %s"));
        assert!(trials[2].prompt.starts_with('/') && trials[3].prompt.starts_with('-'));
    }

    #[test]
    fn a_bound_is_tried_to_the_byte() {
        for bytes in [1024, 5000, 131_070] {
            let manifest = manifest(&format!("max_prompt_bytes = {bytes}"));
            let trials = trials(&manifest);
            assert_eq!((trials[1].prompt.len(), trials[1].bound), (bytes, Some(bytes)));
            for trial in trials {
                assert!(manifest.launch(&trial.prompt, None).is_ok(), "{}", trial.id);
            }
        }
    }
}
