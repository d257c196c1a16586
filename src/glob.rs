//! Patterns as in a shell, for paths and other texts. Pure.
//!
//! `*` is any number of bytes, `?` is one, `[a-z]` is one of these, `[!a-z]` or `[^a-z]` one of the others,
//! `{a,b}` either, and `\` takes the meaning from what follows. In paths none of them crosses folders, but for
//! a whole name `**`: any number of folders, or, at the end, everything below. Texts are bytes: a newline or
//! invalid UTF-8 in one changes nothing.
//!
//! Braces are resolved when a pattern is read, so what is matched is a list of names, each a list of signs; both
//! lists are walked by the same few lines ([`fits`]), whose time is bounded by the product of the lengths.
//!
//! Not here: where a search for a path begins (`monitors/file/glob.rs`).

use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// Ways to read one pattern: more are a mistake, or mischief.
const WAYS_MAX: usize = 1000;

#[derive(Clone, Debug)]
pub struct Glob {
    /// One of them must fit.
    ways: Vec<Vec<Name>>,
    is_path: bool,
}

#[derive(Clone, Debug)]
enum Name {
    /// Any number of names.
    Deep,
    Of(Vec<Sign>),
}

#[derive(Clone, Debug)]
enum Sign {
    /// Any number of bytes.
    Star,
    Any,
    Byte(u8),
    Class {
        negated: bool,
        ranges: Vec<RangeInclusive<u8>>,
    },
}

impl Glob {
    /// For paths.
    pub fn path(pattern: &str) -> Result<Glob> {
        let ways = without_braces(pattern)?.iter().map(|way| names(way)).collect::<Result<_>>()?;
        Ok(Glob { ways, is_path: true })
    }

    /// For texts in which a slash is a byte like any other.
    pub fn text(pattern: &str) -> Result<Glob> {
        let one_name = |way: &Vec<u8>| Ok(vec![Name::Of(signs(way)?)]);
        let ways = without_braces(pattern)?.iter().map(one_name).collect::<Result<_>>()?;
        Ok(Glob { ways, is_path: false })
    }

    pub fn matches(&self, text: impl AsRef<[u8]>) -> bool {
        let is_separator = |byte: &u8| self.is_path && *byte == b'/';
        let subject: Vec<&[u8]> = text.as_ref().split(is_separator).collect();
        let is_deep = |name: &Name| matches!(name, Name::Deep);
        self.ways.iter().any(|way| fits(way, &subject, is_deep, |name, subject| name.is(subject)))
    }
}

impl Name {
    fn is(&self, name: &[u8]) -> bool {
        match self {
            Name::Deep => true,
            Name::Of(signs) => {
                fits(signs, name, |sign| matches!(sign, Sign::Star), |sign, byte| sign.is(*byte))
            }
        }
    }
}

impl Sign {
    fn is(&self, byte: u8) -> bool {
        match self {
            Sign::Star | Sign::Any => true,
            Sign::Byte(own) => *own == byte,
            Sign::Class { negated, ranges } => ranges.iter().any(|range| range.contains(&byte)) != *negated,
        }
    }
}

/// A pattern that stands for exactly `text`.
pub fn escape(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        match c {
            '*' | '?' | '[' | ']' | '{' | '}' | ',' | '\\' => pattern.extend(['[', c, ']']),
            c => pattern.push(c),
        }
    }
    pattern
}

/// Whether `pattern` describes all of `subject`. After a star the shortest is tried first; the last star alone is
/// ever made longer, since an earlier one could only leave less for it.
fn fits<P, S>(
    pattern: &[P],
    subject: &[S],
    is_star: impl Fn(&P) -> bool,
    is: impl Fn(&P, &S) -> bool,
) -> bool {
    let (mut at, mut in_subject, mut last_star) = (0, 0, None);
    while in_subject < subject.len() {
        match pattern.get(at) {
            Some(part) if is_star(part) => {
                at += 1;
                last_star = Some((at, in_subject));
            }
            Some(part) if is(part, &subject[in_subject]) => {
                at += 1;
                in_subject += 1;
            }
            _ => {
                let Some((behind, from)) = last_star else { return false };
                (at, in_subject) = (behind, from + 1);
                last_star = Some((behind, from + 1));
            }
        }
    }
    pattern[at..].iter().all(is_star)
}

fn names(pattern: &[u8]) -> Result<Vec<Name>> {
    let mut names = Vec::new();
    let mut rest = pattern;
    loop {
        let end = end_of(rest, |byte| byte == b'/')?;
        let name = &rest[..end.unwrap_or(rest.len())];
        names.push(if name == b"**" { Name::Deep } else { Name::Of(signs(name)?) });
        match end {
            Some(end) => rest = &rest[end + 1..],
            None => break,
        }
    }
    if let Some(Name::Deep) = names.last() {
        names.push(Name::Of(vec![Sign::Star])); // what is below, and not the folder itself
    }
    Ok(names)
}

fn signs(name: &[u8]) -> Result<Vec<Sign>> {
    let mut signs = Vec::new();
    let mut rest = name;
    while let Some(&first) = rest.first() {
        let length = sign_length(rest)?;
        match first {
            b'*' if matches!(signs.last(), Some(Sign::Star)) => {}
            b'*' => signs.push(Sign::Star),
            b'?' => signs.push(Sign::Any),
            b'[' => signs.push(class(&rest[1..length - 1])?),
            b'\\' => signs.push(Sign::Byte(rest[1])),
            byte => signs.push(Sign::Byte(byte)),
        }
        rest = &rest[length..];
    }
    Ok(signs)
}

/// `inside`: what stands between the brackets.
fn class(inside: &[u8]) -> Result<Sign> {
    let negated = inside.first().is_some_and(|byte| b"!^".contains(byte));
    let mut rest = if negated { &inside[1..] } else { inside };
    let mut ranges = Vec::new();
    while let [first, behind @ ..] = rest {
        let (last, behind) = match behind {
            [b'-', last, behind @ ..] => (last, behind),
            _ => (first, behind),
        };
        if last < first {
            let said = format!("the range {}-{} goes backwards", char::from(*first), char::from(*last));
            return Err(Error::new(said));
        }
        ranges.push(*first..=*last);
        rest = behind;
    }
    Ok(Sign::Class { negated, ranges })
}

/// Everything that `pattern` can be read as, without braces.
fn without_braces(pattern: &str) -> Result<Vec<Vec<u8>>> {
    let mut done = Vec::new();
    let mut open = vec![pattern.as_bytes().to_vec()];
    while let Some(way) = open.pop() {
        if done.len() + open.len() > WAYS_MAX {
            return Err(Error::new(format!("its braces can be read in more than {WAYS_MAX} ways")));
        }
        match end_of(&way, |byte| b"{}".contains(&byte))? {
            None => done.push(way),
            Some(at) if way[at] == b'}' => return Err(Error::new("a } stands without a {")),
            Some(at) => {
                let (before, rest) = (&way[..at], &way[at + 1..]);
                let (choices, behind) = choices(rest)?;
                open.extend(choices.iter().map(|choice| [before, choice, behind].concat()));
            }
        }
    }
    Ok(done)
}

/// What the braces offer that `rest` stands in, and what follows them.
fn choices(rest: &[u8]) -> Result<(Vec<&[u8]>, &[u8])> {
    let (mut choices, mut depth, mut from, mut at) = (Vec::new(), 0, 0, 0);
    while let Some(found) = end_of(&rest[at..], |byte| b"{},".contains(&byte))? {
        at += found;
        match rest[at] {
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            byte if depth == 0 => {
                choices.push(&rest[from..at]);
                from = at + 1;
                if byte == b'}' {
                    return Ok((choices, &rest[from..]));
                }
            }
            _ => {}
        }
        at += 1;
    }
    Err(Error::new("a { stands without a }"))
}

/// Where the first sign stands that `ends` and has its meaning.
fn end_of(pattern: &[u8], ends: impl Fn(u8) -> bool) -> Result<Option<usize>> {
    let mut at = 0;
    while at < pattern.len() {
        if ends(pattern[at]) {
            return Ok(Some(at));
        }
        at += sign_length(&pattern[at..])?;
    }
    Ok(None)
}

/// In bytes. A bracket that closes at once is one of those that are meant.
fn sign_length(pattern: &[u8]) -> Result<usize> {
    match pattern {
        [b'\\'] => Err(Error::new("a \\ stands at the end; it takes the meaning from what follows")),
        [b'\\', ..] => Ok(2),
        [b'[', inside @ ..] => {
            let first = 1 + usize::from(inside.first().is_some_and(|byte| b"!^".contains(byte)));
            let end = inside.iter().skip(first).position(|byte| *byte == b']');
            end.map(|end| 1 + first + end + 1).ok_or_else(|| Error::new("a [ stands without a ]"))
        }
        _ => Ok(1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let glob = Glob::path(pattern).unwrap();
        yes.iter().for_each(|path| assert!(glob.matches(path), "{pattern} is {path}"));
        no.iter().for_each(|path| assert!(!glob.matches(path), "{pattern} is not {path}"));
    }

    #[test]
    fn signs_mean_what_they_mean_in_a_shell() {
        check("/v/*.log", &["/v/a.log", "/v/.log"], &["/v/a.log.1", "/v/x/a.log", "v/a.log"]);
        check("/v/a?c", &["/v/abc"], &["/v/ac", "/v/abbc", "/v/a/c"]);
        check("/v/[a-cx]*[!0-9]", &["/v/ab", "/v/xyz"], &["/v/a1", "/v/d", "/v/a/b"]);
        check("/v/[]a]", &["/v/]", "/v/a"], &["/v/[]a]"]);
        check("/v/[!]a][]-]", &["/v/b]", "/v/b-"], &["/v/a]", "/v/]-"]);
        check("/v/{a,b{1,2},}.log", &["/v/a.log", "/v/b2.log", "/v/.log"], &["/v/b.log"]);
        check("/v/{a/b,c}/x", &["/v/a/b/x", "/v/c/x"], &["/v/a/x"]);
        check("/v/\\*\\{[*]", &["/v/*{*"], &["/v/a{*"]);
        check("/v/a,b", &["/v/a,b"], &["/v/a"]);
    }

    #[test]
    fn two_stars_are_any_number_of_folders() {
        check("/v/**/a", &["/v/a", "/v/x/a", "/v/x/y/a"], &["/w/a", "/v/xa", "/v/a/x"]);
        check("/v/**", &["/v/a", "/v/x/a"], &["/v", "/w/a"]);
        check("**/*.gz", &["/v/a.gz", "a.gz"], &["/v/a.log"]);
        check("/v/a**b/c", &["/v/ab/c", "/v/axb/c"], &["/v/a/b/c"]);
        check("/**/a/**/b/*", &["/x/a/y/b/z", "/a/b/b"], &["/a/b", "/b/a/z"]);
    }

    #[test]
    fn in_a_text_a_slash_is_a_byte() {
        let glob = Glob::text("registry/*:v?").unwrap();
        assert!(glob.matches("registry/team/app:v1") && !glob.matches("registry/team/app:latest"));
    }

    #[test]
    fn what_is_no_pattern_is_said() {
        let says = |pattern| Glob::path(pattern).unwrap_err().to_string();
        assert_eq!(says("/v/[a"), "a [ stands without a ]");
        assert_eq!(says("/v/{a,b"), "a { stands without a }");
        assert_eq!(says("/v/a}"), "a } stands without a {");
        assert_eq!(says("/v/[z-a]"), "the range z-a goes backwards");
        assert!(says("/v/\\").starts_with("a \\ stands at the end"));
        assert!(says(&"{a,b}".repeat(40)).contains("more than 1000 ways"));
    }

    #[test]
    fn what_is_escaped_is_itself() {
        let text = "/v/{a,b}*?[x]\\!";
        let glob = Glob::path(&escape(text)).unwrap();
        assert!(glob.matches(text) && !glob.matches("/v/a*?[x]\\!"));
    }

    proptest! {
        /// What others make of the same pattern; but that theirs takes a slash for `[!a]`.
        #[test]
        fn it_agrees_with_globset(
            pattern in "(/(\\*\\*|(a|b|\\*|\\?|\\[ab\\]|\\[!a/\\]|\\{a,b\\*\\}|\\{a\\{b,ab\\},\\?\\}|\\\\\\*){1,4})){1,4}",
            path in "(/[ab*]{1,3}){1,5}",
        ) {
            prop_assume!(!pattern.contains("***") && !is_part_of_a_name(&pattern));
            let theirs = globset::GlobBuilder::new(&pattern).literal_separator(true).build().unwrap();
            let Ok(ours) = Glob::path(&pattern) else { return Err(TestCaseError::reject("too many ways")) };
            prop_assert_eq!(ours.matches(&path), theirs.compile_matcher().is_match(&path));
        }

        #[test]
        fn a_text_agrees_with_globset(pattern in "(a|/|\\*|\\?|\\{a,b/\\}|\\[!a\\]){1,7}", text in "[ab/]{0,8}") {
            prop_assume!(!pattern.contains("**"));
            let theirs = globset::Glob::new(&pattern).unwrap().compile_matcher();
            prop_assert_eq!(Glob::text(&pattern).unwrap().matches(&text), theirs.is_match(&text));
        }

        #[test]
        fn nothing_makes_it_panic(pattern in "[ab*?\\[\\]{},\\\\!^/-]{0,12}", text in "[ab/*]{0,8}") {
            if let Ok(glob) = Glob::path(&pattern) {
                glob.matches(&text);
            }
        }
    }

    /// Two stars beside something else.
    fn is_part_of_a_name(pattern: &str) -> bool {
        pattern.split('/').any(|name| name != "**" && name.contains("**"))
    }
}
