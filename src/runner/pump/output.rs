//! From the shim's frames to committed events, which alone are acknowledged.

use kage_shim::protocol::Stream;
use tokio::time::Instant;

use crate::db;
use crate::db::attempts::Output;
use crate::domain::event::EventKind;
use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;
use crate::image::mapped::Meaning;
use crate::image::mapping::Mapped;
use crate::runner::failure::RunFailure;
use crate::runner::pump::Pump;
use crate::runner::retry::TAIL_BYTES;
use crate::sandbox::shim_link::ShimLink;

impl Pump<'_> {
    pub(super) async fn take(
        &mut self,
        link: &mut ShimLink,
        stream: Stream,
        bytes: &[u8],
    ) -> Result<(), RunFailure> {
        self.idle_at = Instant::now() + self.idle;
        let limit = self.drive.environment.config.limits.output_bytes;
        let before = self.taken(link, bytes.len());
        let room = usize::try_from(limit.saturating_sub(before)).unwrap_or(usize::MAX);
        let kept = &bytes[..bytes.len().min(room)];
        let out = self.redactor.take(stream, kept);
        self.keep(stream, &out);
        self.tail.extend_from_slice(&kept[kept.len().saturating_sub(TAIL_BYTES)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        if kept.len() < bytes.len() {
            self.cut = true;
            if self.cause.is_none() {
                let verdict = Verdict::new(
                    RunState::OutputLimit,
                    format!("wrote more than {limit} bytes; the rest is cut"),
                );
                self.end(link, verdict).await?;
            }
            // Nothing more is kept: acknowledge, so that the CLI's end is not held up.
            self.commit(link, true).await?;
        }
        Ok(())
    }

    /// What may be stored.
    fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        self.blocks.push(stream, bytes);
        if stream == Stream::Stdout && self.mapping.is_some() {
            self.map(bytes);
        }
    }

    /// What waited for more, when nothing follows.
    pub(super) fn keep_last(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = self.redactor.last(stream);
            self.keep(stream, &rest);
        }
    }

    /// Bytes of this attempt before the frame that was just received.
    fn taken(&self, link: &ShimLink, frame: usize) -> u64 {
        let received = link.received();
        (received.stdout + received.stderr).saturating_sub(frame as u64)
    }

    pub(super) fn map(&mut self, bytes: &[u8]) {
        let Some(mapping) = self.mapping.clone() else { return };
        let mut found = Vec::new();
        self.lines.push(bytes, |line| found.push(mapping.map_line(line)));
        for Mapped { events, .. } in found {
            for mut event in events {
                // What a filter makes of a line may show what the line hid.
                event.texts_mut().into_iter().for_each(|text| self.redactor.redact(text));
                let (event, meaning) = self.teller.take(event);
                self.mapped.extend(self.flow.admit(event));
                self.heed(meaning);
            }
        }
    }

    /// A CLI that has said its last word may take so long to exit, and begins anew if it goes on.
    fn heed(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Nothing => {}
            Meaning::AtWork if self.done_at.is_none() => {}
            Meaning::AtWork | Meaning::Done => self.done_at = Some(Instant::now() + self.after_final),
        }
    }

    /// Commits what there is, then acknowledges it. `last`: also the beginnings of unfinished characters, and
    /// all that the output limit cut off.
    pub(super) async fn commit(&mut self, link: &mut ShimLink, last: bool) -> Result<(), RunFailure> {
        if last {
            self.keep_last();
        }
        if self.redactor.take_news() {
            let (pool, lease) = (&self.drive.environment.pool, self.drive.lease);
            self.drive.commit(|| db::redactions::of_output(pool, lease, &self.run)).await?;
        }
        let (mut events, ends, position) = self.blocks.take(last);
        events.append(&mut self.mapped);
        if !events.is_empty() {
            let signed = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
            let output = Output {
                events,
                before: (signed(self.committed.stdout), signed(self.committed.stderr)),
                stdout: signed(ends.stdout),
                stderr: signed(ends.stderr),
                total: position,
                cost_usd: self.teller.cost(),
                told: serde_json::to_value(&self.teller.told).ok(),
            };
            let (pool, lease) = (&self.drive.environment.pool, self.drive.lease);
            self.drive.commit(|| db::attempts::append_output(pool, lease, &output)).await?;
            self.committed = ends;
            self.position = position;
            self.teller.stored();
        }
        if let Some(news) = self.flow.news(self.blocks.is_coarse()) {
            self.drive.notice(&self.run, EventKind::Warning, news).await?;
        }
        self.last_commit = Instant::now();
        self.idle_at = self.last_commit + self.idle;
        let acknowledged = if last && self.cut { link.received() } else { self.committed };
        // A link that breaks here is noticed at the next receive; the shim then sends again, and what
        // is committed already is cut off.
        if let Err(error) = link.ack(acknowledged).await {
            tracing::debug!(run = %self.run.id, %error, "runner.ack_failed");
        }
        Ok(())
    }
}
