//! What Loki's refusals say. Pure.
//!
//! Loki answers 400 for a push of which it stored all but the entries it names, when it finds them too old for
//! their stream:
//!
//! ```text
//! entry with timestamp 2024-01-01 00:00:00.000000001 +0000 UTC ignored, reason: 'entry too far behind, …',
//! user 'fake', total ignored: 1 out of 4 for stream: {host="a"}
//! ```
//!
//! It names ten entries at most (by default), and only those of the last stream of a push. So the names are taken for
//! the whole truth only if they account for everything we sent: one stream, all of its entries counted, all ignored
//! ones named, each with a time that one record has. In every other case nobody is named, and the lane splits; what is
//! sent twice by that, Loki drops. A push of several streams is sent again stream by stream: a half of it that ends
//! in a good stream would be taken without a word about the others.

use super::encode::{LokiPayload, Push};
use crate::order;
use crate::sinks::Guilty;

/// Who is to blame for a 400. `cuts`: of the whole batch.
pub(super) fn guilty(body: &str, push: &Push, cuts: &[usize]) -> Guilty {
    if push.streams > 1 {
        return Guilty::Apart(cuts.to_vec());
    }
    named(body, push).map_or(Guilty::Unknown, Guilty::These)
}

/// Who is to blame in a batch of several pushes, of which some are refused and some wait; all others are stored.
pub(super) fn of_several(payload: &LokiPayload, refused: &[(&Push, Guilty)], waiting: &[Push]) -> Guilty {
    let named = |(_, which): &(&Push, Guilty)| match which {
        Guilty::These(named) => Some(named.clone()),
        _ => None,
    };
    if waiting.is_empty()
        && let Some(named) = refused.iter().map(named).collect::<Option<Vec<_>>>()
    {
        let mut all = named.concat();
        order::sort(&mut all);
        return Guilty::These(all);
    }
    if refused.len() + waiting.len() == payload.pushes.len() {
        return Guilty::Apart(payload.cuts.clone());
    }
    let open = refused.iter().map(|(push, _)| *push).chain(waiting);
    let mut open: Vec<usize> = open.flat_map(|push| &push.sent).map(|sent| sent.record as usize).collect();
    order::sort(&mut open);
    open.dedup();
    Guilty::Rest(open)
}

/// Refused for the time of the lines, not for what they are.
pub fn is_about_time(body: &str) -> bool {
    ["timestamp too old", "timestamp too new", "too far behind", "out of order"]
        .iter()
        .any(|reason| body.contains(reason))
}

fn named(body: &str, push: &Push) -> Option<Vec<usize>> {
    let (mut named, mut total) = (Vec::new(), None);
    for line in body.lines() {
        if let Some(entry) = line.strip_prefix("entry with timestamp ") {
            let (time, reason) = entry.split_once(" ignored, reason: ")?;
            // An ill sink, among bad data.
            if reason.contains("rate limit exceeded") {
                return None;
            }
            named.push(time_ns(time)?);
        } else if let (Some(counts), None) = (total_ignored(line), total) {
            total = Some(counts);
        } else {
            return None;
        }
    }
    let everything = (named.len(), push.sent.len());
    if total != Some(everything) {
        return None;
    }
    order::sort(&mut named);
    named.dedup();
    let mut records =
        named.iter().map(|time_ns| only_record_at(*time_ns, push)).collect::<Option<Vec<_>>>()?;
    order::sort(&mut records);
    records.dedup();
    Some(records)
}

/// `user 'fake', total ignored: 1 out of 4 for stream: {…}`.
fn total_ignored(line: &str) -> Option<(usize, usize)> {
    let (_, counts) = line.strip_prefix("user '")?.split_once("', total ignored: ")?;
    let (ignored, rest) = counts.split_once(" out of ")?;
    let (all, _) = rest.split_once(" for stream: ")?;
    Some((ignored.parse().ok()?, all.parse().ok()?))
}

/// How Go prints a time: `2006-01-02 15:04:05.999999999 -0700 MST`. The zone is the server's, for JSON.
fn time_ns(text: &str) -> Option<i64> {
    let mut words = text.split(' ');
    let (date, time, offset) = (words.next()?, words.next()?, words.next()?);
    let time: jiff::Timestamp = format!("{date}T{time}{offset}").parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

/// Pieces of one long line share their time; different records with one time cannot be told apart.
fn only_record_at(time_ns: i64, push: &Push) -> Option<usize> {
    let mut records = push.sent.iter().filter(|sent| sent.time_ns == time_ns).map(|sent| sent.record);
    let record = records.next()?;
    records.all(|other| other == record).then_some(record as usize)
}
