//! Names of tools and of their arguments, by purpose.

use crate::conversation::{Tool, ToolInput};
use crate::script::Action;

/// What a purpose needs: names of tools in order of preference, and the arguments with their possible names.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub tools: &'static [&'static str],
    pub arguments: Vec<Argument<'a>>,
}

#[derive(Debug, Clone, Copy)]
pub struct Argument<'a> {
    pub names: &'static [&'static str],
    pub value: &'a str,
    /// A file in the workspace: most tools want it absolute.
    pub is_path: bool,
}

const PATH: &[&str] = &["file_path", "filePath", "absolute_path", "path", "filename", "file", "target_file"];
const CONTENT: &[&str] = &["content", "contents", "file_text", "text", "data"];
const OLD: &[&str] = &["old_string", "oldString", "old_str", "old_text", "search"];
const NEW: &[&str] = &["new_string", "newString", "new_str", "new_text", "replace", "replacement"];
const PATCH: &[&str] = &["patchText", "input", "patch", "patch_text"];
const COMMAND: &[&str] = &["command", "cmd", "script", "commands"];

pub fn wanted(action: &Action) -> Wanted<'_> {
    let path = |value| Argument { names: PATH, value, is_path: true };
    let plain = |names, value| Argument { names, value, is_path: false };
    match action {
        Action::WriteFile { path: file, content } => Wanted {
            tools: &["Write", "write_file", "write", "create_file", "WriteFile", "writeFile"],
            arguments: vec![path(file), plain(CONTENT, content)],
        },
        Action::EditFile { path: file, old, new } => Wanted {
            tools: &["Edit", "replace", "edit", "edit_file", "str_replace", "EditFile"],
            arguments: vec![path(file), plain(OLD, old), plain(NEW, new)],
        },
        Action::ReadFile { path: file } => Wanted {
            tools: &["Read", "read_file", "read", "view", "ReadFile", "readFile"],
            arguments: vec![path(file)],
        },
        Action::Shell { command } => Wanted {
            tools: &[
                "Bash",
                "exec_command",
                "run_shell_command",
                "bash",
                "shell_command",
                "shell",
                "execute_command",
            ],
            arguments: vec![plain(COMMAND, command)],
        },
        Action::Tool { .. } => Wanted { tools: &[], arguments: Vec::new() },
    }
}

/// A whole patch, for a tool that takes it as an argument.
pub fn patch(text: &str) -> Wanted<'_> {
    Wanted {
        tools: &["apply_patch"],
        arguments: vec![Argument { names: PATCH, value: text, is_path: false }],
    }
}

/// A tool of a known name that takes all of the arguments; else any tool that does, if there is an argument that
/// tells the purpose (a path alone does not).
pub fn find<'t>(tools: &'t [Tool], wanted: &Wanted<'_>) -> Option<&'t Tool> {
    let by_name = wanted.tools.iter().filter_map(|name| tools.iter().find(|tool| tool.name == *name));
    let telling = wanted.arguments.iter().any(|argument| !argument.is_path);
    let by_shape = tools.iter().filter(|_| telling);
    by_name.chain(by_shape).find(|tool| takes(tool, wanted))
}

fn takes(tool: &Tool, wanted: &Wanted<'_>) -> bool {
    !wanted.arguments.is_empty() && wanted.arguments.iter().all(|argument| name_in(tool, argument).is_some())
}

/// What this tool calls the argument.
pub fn name_in(tool: &Tool, argument: &Argument<'_>) -> Option<&'static str> {
    let ToolInput::Json(schema) = &tool.input else { return None };
    let properties = schema.get("properties")?.as_object()?;
    argument.names.iter().copied().find(|name| properties.contains_key(*name))
}

/// The action as a line for a POSIX shell.
pub fn shell_line(action: &Action) -> String {
    match action {
        Action::WriteFile { path, content } => {
            let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| {
                if folder.is_empty() { String::new() } else { format!("mkdir -p {} && ", quoted(folder)) }
            });
            format!("{folder}printf '%s' {} > {}", quoted(content), quoted(path))
        }
        Action::EditFile { path, old, new } => {
            // No sed: the texts are literal, and may hold anything. The dot keeps a final newline.
            format!(
                "old={}; new={}; text=$(cat {path}; printf .); text=${{text%.}}; \
                 printf '%s' \"${{text%%\"$old\"*}}$new${{text#*\"$old\"}}\" > {path}",
                quoted(old),
                quoted(new),
                path = quoted(path)
            )
        }
        Action::ReadFile { path } => format!("cat {}", quoted(path)),
        Action::Shell { command } => command.clone(),
        Action::Tool { .. } => String::new(),
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_does_what_a_tool_would() {
        let folder = tempfile::tempdir().unwrap();
        let run = |action: &Action| {
            let out =
                Command::new("sh").arg("-c").arg(shell_line(action)).current_dir(&folder).output().unwrap();
            assert!(out.status.success(), "{out:?}");
            String::from_utf8(out.stdout).unwrap()
        };
        let path = "new folder/it's.txt".to_owned();
        run(&Action::WriteFile { path: path.clone(), content: "a 'b' $c\n%s\\n * end\n".to_owned() });
        run(&Action::EditFile { path: path.clone(), old: "$c\n%s".to_owned(), new: "[*] \"d\"".to_owned() });
        assert_eq!(run(&Action::ReadFile { path }), "a 'b' [*] \"d\"\\n * end\n");
    }
}
