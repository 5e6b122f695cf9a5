-- Where a trace stands, as W3C traceparent: from the API to the runner, and from the runner to the gateway.
-- The rights that each has on these tables cover the new columns.
ALTER TABLE tasks ADD COLUMN traceparent text
    CHECK (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$');
ALTER TABLE model_grants ADD COLUMN traceparent text
    CHECK (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$');
