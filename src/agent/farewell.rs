//! The last sentence of a life that could not deliver everything: what is pending, and where it stands. Pure.
//!
//! Always true: it names something whenever [`Books::all_delivered`] says no.

use crate::config::figure;
use crate::ledger::{Books, SinkBooks};

/// `stopped with data pending: loki: 2 lines (19 bytes) unanswered, read again at the next start; …`. Without a full stop.
pub(super) fn pending(books: &Books) -> String {
    let mut parts: Vec<String> = books.sinks.iter().flat_map(of_sink).collect();
    if books.unread > 0 {
        parts.push(format!("{} not read yet, read at the next start", size(books.unread)));
    }
    if books.given_up > 0 {
        parts.push(format!("{} given up, lost (log-capturer audit says why)", size(books.given_up)));
    }
    if books.unseen > 0 {
        parts.push(format!("{} places not looked into, looked into at the next start", books.unseen));
    }
    format!("stopped with data pending: {}", parts.join("; "))
}

fn of_sink(sink: &SinkBooks) -> impl Iterator<Item = String> {
    let kept = sink.kept;
    let lost = sink.lost;
    let unanswered = (
        (sink.pending + sink.let_go).saturating_sub(lost.lines),
        (sink.pending_bytes + sink.let_go_bytes).saturating_sub(lost.bytes),
    );
    let cases = [
        (unanswered, "unanswered, read again at the next start"),
        ((lost.lines, lost.bytes), "lost: they came through a stream, and could be kept nowhere"),
        ((sink.spooled.lines, sink.spooled.bytes), "in its spool, sent at the next start"),
        ((kept.lines, kept.bytes), "among the dead letters (log-capturer deadletter replay sends them)"),
    ];
    let name = &sink.name;
    cases.into_iter().filter(|((lines, _), _)| *lines > 0).map(move |((lines, bytes), where_they_stand)| {
        let noun = if lines == 1 { "line" } else { "lines" };
        format!("{name}: {lines} {noun} ({}) {where_they_stand}", size(bytes))
    })
}

fn size(bytes: u64) -> String {
    figure(usize::try_from(bytes).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ack::Count;

    fn check(change: impl Fn(&mut Books), expected: &str) {
        let mut books = Books {
            sinks: vec![SinkBooks { name: "loki".into(), ..SinkBooks::default() }],
            ..Books::default()
        };
        assert!(books.all_delivered());
        change(&mut books);
        assert!(!books.all_delivered(), "{expected}");
        assert_eq!(pending(&books), format!("stopped with data pending: {expected}"));
    }

    #[test]
    fn everything_that_is_pending_is_named_with_its_place() {
        let count = Count { lines: 2, bytes: 30 };
        check(
            |books| (books.sinks[0].let_go, books.sinks[0].let_go_bytes) = (2, 30),
            "loki: 2 lines (30 bytes) unanswered, read again at the next start",
        );
        check(
            |books| (books.sinks[0].pending, books.sinks[0].pending_bytes) = (1, 4096),
            "loki: 1 line (4 KiB) unanswered, read again at the next start",
        );
        check(
            |books| {
                (books.sinks[0].let_go, books.sinks[0].let_go_bytes) = (3, 40);
                books.sinks[0].lost = count;
            },
            "loki: 1 line (10 bytes) unanswered, read again at the next start; \
             loki: 2 lines (30 bytes) lost: they came through a stream, and could be kept nowhere",
        );
        check(
            |books| books.sinks[0].spooled = count,
            "loki: 2 lines (30 bytes) in its spool, sent at the next start",
        );
        check(
            |books| books.sinks[0].kept = count,
            "loki: 2 lines (30 bytes) among the dead letters (log-capturer deadletter replay sends them)",
        );
        check(|books| books.unread = 7, "7 bytes not read yet, read at the next start");
        check(|books| books.given_up = 7, "7 bytes given up, lost (log-capturer audit says why)");
        check(|books| books.unseen = 3, "3 places not looked into, looked into at the next start");
        check(
            |books| (books.sinks[0].spooled, books.unread) = (count, 7),
            "loki: 2 lines (30 bytes) in its spool, sent at the next start; 7 bytes not read yet, read at the next start",
        );
    }
}
