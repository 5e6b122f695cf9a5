-- What the shim of an attempt's sandbox found there before the CLI began, and what of it nobody asked for.
ALTER TABLE attempts ADD COLUMN containment jsonb;
-- Of the last attempt; NULL until it is known.
ALTER TABLE runs ADD COLUMN contained boolean;

-- One more end: the sandbox was not what it was asked to be, and no CLI was started in it.
ALTER TABLE runs DROP CONSTRAINT runs_state_check;
ALTER TABLE runs ADD CONSTRAINT runs_state_check CHECK (state IN (
    'queued', 'preparing', 'running', 'harvesting',
    'succeeded', 'failed', 'no_changes', 'timed_out', 'idle_timeout', 'out_of_memory',
    'output_limit', 'disk_limit', 'process_limit', 'file_limit', 'budget_exhausted', 'cancelled',
    'containment_refused', 'sandbox_error', 'lost'));
