//! Which containers are followed, and which labels their lines have. Pure.
//!
//! Always true: a label has at most [`VALUES_MAX`] values in the life of the agent; a further one becomes
//! [`OTHER`], so that a host that makes a thousand containers an hour does not make as many streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::api::Listed;
use crate::glob::Glob;
use crate::record::Labels;

/// Loki and its like begin to suffer above some ten thousand streams, which are the product of all labels.
const VALUES_MAX: usize = 1_000;

const OTHER: &str = "other";

/// A container that has this label with `false` is never followed; with `true` it is, where others must ask for it.
pub const ENABLE: &str = "log-capturer.enable";

/// Names the stages of the pipeline that a container's lines pass besides those of all, with commas in between.
pub const STAGES: &str = "log-capturer.stages";

const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// What is known of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub id: String,
    pub name: String,
    pub image: String,
    pub labels: BTreeMap<String, String>,
    /// `NAME=value`; empty where nobody asked for it.
    pub env: Vec<String>,
}

impl Facts {
    pub fn of_list(listed: Listed) -> Facts {
        let name = listed.names.iter().flatten().next().map(|name| name.trim_start_matches('/').to_owned());
        Facts {
            id: listed.id,
            name: name.unwrap_or_default(),
            image: listed.image,
            labels: listed.labels.unwrap_or_default(),
            env: Vec::new(),
        }
    }

    /// As an event names it: what belongs to the event is among the labels, and does no harm there.
    pub fn of_event(id: &str, attributes: &BTreeMap<String, String>) -> Facts {
        let text = |key| attributes.get(key).cloned().unwrap_or_default();
        Facts {
            id: id.to_owned(),
            name: text("name"),
            image: text("image"),
            labels: attributes.clone(),
            env: Vec::new(),
        }
    }

    /// As people call it: `name (0123456789ab)`.
    pub fn called(&self) -> String {
        format!("{} ({})", self.name, short(&self.id))
    }
}

/// The first twelve digits, as every tool shows it.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Patterns for names, images and labels.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    pub names: Vec<Glob>,
    pub images: Vec<Glob>,
    pub labels: Vec<(String, Glob)>,
}

impl Matching {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.images.is_empty() && self.labels.is_empty()
    }

    /// By some pattern of each kind that has any.
    fn all_kinds(&self, facts: &Facts) -> bool {
        let one = |patterns: &[Glob], text: &str| {
            patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
        };
        one(&self.names, &facts.name)
            && one(&self.images, &facts.image)
            && self.labels.iter().all(|label| has(facts, label))
    }

    /// By some pattern of any kind.
    fn any(&self, facts: &Facts) -> bool {
        self.names.iter().any(|pattern| pattern.matches(&facts.name))
            || self.images.iter().any(|pattern| pattern.matches(&facts.image))
            || self.labels.iter().any(|label| has(facts, label))
    }
}

fn has(facts: &Facts, (key, pattern): &(String, Glob)) -> bool {
    facts.labels.get(key).is_some_and(|value| pattern.matches(value))
}

#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Of each kind that has patterns, one must match.
    pub include: Matching,
    /// One that matches is enough.
    pub exclude: Matching,
    /// Only those that have the label [`ENABLE`] with `true`.
    pub opt_in: bool,
}

impl Choice {
    /// `own`: the container that we run in, as far as it is known.
    pub fn wants(&self, facts: &Facts, own: Option<&str>) -> bool {
        if own.is_some_and(|own| facts.id.starts_with(own)) {
            return false;
        }
        match facts.labels.get(ENABLE).map(String::as_str) {
            Some("false") => return false,
            Some("true") => {}
            _ if self.opt_in => return false,
            _ => {}
        }
        self.include.all_kinds(facts) && (self.exclude.is_empty() || !self.exclude.any(facts))
    }
}

/// What a container has chosen by its label [`STAGES`].
#[derive(Debug, PartialEq, Eq)]
pub struct Chosen<'f> {
    pub stages: Vec<Arc<str>>,
    pub unknown: Vec<&'f str>,
}

/// `known`: the names that there are.
pub fn chosen<'f>(facts: &'f Facts, known: &[Arc<str>]) -> Chosen<'f> {
    let mut chosen = Chosen { stages: Vec::new(), unknown: Vec::new() };
    let label = facts.labels.get(STAGES).map_or("", String::as_str);
    for name in label.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match known.iter().find(|known| &***known == name) {
            Some(known) => chosen.stages.push(known.clone()),
            None => chosen.unknown.push(name),
        }
    }
    chosen
}

/// For people, of the names that there are.
pub fn exist(known: &[Arc<str>]) -> String {
    match known {
        [] => "no stage of the pipeline can be chosen: none has by_label".into(),
        known => format!("the stages that can be chosen are {known:?}"),
    }
}

/// A label that is made of what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Name,
    Image,
    Id,
    ComposeProject,
    ComposeService,
    Label(String),
    Env(String),
}

impl From {
    /// What `labels_from` may name, and what the labels are called that come of it.
    pub const WORDS: [(&str, &str, From); 5] = [
        ("name", "container", From::Name),
        ("image", "image", From::Image),
        ("id", "container_id", From::Id),
        ("compose_project", "compose_project", From::ComposeProject),
        ("compose_service", "compose_service", From::ComposeService),
    ];

    fn value<'f>(&self, facts: &'f Facts) -> Option<&'f str> {
        let label = |key: &str| facts.labels.get(key).map(String::as_str);
        match self {
            From::Name => Some(&facts.name),
            From::Image => Some(&facts.image),
            From::Id => Some(short(&facts.id)),
            From::ComposeProject => label(COMPOSE_PROJECT),
            From::ComposeService => label(COMPOSE_SERVICE),
            From::Label(key) => label(key),
            From::Env(name) => {
                facts.env.iter().find_map(|pair| pair.strip_prefix(name.as_str())?.strip_prefix('='))
            }
        }
    }
}

/// Makes labels; knows which values there have been.
#[derive(Debug)]
pub struct Labeller {
    rules: Vec<(String, From)>,
    values: BTreeMap<String, BTreeSet<String>>,
}

impl Labeller {
    /// `rules`: name of the label, and what it is made of.
    pub fn new(rules: &[(String, From)]) -> Labeller {
        Labeller { rules: rules.to_vec(), values: BTreeMap::new() }
    }

    pub fn needs_env(&self) -> bool {
        self.rules.iter().any(|(_, from)| matches!(from, From::Env(_)))
    }

    /// Those of the source, and those of the container. Of a value too many the label's name is told, each once.
    pub fn label(
        &mut self,
        of_the_source: &Labels,
        facts: &Facts,
        too_many: &mut impl FnMut(&str),
    ) -> Labels {
        let mut labels = of_the_source.clone();
        for (name, from) in &self.rules {
            let Some(value) = from.value(facts).filter(|value| !value.is_empty()) else { continue };
            let known = self.values.entry(name.clone()).or_default();
            if known.contains(value) || known.len() < VALUES_MAX {
                known.insert(value.to_owned());
                labels.set(name.as_str(), value);
                continue;
            }
            labels.set(name.as_str(), OTHER);
            if known.insert(OTHER.to_owned()) {
                too_many(name);
            }
        }
        labels
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn facts() -> Facts {
        let labels = [(COMPOSE_PROJECT, "shop"), ("team", "red")];
        Facts {
            id: "0123456789abcdef".into(),
            name: "shop-web-1".into(),
            image: "registry/nginx:1.27".into(),
            labels: labels.map(|(key, value)| (key.into(), value.into())).into(),
            env: vec!["TIER=front".into(), "TIERS=2".into()],
        }
    }

    fn glob(text: &str) -> Glob {
        Glob::text(text).unwrap()
    }

    fn matching(names: &[&str], images: &[&str], labels: &[(&str, &str)]) -> Matching {
        let globs = |texts: &[&str]| texts.iter().map(|text| glob(text)).collect();
        let labels = labels.iter().map(|(key, text)| ((*key).to_owned(), glob(text))).collect();
        Matching { names: globs(names), images: globs(images), labels }
    }

    #[test]
    fn include_wants_one_of_each_kind_and_exclude_needs_one_of_any() {
        let none = matching(&[], &[], &[]);
        for (include, exclude, wanted) in [
            (none.clone(), none.clone(), true),
            (matching(&["shop-*"], &[], &[]), none.clone(), true),
            (matching(&["other", "shop-*"], &["*nginx*"], &[("team", "r?d")]), none.clone(), true),
            (matching(&["shop-*"], &["mysql"], &[]), none.clone(), false),
            (matching(&[], &[], &[("team", "blue")]), none.clone(), false),
            (matching(&[], &[], &[("absent", "*")]), none.clone(), false),
            (none.clone(), matching(&["other"], &["*nginx*"], &[]), false),
            (none.clone(), matching(&["other"], &[], &[("team", "blue")]), true),
        ] {
            let choice = Choice { include, exclude, opt_in: false };
            assert_eq!(choice.wants(&facts(), None), wanted, "{choice:?}");
        }
    }

    #[test]
    fn a_container_may_choose_itself() {
        for (opt_in, label, wanted) in [
            (false, None, true),
            (false, Some("true"), true),
            (false, Some("false"), false),
            (true, None, false),
            (true, Some("true"), true),
            (true, Some("yes"), false),
        ] {
            let mut facts = facts();
            facts.labels.extend(label.map(|value| (ENABLE.to_owned(), value.to_owned())));
            let choice = Choice { opt_in, ..Choice::default() };
            assert_eq!(choice.wants(&facts, None), wanted, "{opt_in} {label:?}");
        }
        assert!(!Choice::default().wants(&facts(), Some("0123456789ab")), "our own container");
    }

    #[test]
    fn a_container_chooses_stages() {
        let known: [Arc<str>; 2] = ["json".into(), "noise".into()];
        for (label, stages, unknown) in [
            (None, &[][..], &[][..]),
            (Some(""), &[], &[]),
            (Some("json"), &["json"], &[]),
            (Some(" noise,json,"), &["noise", "json"], &[]),
            (Some("jsn, json, x y"), &["json"], &["jsn", "x y"]),
        ] {
            let mut facts = facts();
            facts.labels.extend(label.map(|value| (STAGES.to_owned(), value.to_owned())));
            let chosen = chosen(&facts, &known);
            let names: Vec<&str> = chosen.stages.iter().map(|name| &**name).collect();
            assert_eq!((&*names, &*chosen.unknown), (stages, unknown), "{label:?}");
        }
        assert_eq!(exist(&known), r#"the stages that can be chosen are ["json", "noise"]"#);
    }

    #[test]
    fn labels_of_every_kind() {
        let mut rules: Vec<(String, From)> =
            From::WORDS.map(|(_, label, from)| (label.to_owned(), from)).into();
        rules.push(("team".into(), From::Label("team".into())));
        rules.push(("tier".into(), From::Env("TIER".into())));
        rules.push(("none".into(), From::Env("ABSENT".into())));
        let mut labeller = Labeller::new(&rules);
        assert!(labeller.needs_env());
        let labels = labeller.label(&Labels::new([("host", "h")]), &facts(), &mut |name| panic!("{name}"));
        let expected = [
            ("compose_project", "shop"),
            ("container", "shop-web-1"),
            ("container_id", "0123456789ab"),
            ("host", "h"),
            ("image", "registry/nginx:1.27"),
            ("team", "red"),
            ("tier", "front"),
        ];
        assert_eq!(labels.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_label_has_so_many_values_and_then_another_one() {
        let mut labeller = Labeller::new(&[("container".into(), From::Name)]);
        let mut told = 0;
        let mut label = |number: usize| {
            let facts = Facts { name: number.to_string(), ..Facts::default() };
            let labels = labeller.label(&Labels::default(), &facts, &mut |_| told += 1);
            labels.get("container").unwrap().to_owned()
        };
        assert_eq!(label(0), "0");
        (1..VALUES_MAX + 5).for_each(|number| drop(label(number)));
        assert_eq!((label(VALUES_MAX + 5), label(7)), (OTHER.to_owned(), "7".to_owned()));
        assert_eq!(told, 1, "said once");
    }
}
