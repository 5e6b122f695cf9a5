-- Each limit is an end of its own: a full disk, too many processes, too large a file.
ALTER TABLE runs DROP CONSTRAINT runs_state_check;
ALTER TABLE runs ADD CONSTRAINT runs_state_check CHECK (state IN (
    'queued', 'preparing', 'running', 'harvesting',
    'succeeded', 'failed', 'no_changes', 'timed_out', 'idle_timeout', 'out_of_memory',
    'output_limit', 'disk_limit', 'process_limit', 'file_limit', 'budget_exhausted', 'cancelled', 'sandbox_error', 'lost'));
