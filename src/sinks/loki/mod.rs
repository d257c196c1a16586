//! Loki.
