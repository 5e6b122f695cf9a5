//! The loop that watches a task: updates to a view, until the task ends or someone presses Ctrl-C.

use std::io;
use std::pin::pin;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::exit::{CliError, Exit};
use crate::cli::view::View;
use crate::cli::view::live::TICK;
use crate::client::error::ClientError;
use crate::client::event::Payload;
use crate::client::follow::{Follow, Update};
use crate::domain::task::TaskStatus;

/// Ctrl-C, from now on ours to answer.
#[derive(Debug)]
pub struct Interrupt(Signal);

impl Interrupt {
    /// # Errors
    /// When the system does not let us.
    pub fn listen() -> io::Result<Self> {
        signal(SignalKind::interrupt()).map(Self)
    }

    pub async fn pressed(&mut self) {
        self.0.recv().await;
    }
}

/// How watching ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    Ended(TaskStatus),
    Interrupted,
}

impl Watched {
    pub const fn exit(self) -> Exit {
        match self {
            Self::Ended(TaskStatus::Completed) => Exit::Success,
            Self::Ended(TaskStatus::Cancelled) => Exit::Cancelled,
            Self::Ended(_) => Exit::Failed,
            Self::Interrupted => Exit::Interrupted,
        }
    }
}

/// Watches to the end; the view is finished whatever happens.
///
/// # Errors
/// When the stream cannot be had any more, or the output cannot be written.
pub async fn watch(
    follow: &mut Follow,
    view: &mut dyn View,
    interrupt: &mut Interrupt,
) -> Result<Watched, CliError> {
    let watched = updates(follow, view, interrupt).await;
    view.tick();
    let finished = view.finish();
    let watched = watched?;
    finished?;
    Ok(watched)
}

async fn updates(
    follow: &mut Follow,
    view: &mut dyn View,
    interrupt: &mut Interrupt,
) -> Result<Watched, CliError> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut status = None;
    loop {
        let update = {
            // Kept across ticks: a connection that is being made must not be dropped.
            let mut next = pin!(follow.next());
            loop {
                tokio::select! {
                    biased;
                    () = interrupt.pressed() => return Ok(Watched::Interrupted),
                    _ = ticks.tick() => view.tick(),
                    update = &mut next => break update?,
                }
            }
        };
        let Some(update) = update else { break };
        if let Update::Event(event) = &update
            && let Payload::TaskComplete(complete) = &event.payload
        {
            status = Some(complete.status);
        }
        view.update(&update)?;
    }
    match status {
        Some(status) if status.has_ended() => Ok(Watched::Ended(status)),
        _ => Err(CliError::Client(ClientError::Protocol {
            server: "the server".to_owned(),
            what: "a task that is complete but has not ended".to_owned(),
        })),
    }
}
