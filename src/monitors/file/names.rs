//! What rotations make of a name. Pure.
//!
//! The rotated generations of `app.log` stand in its folder and are called, with `.gz`, `.zst` or nothing behind:
//!
//! * `app.log` and what digits, dots, dashes, underscores, colons, `T` and `Z` behind it say: `app.log.1`,
//!   `app.log-20260131`, `app.log.2026-01-31T12:00`; or `app.log.old`;
//! * the same before the last dot, with six digits or more, so that `worker-1.log` is not taken for a generation of
//!   `worker.log`: `app-20260131.log`, `app.2026-01-31-12.log`.
//!
//! [`oldest_first`] tells the order: of dates by themselves; of numbers, which as a rule rise with the age, by
//! the times of the files if they say otherwise; and of anything else by the times.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::order;

/// A date has six digits at least.
const DATE_DIGITS: usize = 6;

/// What a rotated name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rotated {
    /// The name of the file that was rotated.
    pub original: OsString,
    /// Without the end that tells of a compression: equal for a generation and what it is compressed into.
    pub plain: OsString,
    pub age: Age,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Number(u64),
    /// Its digits in their order.
    Date(Vec<u8>),
    Unknown,
}

/// `None`: it is not called like something that was rotated.
pub(super) fn rotated(name: &OsStr) -> Option<Rotated> {
    let name = name.as_bytes();
    let plain =
        [&b".gz"[..], b".zst", b".zstd"].iter().find_map(|end| name.strip_suffix(*end)).unwrap_or(name);
    let named = |original: &[u8], age| {
        Some(Rotated {
            original: OsString::from_vec(original.to_vec()),
            plain: OsString::from_vec(plain.to_vec()),
            age,
        })
    };
    if let Some(original) = plain.strip_suffix(b".old") {
        return named(original, Age::Unknown);
    }
    if let Some((original, tag)) = split_tag(plain) {
        return named(original, age(tag));
    }
    let dot = plain.iter().rposition(|byte| *byte == b'.')?;
    let (stem, extension) = plain.split_at(dot);
    let (stem, tag) = split_tag(stem)?;
    (digits(tag).len() >= DATE_DIGITS).then(|| named(&[stem, extension].concat(), age(tag)))?
}

/// The name, and what a rotation has put behind it: a separator and at least one digit.
fn split_tag(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let of_tag = |byte: &u8| byte.is_ascii_digit() || b".-_:TZ".contains(byte);
    let from = name.iter().rposition(|byte| !of_tag(byte))? + 1;
    let (original, tag) = name.split_at(from);
    let separated = tag.first().is_some_and(|byte| b".-_".contains(byte));
    (separated && tag.iter().any(u8::is_ascii_digit)).then_some((original, tag))
}

fn digits(tag: &[u8]) -> Vec<u8> {
    tag.iter().copied().filter(u8::is_ascii_digit).collect()
}

fn age(tag: &[u8]) -> Age {
    let digits = digits(tag);
    let number = std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok());
    match number {
        Some(number) if digits.len() < DATE_DIGITS => Age::Number(number),
        _ => Age::Date(digits),
    }
}

/// A file that was rotated, with its time of last change as the file system tells it.
#[derive(Clone, Debug)]
pub(super) struct Sibling<T> {
    pub rotated: Rotated,
    pub modified_ns: i64,
    pub what: T,
}

pub(super) fn oldest_first<T>(siblings: &mut [Sibling<T>]) {
    let numbers = |sibling: &Sibling<T>| match sibling.rotated.age {
        Age::Number(number) => Some((number, sibling.modified_ns)),
        _ => None,
    };
    let mut numbered: Vec<(u64, i64)> = siblings.iter().filter_map(numbers).collect();
    order::sort(&mut numbered);
    let steps = |way: Ordering| numbered.windows(2).filter(|two| two[0].1.cmp(&two[1].1) == way).count();
    let rising = steps(Ordering::Less) > steps(Ordering::Greater); // the highest number is the newest
    let all_numbers = numbered.len() == siblings.len();
    let all_dates = siblings.iter().all(|sibling| matches!(sibling.rotated.age, Age::Date(_)));
    order::sort_by(siblings, |a, b| match (&a.rotated.age, &b.rotated.age) {
        (Age::Number(a), Age::Number(b)) if all_numbers && rising => a.cmp(b),
        (Age::Number(a), Age::Number(b)) if all_numbers => b.cmp(a),
        (Age::Date(a), Age::Date(b)) if all_dates => a.cmp(b),
        _ => a.modified_ns.cmp(&b.modified_ns),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_says() {
        let check = |name: &str, original: &str, age: Age| {
            let rotated = rotated(name.as_ref()).unwrap_or_else(|| panic!("{name} is rotated"));
            assert_eq!((rotated.original.to_str().unwrap(), rotated.age), (original, age), "{name}");
        };
        let date = |digits: &str| Age::Date(digits.as_bytes().to_vec());
        check("a.log.1", "a.log", Age::Number(1));
        check("a.log.12.gz", "a.log", Age::Number(12));
        check("a.log-20260131", "a.log", date("20260131"));
        check("a.log-20260131.zst", "a.log", date("20260131"));
        check("a.log.2026-01-31T12:00", "a.log", date("202601311200"));
        check("a-2026-01-31.log", "a.log", date("20260131"));
        check("a.20260131-12.log.gz", "a.log", date("2026013112"));
        check("a.log.old", "a.log", Age::Unknown);
        check("messages-20260131", "messages", date("20260131"));
        check("worker-1.log.1", "worker-1.log", Age::Number(1));
        for name in ["a.log", "a.log.gz", "worker-1.log", "a.log.bak", "1", ".1", "a.log.", "a.log1"] {
            assert_eq!(rotated(name.as_ref()), None, "{name}");
        }
        let plain = |name: &str| rotated(name.as_ref()).unwrap().plain;
        assert_eq!(plain("a.log.1.gz"), plain("a.log.1"));
    }

    #[test]
    fn what_is_older() {
        let check = |names: &[(&str, i64)], expected: &[&str]| {
            let sibling = |(name, modified_ns): &(&str, i64)| Sibling {
                rotated: rotated(name.as_ref()).unwrap(),
                modified_ns: *modified_ns,
                what: name.to_string(),
            };
            let mut siblings: Vec<Sibling<String>> = names.iter().map(sibling).collect();
            oldest_first(&mut siblings);
            let names: Vec<&str> = siblings.iter().map(|sibling| sibling.what.as_str()).collect();
            assert_eq!(names, expected);
        };
        check(&[("a.1", 30), ("a.2.gz", 20), ("a.10", 10)], &["a.10", "a.2.gz", "a.1"]);
        check(&[("a.1", 0), ("a.2", 0)], &["a.2", "a.1"]);
        // One was compressed by something that does not keep the time.
        check(&[("a.1", 30), ("a.2.gz", 31), ("a.3", 10), ("a.4", 9)], &["a.4", "a.3", "a.2.gz", "a.1"]);
        // Numbered the other way round.
        check(&[("a.1", 10), ("a.2", 20), ("a.3", 30)], &["a.1", "a.2", "a.3"]);
        check(&[("a-20260102", 0), ("a-20251231", 5)], &["a-20251231", "a-20260102"]);
        check(&[("a.old", 7), ("a.1", 5), ("a-20260101", 6)], &["a.1", "a-20260101", "a.old"]);
    }
}
