//! Registered repositories. Registering, fetching and removing are a runner's work: the server
//! accepts them at once, and [`Client::repository`] tells how far it is.

use reqwest::Method;
use uuid::Uuid;

use crate::client::Client;
use crate::client::error::ClientError;
use crate::domain::name::Name;
use crate::wire::repository::{NewRepository, Repositories, Repository};

impl Client {
    /// # Errors
    /// [`ClientError`].
    pub async fn repositories(&self) -> Result<Repositories, ClientError> {
        self.get(&["repositories"]).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn repository(&self, name: &Name) -> Result<Repository, ClientError> {
        self.get(&["repositories", name.as_str()]).await
    }

    /// Registers a repository; it is usable once its state is `ready`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_repository(&self, new: &NewRepository) -> Result<Repository, ClientError> {
        let request = self
            .api(Method::POST, &["repositories"])
            .header("idempotency-key", Uuid::new_v4().to_string())
            .timeout(self.patience.answer)
            .json(new);
        let response = self.send(request).await?;
        self.json(response).await
    }

    /// Asks for a fetch from the repository's source. Repeating it does no harm.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn fetch_repository(&self, name: &Name) -> Result<Repository, ClientError> {
        let path = ["repositories", name.as_str(), "fetch"];
        self.json_repeating(self.api(Method::POST, &path)).await
    }

    /// Asks for a repository's removal; it is gone once [`Client::repository`] does not find it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_repository(&self, name: &Name) -> Result<(), ClientError> {
        let path = ["repositories", name.as_str()];
        self.send(self.api(Method::DELETE, &path).timeout(self.patience.answer)).await?;
        Ok(())
    }
}
