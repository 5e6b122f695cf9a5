//! Tasks of the CLI image `shell`, whose prompt is a bash script.

use serde_json::{Value, json};

use crate::support::{TestKage, eventually};

/// A task with one run on repository `demo`, without retries.
pub fn shell(script: &str) -> Value {
    json!({
        "description": script,
        "repository": "demo",
        "max_retries": 0,
        "cli_assignments": [{ "cli_name": "shell" }],
    })
}

/// As [`shell`], with fields of the assignment.
pub fn shell_with(script: &str, assignment: &Value) -> Value {
    let mut task = shell(script);
    let fields = assignment.as_object().expect("an object").clone();
    task["cli_assignments"][0].as_object_mut().expect("an object").extend(fields);
    task
}

/// A JSON string of the answer.
pub fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no string: {value}"))
}

impl TestKage {
    /// Submits; the task as it was accepted.
    pub async fn submit(&self, task: &Value) -> Value {
        let answer = self.post("/api/v1/tasks", task).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    pub async fn task(&self, id: &str) -> Value {
        let answer = self.get(&format!("/api/v1/tasks/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Waits for a task's end.
    pub async fn ended(&self, id: &str) -> Value {
        eventually("the task ends", async || {
            let task = self.task(id).await;
            (!task["completed_at"].is_null()).then_some(task)
        })
        .await
    }

    /// Waits until a run (by its place) is in a state.
    pub async fn reaches(&self, id: &str, run: usize, state: &str) -> Value {
        eventually(&format!("run {run} is {state}"), async || {
            let task = self.task(id).await;
            let now = string(&task["runs"][run]["state"]).to_owned();
            assert!(now == state || task["completed_at"].is_null(), "it ended as {now}: {task}");
            (now == state).then_some(task)
        })
        .await
    }

    /// Waits until a run's output holds a text.
    pub async fn says(&self, id: &str, run: &str, text: &str) {
        let path = format!("/api/v1/tasks/{id}/runs/{run}/log");
        eventually(&format!("the output says {text:?}"), async || {
            self.get(&path).await.text().contains(text).then_some(())
        })
        .await;
    }

    /// Submits and waits for the end.
    pub async fn run(&self, task: &Value) -> Value {
        let submitted = self.submit(task).await;
        self.ended(string(&submitted["id"])).await
    }
}
