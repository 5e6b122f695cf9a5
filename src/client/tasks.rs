//! Tasks: submit, look at, list, cancel.

use reqwest::Method;
use uuid::Uuid;

use crate::client::Client;
use crate::client::error::ClientError;
use crate::wire::task::{Cancelled, NewTask, Stats, Task, TaskFilter, TaskPage};

impl Client {
    /// Submits a task once, however often the answer is lost on its way: every repeat carries the
    /// same `Idempotency-Key`.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Lost`] the task may exist.
    pub async fn submit(&self, task: &NewTask) -> Result<Task, ClientError> {
        let request = self
            .api(Method::POST, &["tasks"])
            .header("idempotency-key", Uuid::new_v4().to_string())
            .json(task);
        self.json_repeating(request).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn task(&self, id: Uuid) -> Result<Task, ClientError> {
        self.get(&["tasks", &id.to_string()]).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn tasks(&self, filter: &TaskFilter) -> Result<TaskPage, ClientError> {
        self.json_repeating(self.api(Method::GET, &["tasks"]).query(filter)).await
    }

    /// Asks for a task's end. Not repeated: a second one would be refused where the first succeeded.
    ///
    /// # Errors
    /// [`ClientError`]; refused with 409 when it has ended already.
    pub async fn cancel(&self, id: Uuid) -> Result<Cancelled, ClientError> {
        let request = self.api(Method::DELETE, &["tasks", &id.to_string()]).timeout(self.patience.answer);
        let response = self.send(request).await?;
        self.json(response).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn stats(&self) -> Result<Stats, ClientError> {
        self.get(&["tasks", "stats"]).await
    }
}
