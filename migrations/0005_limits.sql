-- Each limit is an end of its own: a full disk, too many processes, too large a file.
ALTER TABLE runs DROP CONSTRAINT runs_state_check;
ALTER TABLE runs ADD CONSTRAINT runs_state_check CHECK (state IN (
    'queued', 'preparing', 'running', 'harvesting',
    'succeeded', 'failed', 'no_changes', 'timed_out', 'idle_timeout', 'out_of_memory',
    'output_limit', 'disk_limit', 'process_limit', 'file_limit', 'budget_exhausted', 'cancelled', 'sandbox_error', 'lost'));

-- The OCI runtime that the task asks for.
ALTER TABLE runs ADD COLUMN runtime text;

-- What a runner gives a run that asks for none, and all that may be asked for; unknown of an older runner.
ALTER TABLE runners ADD COLUMN runtime text, ADD COLUMN runtimes text[] NOT NULL DEFAULT '{}';
