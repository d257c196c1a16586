//! The `keep` and `drop` stages: what is worth sending.

use std::sync::Arc;

use memchr::memmem::Finder;
#[cfg(feature = "regex")]
use regex::bytes::{Regex, RegexBuilder};

use super::line::{FieldId, Line};
use super::{Builder, Step};

/// A compiled expression and the memory it uses while it searches, each: they exist once in every worker.
#[cfg(feature = "regex")]
const REGEX_BYTES_MAX: usize = 1024 * 1024;

/// `"type": "keep"`: drops what does not match. `"type": "drop"`: drops what does.
#[derive(Clone, Debug)]
pub struct MatchOptions {
    pub condition: Condition,
    /// `reason`: what dropped lines are counted under, instead of `pipeline[<n>]: <type>`.
    pub reason: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub enum Condition {
    /// `match`: a regular expression that is found in the text (syntax of the crate regex; takes linear time).
    Match(String),
    /// `contains`: these bytes are found in the text.
    Contains(String),
    /// `field` and `equals`: a JSON field is there and has this text. Numbers compare as they are written.
    Field { field: Arc<str>, equals: Arc<str> },
}

pub(super) struct Matcher {
    test: Test,
    drop_if: bool,
}

enum Test {
    #[cfg(feature = "regex")]
    Regex(Regex),
    Bytes(Box<Finder<'static>>),
    Field(FieldId, Arc<str>),
}

impl Matcher {
    /// `None` after a complaint.
    pub fn new(options: &MatchOptions, drop_if: bool, builder: &mut Builder<'_>) -> Option<Matcher> {
        let test = match &options.condition {
            Condition::Match(pattern) => regex(pattern, builder)?,
            Condition::Contains(bytes) if bytes.is_empty() => {
                builder.complain("contains", "\"\" is found in every line; give some text".into());
                return None;
            }
            Condition::Contains(bytes) => Test::Bytes(Box::new(Finder::new(bytes.as_bytes()).into_owned())),
            Condition::Field { field, equals } => Test::Field(builder.field("field", field), equals.clone()),
        };
        Some(Matcher { test, drop_if })
    }

    pub fn step(&self, line: &Line<'_>) -> Step {
        let matches = match &self.test {
            #[cfg(feature = "regex")]
            Test::Regex(regex) => regex.is_match(line.text()),
            Test::Bytes(finder) => finder.find(line.text()).is_some(),
            Test::Field(id, equals) => line.field(*id).is_some_and(|value| *value == **equals),
        };
        if matches == self.drop_if { Step::Drop } else { Step::Next }
    }
}

#[cfg(not(feature = "regex"))]
fn regex(_: &str, builder: &mut Builder<'_>) -> Option<Test> {
    let says = "needs regular expressions, which this build leaves out (cargo feature regex); write contains";
    builder.complain("match", says.into());
    None
}

#[cfg(feature = "regex")]
fn regex(pattern: &str, builder: &mut Builder<'_>) -> Option<Test> {
    let mut regex = RegexBuilder::new(pattern);
    regex.size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX);
    regex
        .build()
        .map(Test::Regex)
        .map_err(|cause| {
            let complaint = match cause {
                regex::Error::CompiledTooBig(limit) => {
                    format!("{pattern:?} takes more than {limit} bytes; repeat less, or use two stages")
                }
                cause => {
                    // A picture with a caret, and the cause in its last line.
                    let picture = cause.to_string();
                    let why = picture.lines().last().unwrap_or_default();
                    let why = why.strip_prefix("error: ").unwrap_or(why);
                    format!("{pattern:?} is not a regular expression: {why}")
                }
            };
            builder.complain("match", complaint);
        })
        .ok()
}
