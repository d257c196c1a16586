//! What the strings of a configuration mean: durations, sizes, variables of the environment, names; and how
//! values are shown in a complaint. Pure.

use std::time::Duration;

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
pub const GIB: u64 = 1024 * MIB;

/// Longest first, so that `MiB` is not taken for `B`; and largest first, for [`show_size`].
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1024 * GIB),
    ("TB", 1_000_000_000_000),
    ("GiB", GIB),
    ("GB", 1_000_000_000),
    ("MiB", MIB),
    ("MB", 1_000_000),
    ("KiB", KIB),
    ("KB", 1_000),
    ("B", 1),
];

/// `"5s"`, `"250ms"`, `"1m30s"`, `"2h"`; a bare number is refused, since nobody knows its unit.
pub fn duration(text: &str) -> Option<Duration> {
    // Long enough for "1h 30m 15s 250ms", too short for sums of whole parts that overflow a duration.
    if text.len() > 24 { None } else { humantime::parse_duration(text).ok() }
}

/// In the form [`duration`] reads.
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

/// `"1MiB"`, `"64 KiB"`, `"100"` (bytes); `KB`, `MB`, `GB` count by 1000.
pub fn size(text: &str) -> Option<u64> {
    let (digits, unit) =
        UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes))).unwrap_or((text, 1));
    let digits = digits.trim_end_matches(' ');
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse::<u64>().ok()?.checked_mul(unit) } else { None }
}

/// In the form [`size`] reads, exact: `4MiB`, `300KB`, `1234`.
pub fn show_size(bytes: u64) -> String {
    UNITS
        .iter()
        .find(|(_, unit)| *unit > 1 && bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// A size for people: `16 MiB`, `2.1 MiB`.
pub fn figure(bytes: usize) -> String {
    let units = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let Some((unit, name)) = units.into_iter().find(|(unit, _)| bytes as u64 >= *unit) else {
        return format!("{bytes} bytes");
    };
    let digits = format!("{:.1}", bytes as f64 / unit as f64);
    format!("{} {name}", digits.strip_suffix(".0").unwrap_or(&digits))
}

/// Replaces `${NAME}` and `${NAME:-default}` (the default also stands in for an empty variable, as in a
/// shell); `$$` is a `$`, and a `$` before anything else is itself. The error says what to do.
pub fn substitute(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut value = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        value.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            value.push('$');
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('{') {
            let Some((variable, after)) = inside.split_once('}') else {
                return Err("has a ${ without its }; write $$ for a literal $".into());
            };
            value.push_str(&look_up(variable, env)?);
            rest = after;
        } else {
            value.push('$');
        }
    }
    value.push_str(rest);
    Ok(value)
}

fn look_up(variable: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = match variable.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (variable, None),
    };
    if !is_identifier(name) || default.is_some_and(|text| text.contains("${")) {
        return Err(
            "has a ${…} that is neither ${NAME} nor ${NAME:-default}; write $$ for a literal $".into()
        );
    }
    match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            Err(format!("the environment variable {name} is not set; set it, or write ${{{name}:-default}}"))
        }
    }
}

fn is_identifier(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| word(c) && !c.is_ascii_digit()) && name.chars().all(word)
}

/// What is wrong with a label's name, after <https://prometheus.io/docs/concepts/data_model/>.
pub fn label_name_complaint(name: &str) -> Option<&'static str> {
    if !is_identifier(name) {
        Some("is not a label name; use letters, digits and _, and no digit first")
    } else if name.starts_with("__") {
        Some("is not free: label names that begin with __ are reserved")
    } else {
        None
    }
}

/// What is wrong with the name of a source or a sink, which ends up in paths, labels and metrics.
pub fn name_complaint(name: &str) -> Option<&'static str> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) || name.chars().all(|c| c == '.') {
        Some("is not a name; use 1 to 64 of the characters A-Z a-z 0-9 _ . -")
    } else {
        None
    }
}

/// A string as it stands in a complaint: quoted, on one line, at most some sixty characters of it.
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The allowed word that was probably meant.
pub fn nearest<'a>(word: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let word: String = word.chars().take(64).collect::<String>().to_ascii_lowercase();
    let near = |known: &&'a str| (distance(&word, &known.to_ascii_lowercase()), *known);
    let (far, known) = allowed.iter().map(near).min()?;
    (far <= (known.len() / 3).clamp(1, 3)).then_some(known)
}

/// How many letters must be changed, added, removed or exchanged with their neighbour.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut table = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = table[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
                let swapped = i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1];
                let swap = if swapped { table[i - 2][j - 2] + 1 } else { change };
                change.min(swap).min(table[i - 1][j] + 1).min(table[i][j - 1] + 1)
            };
        }
    }
    table[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected_ms) in [
            ("5s", Some(5_000)),
            ("250ms", Some(250)),
            ("2h", Some(7_200_000)),
            ("1m30s", Some(90_000)),
            ("1m 30s", Some(90_000)),
            ("1.5s", Some(1_500)),
            ("0s", Some(0)),
            ("1d", Some(86_400_000)),
            ("5", None),
            ("", None),
            ("-5s", None),
            ("5 parsecs", None),
            ("s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615s1000ms", None),
        ] {
            assert_eq!(duration(text), expected_ms.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1MiB", Some(MIB)),
            ("64KiB", Some(64 * KIB)),
            ("64 KiB", Some(64 * KIB)),
            ("100", Some(100)),
            ("100B", Some(100)),
            ("256KB", Some(256_000)),
            ("3MB", Some(3_000_000)),
            ("1GB", Some(1_000_000_000)),
            ("2GiB", Some(2 * GIB)),
            ("1TiB", Some(1024 * GIB)),
            ("0", Some(0)),
            ("", None),
            ("MiB", None),
            ("1.5MiB", None),
            ("-1", None),
            ("+1", None),
            ("1mib", None),
            ("1M", None),
            ("1 000", None),
            ("99999999999999999999", None),
            ("99999999999GiB", None),
        ] {
            assert_eq!(size(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for bytes in [0, 1, 999, 1000, 1024, 256_000, 4 * MIB, 4 * MIB - 1, 7 * GIB] {
            assert_eq!(size(&show_size(bytes)), Some(bytes));
        }
        assert_eq!((show_size(4 * MIB), show_size(300_000)), ("4MiB".into(), "300KB".into()));
        let figures = [100, 16 * 1024 * 1024, 2_162_688].map(figure);
        assert_eq!(figures, ["100 bytes", "16 MiB", "2.1 MiB"]);
        for ms in [1, 250, 1_000, 90_000, 86_400_000] {
            let one = Duration::from_millis(ms);
            assert_eq!(duration(&show_duration(one)), Some(one));
        }
    }

    #[test]
    fn variables() {
        let env = |name: &str| match name {
            "HOST" => Some("web".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICK" => Some("${HOST}".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("plain", Ok("plain")),
            ("${HOST}", Ok("web")),
            ("a-${HOST}-${HOST}-b", Ok("a-web-web-b")),
            ("${NONE:-x y}", Ok("x y")),
            ("${HOST:-x}", Ok("web")),
            ("${EMPTY}", Ok("")),
            ("${EMPTY:-x}", Ok("x")),
            ("${NONE:-}", Ok("")),
            ("${TRICK}", Ok("${HOST}")),
            ("$$", Ok("$")),
            ("$${HOST}", Ok("${HOST}")),
            ("$$$${HOST}", Ok("$${HOST}")),
            ("$$${HOST}", Ok("$web")),
            ("^a$", Ok("^a$")),
            ("$HOST", Ok("$HOST")),
            ("${NONE}", Err("NONE is not set")),
            ("${HOST", Err("without its }")),
            ("${}", Err("neither ${NAME}")),
            ("${A B}", Err("neither ${NAME}")),
            ("${NONE:-${HOST}}", Err("neither ${NAME}")),
        ] {
            match (substitute(text, &env), expected) {
                (Ok(value), Ok(expected)) => assert_eq!(value, expected, "{text:?}"),
                (Err(says), Err(expected)) => assert!(says.contains(expected), "{text:?}: {says}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn suggestions() {
        let keys = ["include", "exclude", "max_bytes", "url"];
        for (word, expected) in [
            ("inclued", Some("include")),
            ("Include", Some("include")),
            ("maxBytes", Some("max_bytes")),
            ("max-bytes", Some("max_bytes")),
            ("uri", Some("url")),
            ("ulr", Some("url")),
            ("banana", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &keys), expected, "{word:?}");
        }
    }
}
