//! Calls that hear nothing. A connection can die without a word (a firewall that forgot it, a host that lost its power), and the
//! driver waits on it for ever. Whoever must go on gives a call its time, and asks again on another connection; the one that was
//! left in the middle of a call does not come back into the pool unless it answers (`db::connection`).

use std::io;
use std::time::Duration;

use crate::db::error::DbError;

/// A call without an answer counts as unavailable after this. Well beyond what any statement of ours takes on a busy server, well
/// within what somebody who waits for a run puts up with.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Gives up a call after a time. Whether the server has done it nobody knows: it must be safe to repeat.
///
/// # Errors
/// The call's own; [`DbError::Unavailable`] after `limit`.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, DbError>>,
) -> Result<T, DbError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => {
            let silent = format!("no answer within {} s", limit.as_secs_f32());
            Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, silent)).into())
        }
    }
}
