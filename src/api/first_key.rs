//! The first key of an installation that has no hands on its host: from a secret, once, if there is no key at all.

use secrecy::ExposeSecret;
use serde_json::json;

use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;
use crate::domain::access::{Quotas, Rights, Scope};
use crate::domain::api_key;
use crate::domain::audit::{Actor, Entry, Outcome};

#[derive(Debug, thiserror::Error)]
pub(super) enum FirstKeyError {
    #[error(
        "KAGE_API_FIRST_KEY(_FILE) holds no API key: it must be kage_<id>_<secret><checksum>, whole and unchanged"
    )]
    NoKey,
    #[error(transparent)]
    Database(#[from] DbError),
}

/// Makes the configured first key known if no key was ever made. One that is no key of ours stops the start: nobody
/// shall choose a weak one.
///
/// # Errors
/// [`FirstKeyError`].
pub(super) async fn make_known(state: &ApiState) -> Result<(), FirstKeyError> {
    let Some(given) = &state.config.first_key else { return Ok(()) };
    let key = api_key::parse(given.expose_secret().trim()).ok_or(FirstKeyError::NoKey)?;
    let mut transaction = state.pool.begin().await.map_err(DbError::from)?;
    if !db::keys::none_yet(&mut transaction).await? {
        tracing::info!("api.first_key_not_needed: there are keys");
        return Ok(());
    }
    let rights = Rights {
        scopes: [Scope::Admin].into(),
        repositories: None,
        clis: None,
        quotas: Quotas::default(),
        expires_at: None,
    };
    let new = db::keys::NewKey {
        id: &key.id,
        name: "first key",
        secret_sha256: &key.secret_sha256,
        rights: &rights,
        charged: &[],
        made_by: "first key",
    };
    db::keys::insert(&mut transaction, &new).await?;
    let entry = Entry {
        actor: Actor::Key(key.id.clone()),
        action: "key.first",
        object: format!("key:{}", key.id),
        outcome: Outcome::Done,
        details: json!({ "from": "KAGE_API_FIRST_KEY" }),
    };
    db::audit::append(&mut transaction, &entry).await?;
    transaction.commit().await.map_err(DbError::from)?;
    tracing::warn!(
        key = key.id,
        "api.first_key: made known with the scope admin; replace it by keys of narrower scope"
    );
    Ok(())
}
