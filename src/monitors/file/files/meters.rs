//! What the thread counts.

use std::sync::Arc;

use crate::metrics::{Counter, Gauge, Registry};

pub(super) struct Meters {
    pub followed: Arc<Gauge>,
    pub open: Arc<Gauge>,
    pub passed_over: Arc<Counter>,
    pub truncations: Arc<Counter>,
    pub cut_lines: Arc<Counter>,
    pub held: Arc<Gauge>,
    pub deleted_given_up: Arc<Counter>,
}

impl Meters {
    pub fn new(metrics: &Registry) -> Meters {
        Meters {
            followed: metrics.gauge("files_followed", "Files that are followed.", &[]),
            open: metrics.gauge("files_open", "Descriptors held on files that are followed.", &[]),
            passed_over: metrics.counter(
                "files_passed_over_total",
                "Files that have no lines: compressed or binary.",
                &[],
            ),
            truncations: metrics.counter(
                "file_truncations_total",
                "Files that became shorter than what was read.",
                &[],
            ),
            held: metrics.gauge(
                "files_deleted_held_bytes",
                "Bytes of the disk that deleted files take since they are held open until they are read.",
                &[],
            ),
            deleted_given_up: metrics.counter(
                "files_deleted_given_up_bytes_total",
                "Unread bytes of deleted files that were let go because of hold_deleted.",
                &[],
            ),
            cut_lines: metrics.counter(
                "lines_cut_total",
                "Pieces without a line end: of lines over the limit, or at a quiet end of a file.",
                &[],
            ),
        }
    }
}
