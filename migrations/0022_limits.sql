-- Limits on the whole.

-- Whose runs wait is asked at every submission: as tasks.submitted_by, where the queue's index has it. A release that does not
-- write it leaves NULL: such runs count in all, and against nobody.
ALTER TABLE runs ADD COLUMN submitted_by text;
UPDATE runs r SET submitted_by = t.submitted_by FROM tasks t WHERE t.id = r.task_id AND r.state = 'queued';
CREATE INDEX runs_queue_by_submitter ON runs (submitted_by) WHERE state = 'queued';

-- Claimed and not begun: asked at every claim where the runs of a repository are limited.
CREATE INDEX runs_queue_claimed ON runs (lease_expires_at) WHERE state = 'queued' AND lease_expires_at IS NOT NULL;
