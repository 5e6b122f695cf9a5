//! What git says on standard error, as one line for a person.

/// Lines before the error that are kept: ssh and the server give their reasons there.
const BEFORE: usize = 2;

/// The first `error:` or `fatal:` of git's, with what was said just before it; no warnings, no hints. Where there is none,
/// the last lines.
pub(crate) fn reason(stderr: &str) -> String {
    let is_noise = |line: &str| {
        let line = line.to_ascii_lowercase();
        ["warning:", "hint:"].iter().any(|beginning| line.starts_with(beginning))
    };
    let told = |line: &str| line.strip_prefix("remote:").unwrap_or(line).trim().to_owned();
    let lines: Vec<&str> = stderr.lines().map(str::trim).collect();
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.is_empty() && !is_noise(line)).collect();
    let found = lines.iter().enumerate().find_map(|(at, line)| Some((at, plain(line)?.trim())));
    match found {
        Some((at, error)) => {
            let before = lines[at.saturating_sub(BEFORE)..at].iter().map(|line| told(line));
            before.chain([error.to_owned()]).collect::<Vec<_>>().join("; ")
        }
        None => {
            let last = &lines[lines.len().saturating_sub(BEFORE)..];
            last.iter().map(|line| told(line)).collect::<Vec<_>>().join("; ")
        }
    }
}

fn plain(line: &str) -> Option<&str> {
    line.strip_prefix("error:").or_else(|| line.strip_prefix("fatal:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_one_plain_line() {
        for (stderr, said) in [
            (
                "warning: object 1234: missingEmail: x\nerror: object 5678: hasDotgit: contains '.git'\n\
                 fatal: fsck error in packed object\nfatal: fetch-pack: invalid index-pack output",
                "object 5678: hasDotgit: contains '.git'",
            ),
            (
                "Warning: Permanently added 'h'\nHost key verification failed.\nfatal: Could not read from remote \
                 repository.\n\nPlease make sure you have the correct access rights\nand the repository exists.",
                "Host key verification failed.; Could not read from remote repository.",
            ),
            (
                "remote: Not found.\nfatal: repository 'https://h/x/' not found",
                "Not found.; repository 'https://h/x/' not found",
            ),
            ("hint: use it\nsomething odd", "something odd"),
            ("warning: alone", ""),
        ] {
            assert_eq!(reason(stderr), said);
        }
    }
}
