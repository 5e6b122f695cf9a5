-- Backups: what names their files.

-- A file of a backup is named by an HMAC of what is in it, so that the next backup finds it again, and so that a name tells nobody who
-- lacks this key what an encrypted file holds. Made by the first backup; no zone's role reads it.
CREATE TABLE backup_name_key (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    key bytea NOT NULL CHECK (octet_length(key) = 32)
);
