//! A request's body: whole, bounded in size and time, in what bodies of its run are in memory, and in what requests of
//! all runs are.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dialect::answer::{Refusal, RefusalKind};
use crate::gateway::environment::Environment;
use crate::gateway::served::ServedRun;

/// A request is in memory as its text, as what was read of it, and as what is sent on; its values cost more than their
/// text.
pub(super) const COPIES: usize = 4;

/// What a request has of the memory that there is for all; given back with it.
#[derive(Debug)]
pub(super) struct Memory {
    _run: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Why there is no body.
pub(super) enum BodyError {
    /// The CLI went away in the middle: nobody is left who could hear it.
    Gone,
    Refused(Refusal),
}

impl From<Refusal> for BodyError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// # Errors
/// [`BodyError`].
pub(super) async fn read(
    environment: &Environment,
    run: &ServedRun,
    body: Incoming,
) -> Result<(Bytes, Memory), BodyError> {
    let late = || Refusal::new(RefusalKind::BadRequest, "the request's body did not come in time");
    let read = whole(environment, run, body);
    tokio::time::timeout(environment.config.body, read).await.map_err(|_| late())?
}

async fn whole(
    environment: &Environment,
    run: &ServedRun,
    mut body: Incoming,
) -> Result<(Bytes, Memory), BodyError> {
    let config = &environment.config;
    let too_large = || Refusal::new(RefusalKind::TooLarge, "the request's body is too large");
    let exact = body.size_hint().exact().map(|exact| usize::try_from(exact).unwrap_or(usize::MAX));
    // Without a length it may become as large as any.
    let most = exact.unwrap_or(config.body_bytes);
    if most > config.body_bytes {
        return Err(too_large().into());
    }
    let mine = Arc::clone(&run.bodies).acquire_many_owned(kibibytes(most)).await;
    let mut mine = mine.map_err(|_| Refusal::new(RefusalKind::Overloaded, "the gateway is closing"))?;
    // Not waited for: who has the memory may keep it for as long as a provider takes.
    let mut all = take(&environment.memory, kibibytes(exact.unwrap_or(0)))?;
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| BodyError::Gone)?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > config.body_bytes {
            return Err(too_large().into());
        }
        let needed = kibibytes(bytes.len() + data.len()) as usize * COPIES;
        if let Some(more) = needed.checked_sub(all.num_permits()).filter(|more| *more > 0) {
            all.merge(take(&environment.memory, u32::try_from(more.div_ceil(COPIES)).unwrap_or(u32::MAX))?);
        }
        bytes.extend_from_slice(&data);
    }
    // What it did not need is free again.
    drop(mine.split(mine.num_permits().saturating_sub(kibibytes(bytes.len()) as usize)));
    Ok((bytes.freeze(), Memory { _run: mine, _all: all }))
}

/// Memory for a body of so many kibibytes.
fn take(memory: &Arc<Semaphore>, kibibytes: u32) -> Result<OwnedSemaphorePermit, Refusal> {
    let permits = kibibytes.saturating_mul(COPIES as u32);
    Arc::clone(memory).try_acquire_many_owned(permits).map_err(|_| {
        Refusal::new(RefusalKind::Overloaded, "the gateway has no memory left for this request; try again")
    })
}

fn kibibytes(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024).max(1)).unwrap_or(u32::MAX)
}
