//! Built-in scripts, by name.

use crate::script::{Action, Script, Turn};

/// Name and one line of explanation, for `--help` and errors.
pub const NAMES: &[(&str, &str)] = &[
    ("write-hello", "writes hello.txt, runs one shell command, ends with one line of text"),
    ("talk", "one line of text, no tool"),
    ("loop", "one shell command after the other, without end"),
    ("edit", "writes notes.txt, reads it, changes a line of it, ends with one line of text"),
    ("bulk", "2000 lines of text, no tool"),
];

/// `None` where there is no scenario of that name. Where a prompt has a `KAGE-SCRIPT:` line, that goes first.
#[must_use]
pub fn find(name: &str) -> Option<Script> {
    let turns = match name {
        "write-hello" => vec![
            call(Action::WriteFile {
                path: "hello.txt".into(),
                content: "Hello from the shadow clone.\n".into(),
            }),
            call(Action::Shell { command: "cat hello.txt && wc -c hello.txt".into() }),
            say("hello.txt is written."),
        ],
        "talk" => vec![say("Nothing to do here.")],
        "loop" => vec![call(Action::Shell { command: "date >> loop.txt".into() })],
        "edit" => vec![
            call(Action::WriteFile { path: "notes.txt".into(), content: "one\ntwo\nthree\n".into() }),
            call(Action::ReadFile { path: "notes.txt".into() }),
            call(Action::EditFile { path: "notes.txt".into(), old: "two".into(), new: "zwei".into() }),
            say("notes.txt is changed."),
        ],
        "bulk" => {
            let lines = (1..=2000).map(|n| format!("line {n} of the long answer that somebody asked for\n"));
            vec![say(&lines.collect::<String>())]
        }
        _ => return None,
    };
    Some(Script { turns, repeat: name == "loop" })
}

fn say(text: &str) -> Turn {
    Turn { text: Some(text.to_owned()), ..Turn::default() }
}

fn call(action: Action) -> Turn {
    Turn { call: vec![action], ..Turn::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_script() {
        for (name, _) in NAMES {
            assert!(!find(name).unwrap().turns.is_empty());
        }
        assert!(find("nothing").is_none());
    }
}
