//! Registered repositories. Registering, fetching and removing are a runner's work: the server
//! accepts them at once, and [`Client::repository`] tells how far it is.

use reqwest::Method;
use uuid::Uuid;

use crate::client::Client;
use crate::client::error::ClientError;
use crate::domain::name::Name;
use crate::wire::quarantine::{Approval, Approvals, Configurations, NewApproval};
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

    /// What the repository brings that a CLI would obey; the latest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn configuration(&self, name: &Name) -> Result<Configurations, ClientError> {
        self.get(&["repositories", name.as_str(), "configuration"]).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn approvals(&self, name: &Name) -> Result<Approvals, ClientError> {
        self.get(&["repositories", name.as_str(), "approvals"]).await
    }

    /// Lets runs see one content at one path. Repeating it does no harm.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn approve(&self, name: &Name, new: &NewApproval) -> Result<Approval, ClientError> {
        let path = ["repositories", name.as_str(), "approvals"];
        self.json_repeating(self.api(Method::POST, &path).json(new)).await
    }

    /// Takes an approval back; returns what it was.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke(&self, name: &Name, id: Uuid) -> Result<Approval, ClientError> {
        let path = ["repositories", name.as_str(), "approvals", &id.to_string()];
        let response = self.send(self.api(Method::DELETE, &path).timeout(self.patience.answer)).await?;
        self.json(response).await
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
