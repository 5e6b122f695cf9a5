//! A repository of 50,000 files and 1 GB, and changes to it; git as an ordinary user runs it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

const FILES: usize = 50_000;
const FILE_BYTES: usize = 20_000;
const FILES_A_FOLDER: usize = 100;

const WORDS: [&str; 32] = [
    "let", "value", "return", "error", "if", "else", "match", "while", "for", "in", "result", "index",
    "buffer", "length", "offset", "name", "path", "self", "state", "next", "token", "stream", "queue",
    "limit", "count", "first", "last", "open", "close", "read", "write", "flush",
];

fn path(number: usize) -> String {
    format!("folder{:03}/file{number:05}.txt", number / FILES_A_FOLDER)
}

/// Lines of words, other ones in each file, as compressible as source is.
fn content(number: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15 ^ (number as u64).wrapping_mul(0xD129_0D3F_4C8B_7A35);
    let mut text = Vec::with_capacity(FILE_BYTES + 16);
    let mut column = 0;
    while text.len() < FILE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = WORDS[(state >> 32) as usize % WORDS.len()];
        text.extend_from_slice(word.as_bytes());
        column += word.len() + 1;
        text.push(if column > 70 { b'\n' } else { b' ' });
        column = if column > 70 { 0 } else { column };
    }
    text.truncate(FILE_BYTES - 1);
    text.push(b'\n');
    text
}

/// Bare, with one commit on `main`.
pub fn make_repository(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    git(folder, &["init", "--quiet", "--bare", "--initial-branch=main"])?;
    // Deltas between unlike files would cost time and win nothing.
    let mut import = plain_git(folder)
        .args(["fast-import", "--quiet", "--depth=0"])
        .stdin(Stdio::piped())
        .spawn()
        .context("git fast-import")?;
    let mut stream = BufWriter::with_capacity(1 << 20, import.stdin.take().context("a pipe")?);
    writeln!(stream, "commit refs/heads/main\ncommitter bench <bench@localhost> 1700000000 +0000\ndata 0")?;
    for number in 0..FILES {
        writeln!(stream, "M 100644 inline {}\ndata {FILE_BYTES}", path(number))?;
        stream.write_all(&content(number))?;
    }
    stream.flush()?;
    drop(stream);
    ensure!(import.wait()?.success(), "git fast-import failed");
    Ok(())
}

/// 20 edits and 5 new files, others in each round, all over the tree.
pub fn change(worktree: &Path, round: usize) -> Result<()> {
    for edit in 0..20 {
        let number = (edit * 2477 + round * 31) % FILES;
        let mut file = File::options().append(true).open(worktree.join(path(number)))?;
        writeln!(file, "edit {edit} of round {round}")?;
    }
    for new in 0..5 {
        let number = (new * 9973 + round * 17) % FILES;
        fs::write(worktree.join(path(number)).with_extension("new"), content(FILES + round * 5 + new))?;
    }
    Ok(())
}

fn plain_git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs([
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_KEY_0", "safe.directory"),
            ("GIT_CONFIG_VALUE_0", "*"),
        ]);
    git
}

/// What git prints, without the last newline. The machine's settings have no say.
pub fn git(folder: &Path, args: &[&str]) -> Result<String> {
    let output = plain_git(folder).args(args).output().context("git")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", args.join(" "), error.trim());
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
