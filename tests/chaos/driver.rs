//! A client that submits a task whatever happens, follows it, and cancels it where it is to be cancelled.

use std::time::Duration;

use rand::rngs::ChaCha20Rng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{self, Access, Seen};
use crate::work::{Job, Work};

const PAUSE: Duration = Duration::from_millis(200);

/// One job's task, as its client knows it.
pub struct Followed {
    pub id: String,
    pub seen: Seen,
}

/// # Errors
/// What the client could not come to.
pub async fn drive(access: Access, job: Job, begun: Instant, until: Instant) -> Result<Followed, String> {
    sleep_until(begun + Duration::from_millis(job.at)).await;
    let id = submit(&access, &job, until).await?;
    let mut random = ChaCha20Rng::seed_from_u64(job.seed);
    let following = client::follow(access.clone(), id.clone(), random.random(), until);
    let cancelling = async {
        if job.work == Work::Cancelled {
            sleep(Duration::from_millis(random.random_range(0..9_000))).await;
            cancel(&access, &id, until).await?;
        }
        Ok::<_, String>(())
    };
    let (seen, cancelled) = tokio::join!(following, cancelling);
    cancelled?;
    Ok(Followed { id, seen: seen? })
}

/// The same request until somebody answers: it is one task.
async fn submit(access: &Access, job: &Job, until: Instant) -> Result<String, String> {
    while Instant::now() < until {
        let request = access.request(Method::POST, "/api/v1/tasks").json(&job.task());
        let request = request.header("Idempotency-Key", format!("job-{}", job.number));
        if let Ok(response) = request.send().await {
            let status = response.status().as_u16();
            // An answer may break off as well as a request.
            if let Ok(body) = response.json::<Value>().await {
                match (status, body["id"].as_str()) {
                    (201, Some(id)) => return Ok(id.to_owned()),
                    (429 | 503, _) => {}
                    _ => return Err(format!("its submission was answered {status}: {body}")),
                }
            }
        }
        sleep(PAUSE).await;
    }
    Err("it could never be submitted".to_owned())
}

async fn cancel(access: &Access, id: &str, until: Instant) -> Result<(), String> {
    while Instant::now() < until {
        let request = access.request(Method::DELETE, &format!("/api/v1/tasks/{id}"));
        if let Ok(response) = request.send().await {
            match response.status().as_u16() {
                // It has ended, perhaps by the cancel before, whose answer was lost.
                200 | 409 => return Ok(()),
                429 | 503 => {}
                status => return Err(format!("its cancel was answered {status}")),
            }
        }
        sleep(PAUSE).await;
    }
    Err("it could never be cancelled".to_owned())
}
