-- What a run is asked with, and what its end is judged by.

ALTER TABLE runs
    -- The model that the task asks for; NULL: the operator's choice, or the manifest's.
    ADD COLUMN model text,
    -- What the CLI said of itself in this attempt (its last word, its errors), with the output it was read from.
    ADD COLUMN told jsonb,
    -- In words: what the state of an ended run rests on.
    ADD COLUMN decided_by text;
