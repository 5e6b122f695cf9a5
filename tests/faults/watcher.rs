//! A client that follows a task to its end, whatever breaks, by nothing but the id of the last event.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::TestKage;
use crate::support::sse::{Event, EventStream, output};

/// For everything that a test does to a task.
const PATIENCE: Duration = Duration::from_secs(400);

pub struct Watcher {
    following: JoinHandle<Seen>,
    /// Cancelled: breaks the connection and comes back.
    pub cut: CancellationToken,
}

/// What a client has seen of a task, over all its connections.
pub struct Seen {
    pub events: Vec<Event>,
    /// Connections that broke or were refused before the task's end.
    pub breaks: usize,
}

impl Watcher {
    /// Follows from the beginning.
    pub fn follow(kage: &TestKage, task: &str) -> Self {
        let url = format!("{}/api/v1/tasks/{task}/progress", kage.url);
        let (http, key, cut) = (kage.http.clone(), kage.key.clone(), CancellationToken::new());
        let cuts = cut.clone();
        let following = tokio::spawn(async move {
            let mut seen = Seen { events: Vec::new(), breaks: 0 };
            let mut last = 0;
            loop {
                let request =
                    http.get(&url).header("X-API-Key", &key).header("Last-Event-ID", last.to_string());
                match request.send().await {
                    Ok(response) if response.status() == 200 => {
                        if seen.take(EventStream::new(response), &mut last, &cuts).await {
                            return seen;
                        }
                    }
                    Ok(response) if response.status() == 503 => {}
                    Ok(response) => panic!("{}", response.status()),
                    Err(_) => {}
                }
                seen.breaks += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { following, cut }
    }

    /// Waits for the task's end.
    pub async fn end(self) -> Seen {
        let seen = tokio::time::timeout(PATIENCE, self.following).await;
        seen.expect("the task ends").expect("the stream is sound")
    }
}

impl Seen {
    /// Whether the task's end was seen.
    async fn take(&mut self, mut stream: EventStream, last: &mut i64, cut: &CancellationToken) -> bool {
        loop {
            let next = tokio::select! {
                next = stream.try_next() => next,
                () = cut.cancelled(), if self.breaks == 0 => return false,
            };
            let Ok(Some(event)) = next else { return false };
            let Some(id) = event.id else { continue };
            assert_eq!(id, *last + 1, "a gap or a duplicate: {event:?}");
            *last = id;
            let end = event.name == "task_complete";
            self.events.push(event);
            if end {
                return true;
            }
        }
    }

    /// Checks that the run's standard output is `line 1` to `line COUNT`, each once and in order.
    pub fn assert_lines(&self, run: &str, count: usize) {
        let text = String::from_utf8(output(&self.events, run, "stdout")).expect("ASCII");
        let mut lines = text.lines();
        for number in 1..=count {
            assert_eq!(lines.next(), Some(format!("line {number}").as_str()));
        }
        assert_eq!(lines.next(), None);
    }

    /// The states that a run went through, in order.
    pub fn states(&self, run: &str) -> Vec<String> {
        let states = self.events.iter().filter(|event| event.name == "state" && event.data["run"] == run);
        states.map(|event| event.data["state"].as_str().expect("a state").to_owned()).collect()
    }
}
