//! What stages make of chunks: tables first, then what holds for any lines and any stages.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::ack::{GenerationId, Receipt, Receipts, SinkSet};
use crate::budget::{Budget, Holder};
use crate::record::{Labels, Origin, Record, Shift};

const BASE_NS: i64 = 5_000;
const FIRST_LINE: u64 = 1_000;

pub(super) fn origin(source: &str) -> Origin {
    Origin {
        source: source.into(),
        generation: GenerationId(1),
        lineage: 1,
        labels: Arc::new(Labels::new([("source", source), ("env", "test")])),
        filename: None,
        replayable: true,
        stages: Box::new(["chosen".into()]),
        shift: Shift::default(),
    }
}

/// One chunk of source `app`, as the worker gets it, with two sinks.
struct Given {
    budget: Budget,
    lines: Lines,
    ack: Ack,
    receipts: Arc<Kept>,
}

#[derive(Default)]
struct Kept(Mutex<Vec<Receipt>>);
impl Receipts for Kept {
    fn receipt(&self, receipt: Receipt) {
        self.0.lock().push(receipt);
    }
}

fn given(texts: &[Vec<u8>], first_line: u64) -> Given {
    let (mut data, mut ends) = (Vec::new(), Vec::new());
    for text in texts {
        data.extend_from_slice(text);
        data.push(b'\n');
        ends.push(data.len() as u32);
    }
    let budget = Budget::new(1 << 20);
    let credit = budget.door().try_take(&Holder::default(), data.len()).unwrap();
    let lines = Lines {
        origin: Arc::new(origin("app")),
        start: 100,
        data: data.into(),
        sums: None,
        ends: ends.into(),
        base_ns: BASE_NS + (first_line - FIRST_LINE) as i64,
        first_line,
        continues: false,
        timed: None,
        credit,
    };
    let receipts = Arc::new(Kept::default());
    let to: Arc<dyn Receipts> = receipts.clone();
    let ack = Ack::new(GenerationId(1), lines.byte_range(), lines.count(), SinkSet::all(2), &to);
    Given { budget, lines, ack, receipts }
}

/// A record in words: `text @time {label=value …} [name=value …]`, of which what is as it was is left out.
fn words(record: Record<'_>) -> String {
    let mut words = String::from_utf8_lossy(record.text).into_owned();
    let line = FIRST_LINE as i64 + record.time_ns - BASE_NS;
    if !(FIRST_LINE as i64..FIRST_LINE as i64 + 10_000).contains(&line) {
        words += &format!(" @{}", record.time_ns);
    }
    if record.labels != &record.origin.labels {
        let pairs: Vec<String> =
            record.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        words += &format!(" {{{}}}", pairs.join(" "));
    }
    if !record.metadata.is_empty() {
        let pairs: Vec<String> =
            record.metadata.iter().map(|(name, value)| format!("{name}={value}")).collect();
        words += &format!(" [{}]", pairs.join(" "));
    }
    words
}

struct Result {
    records: Vec<String>,
    /// Of each record, whether its text is that of its source.
    as_read: Vec<bool>,
    poisoned: Vec<u32>,
    /// By reason, equal for all sinks.
    dropped: BTreeMap<String, u64>,
}

fn run(pipeline: &mut Pipeline, texts: &[Vec<u8>], first_line: u64) -> Result {
    let Given { lines, mut ack, receipts, .. } = given(texts, first_line);
    let all = lines.count();
    let Outcome { records, poisoned } = pipeline.run(lines, &mut ack);
    for share in ack.into_shares() {
        let mut rest = records.count(0..records.len());
        for Poisoned { line, .. } in &poisoned {
            rest += Count { lines: 1, bytes: records.as_read(*line).raw.unwrap().len() as u64 };
        }
        assert_eq!(share.count(), rest, "what is not dropped is a record or poisoned, and unsettled");
        share.settle(&Verdict::Delivered);
    }
    let receipts = receipts.0.lock();
    assert_eq!(receipts.len(), 2);
    assert_eq!(receipts[0].tally, receipts[1].tally, "a line is dropped for all sinks or for none");
    assert_eq!(receipts[0].tally.total(), all);
    let dropped = receipts[0].tally.dropped.iter();
    Result {
        records: (0..records.len()).map(|index| words(records.get(index))).collect(),
        as_read: (0..records.len()).map(|index| records.get(index).raw.is_some()).collect(),
        poisoned: poisoned.iter().map(|poisoned| poisoned.line).collect(),
        dropped: dropped.map(|(reason, count)| (reason.to_string(), count.lines)).collect(),
    }
}

fn all_sources(kinds: Vec<StageKind>) -> Vec<StageOptions> {
    kinds.into_iter().map(|kind| StageOptions { sources: None, by_label: None, kind }).collect()
}

fn compile(kinds: Vec<StageKind>) -> Pipeline {
    Pipeline::compile(&all_sources(kinds)).unwrap_or_else(|complaints| panic!("{complaints:?}"))
}

/// `want` is the record in [`words`], or `dropped: <reason>`, or `poisoned`.
fn check(kinds: Vec<StageKind>, text: &str, want: &str) {
    let result = run(&mut compile(kinds), &[text.as_bytes().to_vec()], FIRST_LINE);
    let got = match (result.records.first(), result.dropped.first_key_value()) {
        (Some(record), _) => record.clone(),
        (None, Some((reason, _))) => format!("dropped: {reason}"),
        (None, None) => "poisoned".into(),
    };
    assert_eq!(got, want, "{text:?}");
}

fn json() -> StageKind {
    StageKind::Json(JsonOptions::default())
}

fn json_message(message: &str, on_error: OnError) -> StageKind {
    StageKind::Json(JsonOptions { message: Some(message.into()), on_error })
}

fn time(field: &str, format: TimeFormat) -> StageKind {
    StageKind::Timestamp(TimestampOptions { from: TimeFrom::Field(field.into()), format })
}

fn pairs(list: &[(&str, &str)]) -> Vec<(Arc<str>, Arc<str>)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn labels(
    remove: &[&str],
    set: &[(&str, &str)],
    from: &[(&str, &str)],
    metadata: &[(&str, &str)],
) -> StageKind {
    StageKind::Labels(LabelsOptions {
        remove: remove.iter().map(|name| (*name).into()).collect(),
        set: pairs(set),
        from: pairs(from),
        metadata: pairs(metadata),
    })
}

fn condition(condition: Condition) -> MatchOptions {
    MatchOptions { condition, reason: None }
}

fn matches(pattern: &str) -> MatchOptions {
    condition(Condition::Match(pattern.into()))
}

fn contains(bytes: &str) -> MatchOptions {
    condition(Condition::Contains(bytes.into()))
}

fn equals(field: &str, equals: &str) -> MatchOptions {
    condition(Condition::Field { field: field.into(), equals: equals.into() })
}

#[test]
fn json_takes_the_message_and_leaves_the_rest() {
    let message = || vec![json_message("msg", OnError::Pass)];
    check(message(), r#"{"msg":"hello","level":"info"}"#, "hello");
    check(message(), r#"  {"level":{"deep":[1]},"msg" : "a \"b\" \u00e9"} "#, "a \"b\" é");
    check(message(), r#"{"msg":"hello\r\n"}"#, "hello");
    check(message(), r#"{"msg":""}"#, "");
    check(message(), r#"{"msg":"first","msg":"last"}"#, "last");
    check(message(), r#"{"m\u0073g":"an escaped key"}"#, "an escaped key");
    // No such string: nothing changes.
    check(message(), r#"{"msg":7}"#, r#"{"msg":7}"#);
    check(message(), r#"{"msg":null}"#, r#"{"msg":null}"#);
    check(message(), r#"{"msg":"half a pair \ud800"}"#, r#"{"msg":"half a pair \ud800"}"#);
    check(message(), r#"{}"#, r#"{}"#);
    check(vec![json()], r#"{"msg":"hello"}"#, r#"{"msg":"hello"}"#);
    // A message that is an object of its own.
    let nested = vec![json_message("log", OnError::Pass), json_message("msg", OnError::Pass)];
    check(nested.clone(), r#"{"log":"{\"msg\":\"inner\"}\n"}"#, "inner");
    check(nested, r#"{"log":"no object","msg":"outer"}"#, "no object");
}

#[test]
fn json_that_is_none() {
    let bomb = format!("{{\"a\":{}", "[".repeat(100_000));
    for text in
        ["", "plain", "[1]", "7", "{", r#"{"msg":"x"} y"#, r#"{"msg":"x",}"#, "{\"msg\":\"\t\"}", &bomb]
    {
        check(vec![json_message("msg", OnError::Pass)], text, text);
        check(vec![json_message("msg", OnError::Drop)], text, "dropped: pipeline[0]: json");
    }
    // A field that was read before is still there.
    let twice = vec![json_message("log", OnError::Pass), json(), labels(&[], &[], &[], &[("id", "id")])];
    check(twice, r#"{"log":"plain","id":4}"#, "plain [id=4]");
}

#[test]
fn a_deep_object_is_read_without_recursion() {
    let deep = format!("{{\"a\":{}{},\"msg\":\"here\"}}", "[".repeat(100_000), "]".repeat(100_000));
    check(vec![json_message("msg", OnError::Drop)], &deep, "here");
    // The same as a field that is asked for.
    let stages = vec![json(), labels(&[], &[], &[("a", "a")], &[("msg", "msg")])];
    check(stages, &deep, &format!("{deep} [msg=here]"));
}

#[test]
fn invalid_utf8_is_no_json_and_passes() {
    let text = b"{\"msg\":\"\xff\"}".to_vec();
    let mut pipeline = compile(vec![json_message("msg", OnError::Pass)]);
    let result = run(&mut pipeline, std::slice::from_ref(&text), FIRST_LINE);
    assert_eq!(result.records, [String::from_utf8_lossy(&text)]);
}

#[test]
fn times_come_from_a_field_or_the_text() {
    let stages = |format| vec![json_message("m", OnError::Pass), time("t", format)];
    check(stages(TimeFormat::Rfc3339), r#"{"t":"2024-05-01T12:00:00.5Z","m":"x"}"#, "x @1714564800500001000");
    check(stages(TimeFormat::Unix), r#"{"t":1714564800,"m":"x"}"#, "x @1714564800000001000");
    check(stages(TimeFormat::UnixMs), r#"{"t":"1714564800000","m":"x"}"#, "x @1714564800000001000");
    check(stages(TimeFormat::UnixUs), r#"{"t":1714564800000000,"m":"x"}"#, "x @1714564800000000000");
    check(stages(TimeFormat::Unix), r#"{"t":true,"m":"x"}"#, "x");
    check(stages(TimeFormat::Unix), r#"{"m":"x"}"#, "x");
    let head = TimestampOptions { from: TimeFrom::Text, format: TimeFormat::UnixNs };
    check(
        vec![StageKind::Timestamp(head)],
        "1714564800000000007 x",
        "1714564800000000007 x @1714564800000000007",
    );
}

#[test]
fn equal_times_of_one_chunk_stay_apart_and_in_order() {
    let texts = vec![br#"{"t":1714564800}"#.to_vec(); 3];
    let result = run(&mut compile(vec![json(), time("t", TimeFormat::Unix)]), &texts, FIRST_LINE + 41);
    let want = [1041, 1042, 1043].map(|ns| format!("{{\"t\":1714564800}} @{}", 1714564800000000000i64 + ns));
    assert_eq!(result.records, want);
}

#[test]
fn labels_are_removed_set_and_read() {
    check(vec![labels(&["env"], &[], &[], &[])], "x", "x {source=app}");
    check(vec![labels(&[], &[("team", "a")], &[], &[])], "x", "x {env=test source=app team=a}");
    check(vec![labels(&["none"], &[("env", "test")], &[], &[])], "x", "x"); // nothing is different
    let from = || vec![json_message("m", OnError::Pass), labels(&[], &[("env", "?")], &[("env", "e")], &[])];
    check(from(), r#"{"m":"x","e":"prod"}"#, "x {env=prod source=app}");
    check(from(), r#"{"m":"x","e":""}"#, "x {env=? source=app}");
    check(from(), r#"{"m":"x","e":[1]}"#, "x {env=? source=app}");
    check(from(), r#"{"m":"x"}"#, "x {env=? source=app}");
    let metadata =
        || vec![json_message("m", OnError::Pass), labels(&[], &[], &[], &[("id", "i"), ("ok", "o")])];
    check(metadata(), r#"{"m":"x","i":12.50,"o":true}"#, "x [id=12.50 ok=true]");
    check(metadata(), r#"{"m":"x","i":null,"o":""}"#, "x");
    let twice = vec![json(), labels(&["env"], &[], &[], &[]), labels(&[], &[], &[("e", "e")], &[])];
    check(twice, r#"{"e":1}"#, r#"{"e":1} {e=1 source=app}"#);
}

#[test]
fn keep_and_drop_by_text_and_field() {
    let drop = |options: MatchOptions| vec![json(), StageKind::Drop(options)];
    let keep = |options: MatchOptions| vec![json(), StageKind::Keep(options)];
    for (options, yes, no) in [
        (matches(r"^a+b\b"), "aab c", "caab"),
        (matches("(?i)é"), "É", "e"),
        (contains("a.b"), "xa.bx", "xaabx"),
        (equals("level", "debug"), r#"{"level":"debug"}"#, r#"{"level":"info"}"#),
        (equals("status", "200"), r#"{"status":200}"#, r#"{"status":2e2}"#),
        (equals("level", ""), r#"{"level":""}"#, "{}"),
    ] {
        check(drop(options.clone()), yes, "dropped: pipeline[1]: drop");
        check(drop(options.clone()), no, no);
        check(keep(options.clone()), yes, yes);
        check(keep(options), no, "dropped: pipeline[1]: keep");
    }
    let named = MatchOptions { reason: Some("noise".into()), ..contains("x") };
    check(vec![StageKind::Drop(named)], "x", "dropped: noise");
}

#[test]
fn a_wrong_stage_is_named_with_a_remedy() {
    let check = |kinds: Vec<StageKind>, want: &[Complaint]| {
        assert_eq!(Pipeline::compile(&all_sources(kinds)).err().unwrap_or_default(), want);
    };
    let keep = |pattern| StageKind::Keep(matches(pattern));
    check(vec![keep("a(")], &[(0, "match", "\"a(\" is not a regular expression: unclosed group".into())]);
    let big = r#""(\\w{100}){100}" takes more than 1048576 bytes; repeat less, or use two stages"#;
    check(vec![keep(r"(\w{100}){100}")], &[(0, "match", big.into())]);
    let empty = r#""" is found in every line; give some text"#;
    check(vec![json(), StageKind::Drop(contains(""))], &[(1, "contains", empty.into())]);
    let unread = "is a field of JSON that nothing has read; put a stage of type json in front of this one";
    let name = "is not a name for a label; use letters, digits and _, and no digit first";
    check(
        vec![time("t", TimeFormat::Unix), labels(&[], &[("a-b", "")], &[("1", "f")], &[("", "f")]), json()],
        &[
            (0, "field", format!("\"t\" {unread}")),
            (1, "set", format!("\"a-b\" {name}")),
            (1, "from", format!("\"1\" {name}")),
            (1, "metadata", "\"\" is no name; give it one".into()),
            (1, "from", format!("\"f\" {unread}")),
            (1, "metadata", format!("\"f\" {unread}")),
        ],
    );
    let nobody = StageOptions { sources: Some(Vec::new()), by_label: None, kind: json() };
    let nobody = Pipeline::compile(&[nobody]).err().unwrap_or_default();
    assert_eq!(nobody, [(0, "sources", "[] names no source; leave the key out for all of them".into())]);
}

#[test]
fn a_stage_leaves_other_sources_alone() {
    let only = |source: &str| StageOptions {
        sources: Some(vec!["other".into(), source.into()]),
        by_label: None,
        kind: StageKind::PanicOn("boom"),
    };
    let texts = [b"boom".to_vec()];
    let run = |source| run(&mut Pipeline::compile(&[only(source)]).ok().unwrap(), &texts, FIRST_LINE);
    assert_eq!(run("another").records, ["boom"]);
    assert_eq!(run("app").poisoned, [0]);
}

#[test]
fn a_panic_costs_the_line_that_caused_it() {
    let stages = vec![
        StageKind::Drop(contains("noise")),
        json(), // counts what it cannot parse, once although the chunk is passed twice
        StageKind::PanicOn("boom"),
        labels(&[], &[("seen", "yes")], &[], &[]),
    ];
    let mut pipeline = compile(stages);
    let registry = Registry::default();
    pipeline.count_in(&registry);
    let texts =
        ["noise", "a", "boom 1", "b", "noise boom", "boom 2", "c"].map(|text| text.as_bytes().to_vec());
    let Given { lines, mut ack, .. } = given(&texts, FIRST_LINE);
    let Outcome { records, poisoned } = pipeline.run(lines, &mut ack);
    let said = |line| Poisoned { line, panic: "met boom".into() };
    assert_eq!(poisoned, [said(2), said(5)]);
    assert_eq!(records.as_read(5).text, b"boom 2");
    assert_eq!(records.as_read(5).time_ns, BASE_NS + 5);
    let kept: Vec<&[u8]> = (0..records.len()).map(|index| records.get(index).text).collect();
    assert_eq!(kept, [b"a", b"b", b"c"]);
    assert!((0..3).all(|index| records.get(index).labels.get("seen") == Some("yes")));
    assert!(ack.shares_mut().iter().all(|share| share.count().lines == 5), "the two of noise are settled");
    let counted = r#"pipeline_unparsed_lines_total{stage="1",type="json"} 5"#;
    assert!(registry.render().contains(counted), "{}", registry.render());
    ack.take_back();
}

#[test]
fn a_line_that_nothing_changes_is_not_copied() {
    let stages = vec![
        json(),
        time("t", TimeFormat::Unix),
        StageKind::Drop(contains("noise")),
        labels(&[], &[("env", "test")], &[("code", "code")], &[]),
    ];
    let mut pipeline = compile(stages);
    let mut check = |texts: &[&str], copied: &[bool]| {
        let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        let Given { budget, lines, mut ack, .. } = given(&texts, FIRST_LINE);
        let (chunk, before) = (lines.data.as_ptr_range(), budget.used());
        let Outcome { records, .. } = pipeline.run(lines, &mut ack);
        let in_chunk = |index| chunk.contains(&records.get(index).text.as_ptr());
        assert!((0..records.len()).all(in_chunk), "no stage here touches a text");
        let labelled = |index| !Arc::ptr_eq(records.get(index).labels, &records.origin().labels);
        assert_eq!((0..records.len()).map(labelled).collect::<Vec<_>>(), copied);
        let nothing = copied.len() == texts.len() && !copied.contains(&true);
        assert_eq!(budget.used() == before, nothing, "memory is charged if there is any");
        ack.take_back();
        drop(records);
        assert_eq!(budget.used(), 0);
    };
    check(&["plain", "{}", r#"{"t":"?"}"#], &[false, false, false]);
    check(&["plain", r#"{"code":1}"#, "plain"], &[false, true, false]);
    check(&["plain", "noise", "plain"], &[false, false]);
}

#[test]
fn a_line_learns_nothing_from_one_that_was_dropped() {
    let stages = vec![
        json_message("m", OnError::Pass),
        time("t", TimeFormat::Unix),
        labels(&[], &[], &[("env", "e")], &[("id", "i")]),
        StageKind::Drop(contains("noise")),
    ];
    let noise = br#"{"m":"noise","t":1,"e":"prod","i":7}"#.to_vec();
    let result = run(&mut compile(stages), &[noise, b"{}".to_vec()], FIRST_LINE);
    assert_eq!((result.records, result.as_read), (vec!["{}".to_owned()], vec![true]));
}

#[test]
fn copies_are_charged_to_the_chunk() {
    let text = format!(r#"{{"m":"{}","i":"{}"}}"#, "é".repeat(1000), "7".repeat(100));
    let Given { budget, lines, mut ack, .. } = given(&vec![text.into_bytes(); 10], FIRST_LINE);
    let before = budget.used();
    let shared = "a set of labels is charged once, not for each of its lines ".repeat(100);
    let mut pipeline =
        compile(vec![json_message("m", OnError::Drop), labels(&[], &[("s", &shared)], &[], &[("id", "i")])]);
    let outcome = pipeline.run(lines, &mut ack);
    let grown = budget.used() - before - shared.len();
    assert!((10 * 2100..10 * 2500).contains(&grown), "{grown}");
    ack.take_back();
    drop(outcome);
    assert_eq!(budget.used(), 0);
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        Just("\"boom\"".to_owned()),
        Just("\"noise\"".to_owned()),
        Just("null".to_owned()),
        Just("\"{\\\"m\\\":\\\"inner\\\"}\\n\"".to_owned()),
        (0i64..3).prop_map(|number| number.to_string()),
    ];
    let field = ("[mte]", value).prop_map(|(name, value)| format!("\"{name}\":{value}"));
    prop_oneof![
        proptest::collection::vec(field, 0..4)
            .prop_map(|fields| format!("{{{}}}", fields.join(",")).into_bytes()),
        "(noise|boom|2024-05-01T12:00:00Z|x| )*".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>().prop_filter("a line has no line end", |b| *b != b'\n'), 0..8),
    ]
}

fn any_stages() -> impl Strategy<Value = Vec<StageKind>> {
    let head = TimestampOptions { from: TimeFrom::Text, format: TimeFormat::Rfc3339 };
    let stage = proptest::sample::select(vec![
        json(),
        json_message("m", OnError::Pass),
        json_message("m", OnError::Drop),
        time("t", TimeFormat::Unix),
        StageKind::Timestamp(head),
        labels(&["env"], &[("team", "a")], &[], &[]),
        labels(&[], &[], &[("env", "e")], &[("id", "t")]),
        StageKind::Drop(contains("noise")),
        StageKind::Drop(equals("e", "1")),
        StageKind::Keep(matches("o|^$|[{}]")),
        StageKind::PanicOn("boom"),
    ]);
    proptest::collection::vec(stage, 0..5).prop_map(|mut stages| {
        stages.insert(0, json()); // fields have to come from somewhere
        stages
    })
}

#[test]
fn a_stage_that_is_chosen_sees_only_those_who_chose_it() {
    for (by_label, kept) in [(None, 0), (Some("chosen"), 0), (Some("other"), 1)] {
        let drop = StageOptions {
            sources: None,
            by_label: by_label.map(Arc::from),
            kind: StageKind::Drop(contains("a")),
        };
        let mut pipeline = Pipeline::compile(&[drop]).unwrap();
        assert_eq!(run(&mut pipeline, &["a".into()], FIRST_LINE).records.len(), kept, "{by_label:?}");
    }
}

proptest! {
    /// Every line is a record, dropped or poisoned (that the settled tally agrees is checked by `run`), and what
    /// it becomes does not depend on where the chunks are cut: a replay may cut them elsewhere.
    #[test]
    fn every_line_is_accounted_for_and_stands_alone(
        texts in proptest::collection::vec(any_text(), 1..12),
        stages in any_stages(),
    ) {
        let mut pipeline = compile(stages);
        let whole = run(&mut pipeline, &texts, FIRST_LINE);
        let dropped: u64 = whole.dropped.values().sum();
        prop_assert_eq!(whole.records.len() + whole.poisoned.len() + dropped as usize, texts.len());

        let mut apart = Result { records: Vec::new(), as_read: Vec::new(), poisoned: Vec::new(), dropped: BTreeMap::new() };
        for (index, text) in texts.iter().enumerate() {
            let alone = run(&mut pipeline, std::slice::from_ref(text), FIRST_LINE + index as u64);
            apart.records.extend(alone.records);
            apart.as_read.extend(alone.as_read);
            apart.poisoned.extend(alone.poisoned.iter().map(|_| index as u32));
            for (reason, lines) in alone.dropped {
                *apart.dropped.entry(reason).or_default() += lines;
            }
        }
        prop_assert_eq!(whole.records, apart.records);
        prop_assert_eq!(whole.as_read, apart.as_read);
        prop_assert_eq!(whole.poisoned, apart.poisoned);
        prop_assert_eq!(whole.dropped, apart.dropped);
    }
}
