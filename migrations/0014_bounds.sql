-- What a run changed does not make an answer larger without end, and no attempt is begun for ever.

-- The first of the changed paths, which lists of tasks name: at most 1000, and 64 KiB of them. All are in `files`.
ALTER TABLE run_results ADD COLUMN paths text[] NOT NULL DEFAULT '{}';
UPDATE run_results SET paths = ARRAY(
    SELECT path FROM (
        SELECT file ->> 'path' AS path, number, sum(octet_length(file ->> 'path')) OVER (ORDER BY number) AS bytes
        FROM jsonb_array_elements(files) WITH ORDINALITY AS listed (file, number) WHERE number <= 1000) AS first
    WHERE bytes <= 65536 ORDER BY number);

-- How often a runner has set about this attempt: to prepare it, or to take in what it left.
ALTER TABLE attempts ADD COLUMN starts integer NOT NULL DEFAULT 1;
