//! Keeps a `selection` table in step with its source.
