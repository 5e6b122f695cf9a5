//! Connections that began before the schema was another one. A migration beneath a running role changes what its prepared statements
//! answer with; Postgres refuses such a statement ("cached plan must not change result type") for as long as its connection lives, and
//! connections of a pool live for half an hour. So the first refusal has all older connections closed before they are used again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

/// When the last refusal came.
static REFUSED: Mutex<Option<Instant>> = Mutex::new(None);

/// Whether this is that refusal; remembers when it came. Trying again helps.
pub(super) fn heed(error: &dyn DatabaseError) -> bool {
    // By where it is raised: the message is in the server's language, and its code is that of many others.
    let routine = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine);
    let refused = routine == Some("RevalidateCachedQuery");
    if refused {
        *REFUSED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
    refused
}

/// Whether a connection of this age began before the last refusal.
pub(super) fn is_older(age: Duration) -> bool {
    REFUSED.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| age >= at.elapsed())
}
