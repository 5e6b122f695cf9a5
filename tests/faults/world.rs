//! What these tests have in common: roles as processes of their own, and scripts that number their output.

use serde_json::Value;

use crate::support::TestKage;
use crate::support::git::git;

/// The places of the roles among a world's processes.
pub struct Roles {
    pub api: usize,
    pub runner: usize,
}

/// `kage api` and `kage runner`, with repository `demo`.
pub async fn apart(settings: &[(&str, &str)]) -> (TestKage, Roles) {
    let mut kage = TestKage::new().await;
    for (name, value) in settings {
        kage.set(name, value);
    }
    let roles = Roles { api: kage.start("api").await, runner: kage.start("runner").await };
    kage.demo().await;
    (kage, roles)
}

/// Writes so many lines, with a rest of 0.2 s after every `every`, and leaves a file `result`.
pub fn numbered(lines: usize, every: usize) -> String {
    format!(
        "for i in $(seq 1 {lines}); do echo \"line $i\"; \
         if [ $((i % {every})) = 0 ]; then sleep 0.2; fi; done; echo {lines} > result"
    )
}

/// Checks that a task's first run succeeded with a branch that holds `result`.
pub fn assert_result(kage: &TestKage, task: &Value, lines: usize) {
    let run = &task["runs"][0];
    assert_eq!(
        (task["status"].as_str(), run["state"].as_str()),
        (Some("completed"), Some("succeeded")),
        "{task}"
    );
    let branch = run["branch"].as_str().expect("a branch");
    assert_eq!(git(&kage.mirror("demo"), ["show", &format!("{branch}:result")]), lines.to_string());
    assert_eq!(run["commit_hash"], git(&kage.mirror("demo"), ["rev-parse", branch]));
}
