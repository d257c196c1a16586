//! What to do next about a file that is followed. Pure.
//!
//! Not here: who does it (`tail.rs`).

use std::time::Duration;

/// How long a file that no pattern leads to any more is followed after its last change: a writer that was not
/// told of a rotation writes on for a while.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// What is known of a file at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub position: u64,
    /// Up to here there is no line end behind the position.
    pub scanned: u64,
    pub size: u64,
    /// Since its size or its names have changed.
    pub quiet: Duration,
    /// No pattern leads to it any more.
    pub gone: bool,
    /// It has no name at all.
    pub deleted: bool,
    /// Ship what is there, and nothing that comes later.
    pub once: bool,
    pub idle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is shorter than what was read: it begins anew.
    Truncated,
    Read,
    /// The half line at the end will not be completed soon.
    ShipHalf,
    /// Nothing to do before it changes, or time passes.
    Wait,
    /// Nothing more will come.
    Finish,
}

pub(super) fn next_step(look: &Look) -> Step {
    let Look { position, scanned, size, quiet, gone, deleted, once, idle } = *look;
    if size < position {
        Step::Truncated
    } else if size > scanned.max(position) {
        Step::Read
    } else if size > position {
        if once || quiet >= idle { Step::ShipHalf } else { Step::Wait }
    } else if deleted {
        // A writer may still have it open.
        if once || quiet >= idle { Step::Finish } else { Step::Wait }
    } else if gone && !once {
        // With `once` the next run decides: if it was only renamed, it is known by its inode.
        if quiet >= GRACE { Step::Finish } else { Step::Wait }
    } else {
        Step::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look {
        position: 100,
        scanned: 100,
        size: 100,
        quiet: Duration::ZERO,
        gone: false,
        deleted: false,
        once: false,
        idle: Duration::from_secs(5),
    };

    fn check(step: Step, look: Look) {
        assert_eq!(next_step(&look), step, "{look:?}");
    }

    #[test]
    fn what_to_do_next() {
        let secs = Duration::from_secs;
        check(Step::Wait, LOOK);
        check(Step::Wait, Look { quiet: secs(1_000_000), ..LOOK });
        check(Step::Read, Look { size: 101, ..LOOK });
        check(Step::Truncated, Look { size: 99, ..LOOK });
        check(Step::Truncated, Look { size: 0, deleted: true, ..LOOK });
        // A half line: read once, then only when it has grown or nobody goes on.
        let half = Look { size: 110, scanned: 110, ..LOOK };
        check(Step::Wait, half);
        check(Step::Read, Look { size: 111, ..half });
        check(Step::Wait, Look { quiet: secs(4), ..half });
        check(Step::ShipHalf, Look { quiet: secs(5), ..half });
        check(Step::ShipHalf, Look { once: true, ..half });
        check(Step::ShipHalf, Look { deleted: true, quiet: secs(5), ..half });
        check(Step::Wait, Look { deleted: true, ..half });
        // Deleted: its writer may go on for a moment.
        let deleted = Look { deleted: true, gone: true, ..LOOK };
        check(Step::Read, Look { size: 101, quiet: secs(100), ..deleted });
        check(Step::Wait, Look { quiet: secs(4), ..deleted });
        check(Step::Finish, Look { quiet: secs(5), ..deleted });
        // Renamed to where no pattern leads.
        let gone = Look { gone: true, ..LOOK };
        check(Step::Wait, Look { quiet: secs(59), ..gone });
        check(Step::Finish, Look { quiet: secs(60), ..gone });
        check(Step::Read, Look { quiet: secs(60), size: 101, ..gone });
        check(Step::Wait, Look { quiet: secs(60), once: true, ..gone });
    }
}
