//! The runs that a storm is over: what each does, and what it may come to.

use serde_json::{Value, json};

/// The most that a task can ask for.
pub const RETRIES: i64 = 5;
/// Bytes of one attempt's output; no run but a flood comes near.
pub const OUTPUT_LIMIT: usize = 400_000;
/// Files that `Files` writes.
pub const FILES: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Numbered lines, and a file.
    Lines,
    /// Lines, then exit status 3.
    Fails,
    /// The first attempt says that a connection broke; the next succeeds.
    Retried,
    /// Would go on for minutes; a client cancels it.
    Cancelled,
    /// Would go on for minutes; its wall-clock limit ends it.
    TimesOut,
    /// Says nothing more; its idle limit ends it.
    Silent,
    /// Writes without end.
    Floods,
    /// Many files, some new, one changed, one removed.
    Files,
    /// One call to its model in each attempt, then lines.
    Asks,
}

impl Work {
    /// Those that may come at any time. [`Work::TimesOut`] takes a minute, the least that a task can ask for.
    pub const ALL: [Self; 8] = [
        Self::Lines,
        Self::Files,
        Self::Asks,
        Self::Retried,
        Self::Cancelled,
        Self::Fails,
        Self::Floods,
        Self::Silent,
    ];

    /// The state that it comes to where nothing but itself decides.
    pub const fn end(self) -> &'static str {
        match self {
            Self::Lines | Self::Retried | Self::Files | Self::Asks => "succeeded",
            Self::Fails => "failed",
            Self::Cancelled => "cancelled",
            Self::TimesOut => "timed_out",
            Self::Silent => "idle_timeout",
            Self::Floods => "output_limit",
        }
    }

    /// What ends by its limit would only be long at a second try.
    const fn retries(self) -> i64 {
        if matches!(self, Self::TimesOut | Self::Silent) { 0 } else { RETRIES }
    }

    pub const fn cli(self) -> &'static str {
        if matches!(self, Self::Asks) { "asker" } else { "shell" }
    }
}

/// One task with one run.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub number: usize,
    /// Milliseconds after the storm's beginning.
    pub at: u64,
    pub work: Work,
    /// Fifths of a second that it takes, more or less; 50 lines in each.
    pub size: usize,
    /// Of its client's moods.
    pub seed: u64,
}

/// Lines of one fifth of a second.
const BLOCK: usize = 50;

const ASK: &str = r#"
ask() {
  python3 - <<'END'
import json, os, sys, urllib.request
words = "run %s attempt %s" % (os.environ["KAGE_TASK_ID"], os.environ["KAGE_ATTEMPT"])
body = {"model": os.environ["MODEL"], "max_tokens": 1000, "messages": [{"role": "user", "content": words}]}
headers = {"content-type": "application/json", "x-api-key": os.environ["KEY"], "anthropic-version": "2023-06-01"}
request = urllib.request.Request(os.environ["URL"] + "/v1/messages", json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as answer:
    json.load(answer)
END
}
"#;

impl Job {
    /// `line 1` to `line COUNT` is what it says when it gets to its end; `None`: as much as it may.
    pub const fn lines(&self) -> Option<usize> {
        match self.work {
            Work::Lines | Work::Retried | Work::Files | Work::Asks => Some(self.size * BLOCK),
            Work::Fails => Some(BLOCK),
            Work::Cancelled | Work::TimesOut | Work::Silent => Some(1),
            Work::Floods => None,
        }
    }

    /// What the client sends. Each attempt says first who it is: a number that nothing else has.
    pub fn task(&self) -> Value {
        let lines = |count: usize| {
            format!(
                "for i in $(seq 1 {count}); do echo \"line $i\"; if [ $((i % {BLOCK})) = 0 ]; then sleep 0.2; fi; done"
            )
        };
        let all = lines(self.lines().unwrap_or(0));
        let number = self.number;
        let rest = match self.work {
            Work::Lines => format!("{all}; echo {number} > result"),
            Work::Fails => format!("{all}; echo {number} > result; exit 3"),
            Work::Retried => format!(
                "if [ $KAGE_ATTEMPT = 1 ]; then {}; echo 'connection reset by peer' >&2; exit 1; fi; {all}; echo {number} > result",
                lines(BLOCK)
            ),
            Work::Cancelled | Work::TimesOut | Work::Silent => {
                "echo 'line 1'; echo begun > result; sleep 300".to_owned()
            }
            Work::Floods => "seq -f 'line %.0f' 1 100000000".to_owned(),
            Work::Files => format!(
                "{all}; mkdir many; for i in $(seq 1 {FILES}); do echo \"{number} $i\" > many/$i; done; \
                 echo {number} >> README.md; rm data.bin; echo {number} > result"
            ),
            Work::Asks => format!("ask || exit 1\n{all}; echo {number} > result"),
        };
        let script = format!(
            "{ASK}\necho \"begin $KAGE_ATTEMPT $(cat /proc/sys/kernel/random/uuid)\"\necho $KAGE_ATTEMPT > attempt\n{rest}\nexit $?\n"
        );
        let mut assignment = json!({ "cli_name": self.work.cli() });
        let (timeout, idle) = match self.work {
            Work::TimesOut => (60, 100),
            Work::Cancelled => (180, 170),
            Work::Silent => (180, 3),
            _ => (180, 30),
        };
        (assignment["timeout"], assignment["idle_timeout"]) = (timeout.into(), idle.into());
        json!({
            "description": script, "repository": "demo", "cli_assignments": [assignment],
            "max_retries": self.work.retries(), "retry_delay": 1,
        })
    }

    /// Why the end is not one that it may have.
    ///
    /// `taken`: its sandbox may have been taken away, or could not be made, by what was planned.
    pub fn judge(&self, run: &Value, taken: bool) -> Result<(), String> {
        let (state, error) = (run["state"].as_str().unwrap_or("none"), run["error"].as_str().unwrap_or(""));
        if state == self.work.end() {
            return Ok(());
        }
        let spent = run["attempt"].as_i64().unwrap_or(0) > self.work.retries();
        let allowed = match state {
            // What somebody else does to a container is an end of its own.
            "sandbox_error" => taken && (spent || error.contains("removed from outside")),
            "lost" => taken && spent,
            // A sandbox that is paused writes nothing.
            "idle_timeout" | "timed_out" => taken && spent,
            _ => false,
        };
        if allowed { Ok(()) } else { Err(format!("ended as {state} ({error}), not as {}", self.work.end())) }
    }

    /// What is wrong with one attempt's standard output. `whole`: it got to its end.
    pub fn judge_output(&self, attempt: i64, bytes: &[u8], whole: bool) -> Result<(), String> {
        let text = String::from_utf8_lossy(bytes);
        if text.is_empty() {
            return if whole { Err("says nothing".to_owned()) } else { Ok(()) };
        }
        // What was cut may end within a line.
        let (full, cut) = text.rsplit_once('\n').map_or(("", &*text), |(full, cut)| (full, cut));
        let mut lines = full.lines();
        let begin = lines.next().unwrap_or("");
        if !begin.is_empty() && !begin.starts_with(&format!("begin {attempt} ")) {
            return Err(format!("attempt {attempt} began with {begin:?}"));
        }
        let mut count = 0;
        for line in lines {
            count += 1;
            if line != format!("line {count}") {
                return Err(format!("attempt {attempt}: {line:?} where line {count} belongs"));
            }
        }
        let complete = match self.lines() {
            Some(all) => count == all && cut.is_empty(),
            None => bytes.len() == OUTPUT_LIMIT,
        };
        if whole && !complete {
            return Err(format!(
                "attempt {attempt} got to its end with {count} lines and {cut:?}, {} bytes",
                bytes.len()
            ));
        }
        Ok(())
    }
}

#[test]
fn what_is_wrong_is_seen() {
    let job = Job { number: 0, at: 0, work: Work::Fails, size: 9, seed: 0 };
    let lines: String = (1..=BLOCK).map(|line| format!("line {line}\n")).collect();
    let good = format!("begin 1 x\n{lines}");
    assert_eq!(job.judge_output(1, good.as_bytes(), true), Ok(()));
    for bad in [
        format!("begin 1 x\nbegin 1 y\n{lines}"),
        format!("begin 2 x\n{lines}"),
        good.replace("line 7\n", ""),
        good.replace("line 7\n", "line 7\nline 7\n"),
        good.replace("line 50\n", ""),
    ] {
        assert!(job.judge_output(1, bad.as_bytes(), true).is_err(), "{bad}");
    }
    assert_eq!(job.judge_output(1, b"begin 1 x\nline 1\nlin", false), Ok(()));
    assert!(job.judge_output(1, b"begin 1 x\nline 1\nlin", true).is_err());
    let ended = |state: &str| json!({ "state": state, "attempt": 1, "error": "x" });
    assert!(job.judge(&ended("failed"), false).is_ok());
    assert!(job.judge(&ended("succeeded"), true).is_err());
    assert!(job.judge(&ended("lost"), true).is_err(), "it had retries left");
}
