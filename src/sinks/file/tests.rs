//! The file sink from the outside: batches in, files out. Also the makers of records for the tests of its
//! siblings.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;
use crate::ack::{Ack, Receipt, Receipts, SinkSet};
use crate::budget::{Budget, Holder, READ_BYTES};
use crate::clock::Clock;
use crate::durable::FileId;
use crate::record::{Changed, Entry, Labels, Lines, Origin, Records, Shift, Slice};
use crate::sinks::{Answer, BatchLimits, Connection, Format, KindOptions, RetryOptions, RotateOptions};
use crate::sync::Shared;
use crate::tasks::Switch;

/// 2024-03-01, 12 o'clock and 7 ns.
pub const NOON_NS: i64 = 1_709_294_400_000_000_007;

pub fn origin(generation: u64, source: &str, filename: Option<&str>) -> Arc<Origin> {
    Arc::new(Origin {
        source: source.into(),
        generation: GenerationId(generation),
        lineage: generation,
        labels: Arc::new(Labels::new([("host", "box"), ("source", source)])),
        filename: filename.map(Arc::from),
        replayable: true,
        stages: Box::default(),
        shift: Shift::default(),
    })
}

pub fn lines(origin: &Arc<Origin>, raw: &[&[u8]], base_ns: i64) -> Lines {
    let mut data = Vec::new();
    let mut ends = Vec::new();
    for line in raw {
        data.extend_from_slice(line);
        ends.push(data.len() as u32);
    }
    let credit = Budget::new(READ_BYTES).door().try_take(&Holder::default(), 1).unwrap();
    Lines {
        origin: origin.clone(),
        start: 100,
        data: data.into(),
        sums: None,
        ends: ends.into(),
        base_ns,
        first_line: 0,
        continues: false,
        timed: None,
        credit,
    }
}

pub fn batch(number: u64, parts: Vec<Lines>) -> Batch {
    struct Nobody;
    impl Receipts for Nobody {
        fn receipt(&self, _: Receipt) {}
    }
    let receipts: Arc<dyn Receipts> = Arc::new(Nobody);
    let part = |lines: Lines| {
        let generation = lines.origin.generation;
        let ack = Ack::new(generation, lines.byte_range(), lines.count(), SinkSet::all(1), &receipts);
        let records = Shared::from(Records::untouched(lines));
        let slice = Slice { range: 0..records.len(), records };
        (slice, ack.into_shares().pop().unwrap())
    };
    Batch { number, parts: parts.into_iter().map(part).collect() }
}

pub fn context() -> (Switch, SinkContext) {
    SinkContext::alone(Clock::by_hand(Clock::real().wall_ns()))
}

pub fn options(kind: KindOptions) -> SinkOptions {
    let second = Duration::from_secs(1);
    SinkOptions {
        name: "out".into(),
        labels: Labels::default(),
        batch: BatchLimits { max_bytes: 1 << 20, line_weight: 0, max_lines: 10_000, max_wait: second },
        connections: 4,
        timeout: second,
        retry: RetryOptions { initial: second, max: second, max_attempts: None },
        kind,
    }
}

struct Bench {
    folder: std::path::PathBuf,
    _temporary: tempfile::TempDir,
    cx: SinkContext,
    connection: Box<dyn Connection>,
    batches: u64,
}

impl Bench {
    fn new(template: &str, rotate: Option<RotateOptions>) -> Bench {
        let temporary = tempfile::tempdir().unwrap();
        Bench::at(temporary, template, Format::Text, rotate)
    }

    fn at(
        temporary: tempfile::TempDir,
        template: &str,
        format: Format,
        rotate: Option<RotateOptions>,
    ) -> Bench {
        let folder = temporary.path().join("out");
        let file = FileOptions { path: format!("{}/{template}", folder.display()), format, rotate };
        let (_, cx) = context();
        let mut sink = open(&options(KindOptions::File(file.clone())), &file, &cx).unwrap();
        assert_eq!(sink.describe, format!("files at {}", file.path));
        assert_eq!(sink.connections.len(), 1);
        let connection = sink.connections.pop().unwrap();
        Bench { folder, _temporary: temporary, cx, connection, batches: 0 }
    }

    fn batch(&mut self, parts: &[(&Arc<Origin>, &[&[u8]])]) -> Batch {
        self.batches += 1;
        batch(self.batches, parts.iter().map(|(origin, raw)| lines(origin, raw, NOON_NS)).collect())
    }

    fn deliver(&mut self, parts: &[(&Arc<Origin>, &[&[u8]])]) -> Answer {
        let batch = self.batch(parts);
        self.connection.deliver(&batch)
    }

    fn delivered(&mut self, parts: &[(&Arc<Origin>, &[&[u8]])]) {
        let answer = self.deliver(parts);
        assert!(matches!(answer, Answer::Delivered), "{answer:?}");
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.folder.join(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All files directly in the folder.
    fn files(&self) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(&self.folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.map(|name| (name.clone(), self.read(&name))).collect()
    }
}

fn why(answer: Answer) -> String {
    match answer {
        Answer::Retry { why, .. } => why.to_string(),
        other => panic!("{other:?}"),
    }
}

fn by_size(max_bytes: u64, keep: usize) -> Option<RotateOptions> {
    Some(RotateOptions { max_bytes: Some(max_bytes), max_age: None, keep })
}

#[test]
fn every_byte_of_the_source_arrives() {
    let mut bench = Bench::new("{file}", None);
    let a = origin(1, "app", Some("/var/log/a.log"));
    let all: [&[u8]; 7] =
        [b"one\n", b"crlf\r\n", b"\n", b"nul\0\n", b"\xff\xfe\n", b"cut", b" and its rest\nno end"];
    for raw in all {
        bench.delivered(&[(&a, &[raw])]);
    }
    assert_eq!(std::fs::read(bench.folder.join("var/log/a.log")).unwrap(), all.concat());
    assert!(bench.cx.unsynced.len() > 1, "the file and its folders wait for their sync");
    bench.cx.unsynced.sync().unwrap();
    bench.delivered(&[(&a, &[b"x\n"])]);
    assert_eq!(bench.cx.unsynced.len(), 1, "the file waits again");
}

#[test]
fn each_record_goes_to_its_own_output() {
    let mut bench = Bench::new("{source}-{hour}", None);
    let (a, b, c) = (origin(1, "a", None), origin(2, "b", None), origin(3, "a", None));
    bench.delivered(&[(&a, &[b"1\n", b"2\n"]), (&b, &[b"3\n"]), (&c, &[b"4\n"]), (&a, &[b"5\n"])]);
    assert_eq!((bench.read("a-12").as_str(), bench.read("b-12").as_str()), ("1\n2\n4\n5\n", "3\n"));
    let hour_ends = NOON_NS - 7 + 3_600_000_000_000 - 1;
    let late = batch(99, vec![lines(&a, &[b"6\n", b"7\n"], hour_ends)]);
    assert!(matches!(bench.connection.deliver(&late), Answer::Delivered));
    assert_eq!((bench.read("a-12").as_str(), bench.read("a-13").as_str()), ("1\n2\n4\n5\n6\n", "7\n"));
}

#[test]
fn neighbours_of_one_output_are_one_write() {
    let template = Template::parse("{source}").unwrap();
    let renderer = Renderer::new(Format::Text, Labels::default());
    let (places, paths) = (HashMap::new(), HashMap::new());
    let mut encoder =
        FileEncoder { template, timed: false, exact: true, cuts: false, renderer, places, paths, last: None };
    let mut payload = Payload::default();
    let (a, b, c) = (origin(1, "a", None), origin(2, "b", None), origin(3, "a", None));
    let part = |origin| lines(origin, &[b"x\n", b"y\n"], NOON_NS);
    for _ in 0..2 {
        encoder.encode(&batch(1, vec![part(&a), part(&c), part(&b), part(&a)]), &mut payload);
        let pieces = payload.pieces().map(|piece| (piece.path.to_str().unwrap(), piece.bytes.len()));
        assert_eq!(pieces.collect::<Vec<_>>(), [("a", 8), ("b", 4), ("a", 4)]);
    }
}

#[test]
fn a_restart_goes_on_at_the_end() {
    let a = origin(1, "a", None);
    let mut bench = Bench::at(tempfile::tempdir().unwrap(), "x.log", Format::Json, None);
    bench.delivered(&[(&a, &[b"1\n"])]);
    let mut bench = Bench::at(bench._temporary, "x.log", Format::Text, None);
    bench.delivered(&[(&a, &[b"2\n"])]);
    let line = r#"{"time":"2024-03-01T12:00:00.000000007Z","line":"1","labels":{"host":"box","source":"a"}}"#;
    assert_eq!(bench.read("x.log"), format!("{line}\n2\n"));
}

#[test]
fn more_outputs_than_may_be_open_and_unsynced() {
    let mut bench = Bench::new("{source}", None);
    let origins: Vec<_> = (0..400).map(|at| origin(at, &format!("s{at}"), None)).collect();
    let raw: &[&[u8]] = &[b"x\n"];
    let parts: Vec<_> = origins.iter().map(|origin| (origin, raw)).collect();
    for _ in 0..2 {
        bench.delivered(&parts);
        assert!(bench.cx.unsynced.len() < 300, "{}", bench.cx.unsynced.len());
    }
    assert_eq!(bench.files().len(), 400);
    assert!(bench.files().values().all(|text| text == "x\nx\n"));
}

#[test]
fn rotation_by_size_keeps_every_byte_in_order() {
    let mut bench = Bench::new("x.log", by_size(10, 100));
    let a = origin(1, "a", None);
    let mut expected = String::new();
    for at in 0..20 {
        let (first, second) = (format!("{at:02}a\n"), format!("{at:02}bc\n"));
        bench.delivered(&[(&a, &[first.as_bytes(), second.as_bytes()])]);
        expected += &(first + &second);
    }
    bench.delivered(&[(&a, &[b"a line that is larger than a file\n", b"x\n"])]);
    expected += "a line that is larger than a file\nx\n";
    let files = bench.files();
    let number = |name: &str| name.rsplit('.').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let mut in_order: Vec<(usize, &String)> = files.iter().map(|(name, text)| (number(name), text)).collect();
    in_order.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    assert_eq!(in_order.iter().map(|(_, text)| text.as_str()).collect::<String>(), expected);
    assert!(in_order.len() > 15, "{files:?}");
    for (name, text) in &files {
        assert!(text.len() <= 10 || text.matches('\n').count() == 1, "{name}: {text:?}");
        assert!(text.ends_with('\n'), "{name} was cut within a line: {text:?}");
        let id = FileId::of(&std::fs::metadata(bench.folder.join(name)).unwrap());
        assert!(bench.cx.own_files.contains(id), "{name} is not known as ours");
    }
}

#[test]
fn a_line_that_was_cut_is_not_torn_by_a_rotation() {
    let mut bench = Bench::new("x.log", by_size(10, 5));
    let a = origin(1, "a", None);
    bench.delivered(&[(&a, &[b"12345678"])]);
    bench.delivered(&[(&a, &[b"9abcd\n", b"x\n"])]);
    assert_eq!((bench.read("x.log.1").as_str(), bench.read("x.log").as_str()), ("123456789abcd\n", "x\n"));
}

/// Whatever is in the file already, and however long what comes: as read, or as a stage made it, of two lines.
#[test]
fn a_record_is_whole_in_one_output_whatever_its_length() {
    const MAX: usize = 12;
    let a = origin(1, "a", None);
    for (before, length) in
        (0..=2 * MAX).flat_map(|before| (1..=2 * MAX + 2).map(move |length| (before, length)))
    {
        for made in [false, true] {
            let mut bench = Bench::new("x.log", by_size(MAX as u64, 100));
            if before > 0 {
                bench.delivered(&[(&a, &[format!("{}\n", "b".repeat(before - 1)).as_bytes()])]);
            }
            // Three of a kind in one batch, each told by its letter.
            let texts = ["x", "y", "z"].map(|letter| match made {
                false => format!("{}\n", letter.repeat(length - 1)),
                true => format!("{}\n{}\n", letter.repeat(length / 2), letter.repeat(length - length / 2)),
            });
            let raw = texts.each_ref().map(|text| text.as_bytes());
            let batch = match made {
                false => bench.batch(&[(&a, &raw)]),
                true => {
                    let mut batch = bench.batch(&[(&a, &[b"1\n", b"2\n", b"3\n"])]);
                    let entries = texts.iter().zip(0..).map(|(text, line)| {
                        let text = Some(text.trim_end().as_bytes().into());
                        Entry { line, changed: Some(Box::new(Changed { text, ..Changed::default() })) }
                    });
                    let entries = entries.collect();
                    batch.parts[0].0.records =
                        Shared::from(Records::kept(lines(&a, &[b"1\n", b"2\n", b"3\n"], NOON_NS), entries));
                    batch
                }
            };
            let answer = bench.connection.deliver(&batch);
            assert!(matches!(answer, Answer::Delivered), "{answer:?}");
            let files = bench.files();
            for text in texts.iter().filter(|text| text.len() > 1) {
                let holds = files.values().filter(|file| file.contains(text.as_str())).count();
                assert_eq!(holds, 1, "{before} bytes, then {text:?}: {files:?}");
            }
            let bytes: usize = files.values().map(String::len).sum();
            assert_eq!(bytes, before + texts.concat().len(), "{files:?}");
        }
    }
}

#[test]
fn the_oldest_is_deleted() {
    let a = origin(1, "a", None);
    for keep in [0, 2] {
        let mut bench = Bench::new("x.log", by_size(4, keep));
        bench.delivered(&[(&a, &[b"aaa\n", b"bbb\n", b"ccc\n"])]);
        bench.delivered(&[(&a, &[b"ddd\n"])]);
        bench.delivered(&[(&a, &[b"eee\n"])]);
        let files: Vec<_> = bench.files().into_values().collect();
        assert_eq!(files, ["eee\n", "ddd\n", "ccc\n"][..keep + 1]);
    }
}

#[test]
fn rotation_by_age_happens_on_a_write_and_when_idle() {
    let hour = Duration::from_secs(3600);
    let rotate = RotateOptions { max_bytes: None, max_age: Some(hour), keep: 5 };
    let mut bench = Bench::new("x.log", Some(rotate));
    let a = origin(1, "a", None);
    bench.delivered(&[(&a, &[b"1\n"])]);
    bench.cx.clock.advance(hour / 2);
    bench.connection.idle(bench.cx.clock.now());
    bench.delivered(&[(&a, &[b"2\n"])]);
    assert_eq!(bench.files().len(), 1);
    bench.cx.clock.advance(hour / 2);
    bench.delivered(&[(&a, &[b"3\n"])]);
    assert_eq!((bench.read("x.log.1").as_str(), bench.read("x.log").as_str()), ("1\n2\n", "3\n"));
    bench.cx.clock.advance(hour);
    bench.connection.idle(bench.cx.clock.now());
    bench.connection.idle(bench.cx.clock.now());
    let expected = [("x.log.1", "3\n"), ("x.log.2", "1\n2\n")].map(|(n, t)| (n.to_owned(), t.to_owned()));
    assert_eq!(bench.files(), BTreeMap::from(expected));
}

#[test]
fn an_emptied_file_is_young_again() {
    let minute = Duration::from_secs(60);
    let rotate = RotateOptions { max_bytes: None, max_age: Some(minute), keep: 5 };
    let mut bench = Bench::new("x.log", Some(rotate));
    let a = origin(1, "a", None);
    bench.delivered(&[(&a, &[b"1\n"])]);
    bench.cx.clock.advance(minute / 2);
    std::fs::File::options().write(true).open(bench.folder.join("x.log")).unwrap().set_len(0).unwrap();
    bench.delivered(&[(&a, &[b"2\n"])]);
    bench.cx.clock.advance(minute / 2);
    bench.delivered(&[(&a, &[b"3\n"])]);
    assert_eq!(bench.read("x.log"), "2\n3\n");
}

#[test]
fn an_old_file_of_an_earlier_life_is_rotated_before_it_is_written() {
    let rotate = RotateOptions { max_bytes: None, max_age: Some(Duration::from_secs(60)), keep: 5 };
    let a = origin(1, "a", None);
    let mut bench = Bench::new("x.log", Some(rotate));
    bench.delivered(&[(&a, &[b"1\n"])]);
    let mut bench = Bench::at(bench._temporary, "x.log", Format::Text, Some(rotate));
    bench.cx.clock.advance(Duration::from_secs(61));
    bench.delivered(&[(&a, &[b"2\n"])]);
    assert_eq!((bench.read("x.log.1").as_str(), bench.read("x.log").as_str()), ("1\n", "2\n"));
}

#[test]
fn an_output_that_was_taken_away_is_made_again() {
    let a = origin(1, "a", None);
    let mut bench = Bench::new("deep/x.log", None);
    bench.delivered(&[(&a, &[b"1\n"])]);
    std::fs::remove_dir_all(&bench.folder).unwrap();
    bench.delivered(&[(&a, &[b"2\n"])]);
    assert_eq!(bench.read("deep/x.log"), "2\n");
    // Moved: seen within a second, and until then the bytes follow the file.
    let path = bench.folder.join("deep/x.log");
    crate::durable::rename(&path, &bench.folder.join("deep/moved")).unwrap();
    bench.delivered(&[(&a, &[b"3\n"])]);
    bench.cx.clock.advance(Duration::from_secs(1));
    bench.delivered(&[(&a, &[b"4\n"])]);
    assert_eq!((bench.read("deep/moved").as_str(), bench.read("deep/x.log").as_str()), ("2\n3\n", "4\n"));
    // Truncated: no hole where the bytes were.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    bench.delivered(&[(&a, &[b"5\n"])]);
    assert_eq!(bench.read("deep/x.log"), "5\n");
}

#[test]
fn a_quiet_output_is_closed() {
    let a = origin(1, "a", None);
    let mut bench = Bench::new("x.log", None);
    bench.delivered(&[(&a, &[b"1\n"])]);
    bench.cx.unsynced.sync().unwrap();
    let is_open = |bench: &Bench| {
        let path = bench.folder.join("x.log");
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok()).any(|to| to == path)
    };
    bench.connection.idle(bench.cx.clock.now());
    assert!(is_open(&bench));
    bench.cx.clock.advance(Duration::from_secs(5));
    bench.connection.idle(bench.cx.clock.now());
    assert!(!is_open(&bench));
}

#[test]
fn what_is_no_regular_file_is_refused_by_name() {
    let a = origin(1, "a", None);
    for (make, what) in [
        (&["mkdir"][..], "a folder"),
        (&["mkfifo"], "a named pipe"),
        (&["ln", "-s", "/dev/null"], "a device"),
    ] {
        let mut bench = Bench::new("x", None);
        std::fs::create_dir(&bench.folder).unwrap();
        let path = bench.folder.join("x");
        assert!(std::process::Command::new(make[0]).args(&make[1..]).arg(&path).status().unwrap().success());
        let expected = format!("out: {} is {what}: an output must be a regular file", path.display());
        assert_eq!(why(bench.deliver(&[(&a, &[b"1\n"])])), expected);
        std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path)).unwrap();
        bench.delivered(&[(&a, &[b"1\n"])]);
    }
}

/// A file system of 64 KiB, where a disk is full for real. `None`, and a word about it, where nobody lets us.
struct SmallDisk(std::path::PathBuf);

fn small_disk() -> Option<(SmallDisk, tempfile::TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(folder.path())
        .status();
    if mount.is_ok_and(|status| status.success()) {
        return Some((SmallDisk(folder.path().to_owned()), folder));
    }
    println!("SKIPPED: a full disk needs a tmpfs, and this user may not mount one");
    None
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the sink may still have files open.
        let unmount = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        let gone = unmount.is_ok_and(|status| status.success()) && std::fs::remove_dir(&self.0).is_ok();
        assert!(gone || std::thread::panicking());
    }
}

fn fill(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().write_all_at(&vec![0; bytes as usize], 0).unwrap();
}

#[test]
fn a_full_disk_takes_all_of_a_batch_or_nothing() {
    let Some((disk, folder)) = small_disk() else { return };
    fill(&disk.0.join("filler"), 24 << 10);
    let (a, b) = (origin(1, "a", None), origin(2, "b", None));
    let mut bench = Bench::at(folder, "{source}", Format::Text, None);
    let big = [vec![b'x'; 20_000], b"\n".to_vec()].concat();
    bench.delivered(&[(&a, &[b"first\n"])]);
    // `a` can be written, `b` only in part, and `a` again comes too late.
    let batch = bench.batch(&[(&a, &[b"1\n"]), (&b, &[&big, &big]), (&a, &[b"2\n"])]);
    for _ in 0..3 {
        let why = why(bench.connection.deliver(&batch));
        let expected =
            format!("out: could not write 40002 bytes to {}: No space", bench.folder.join("b").display());
        assert!(why.starts_with(&expected), "{why}");
        assert!(!why.contains("taken back"), "{why}");
        assert_eq!((bench.read("a").as_str(), bench.read("b").as_str()), ("first\n", ""));
    }
    std::fs::remove_file(disk.0.join("filler")).unwrap();
    assert!(matches!(bench.connection.deliver(&batch), Answer::Delivered));
    assert_eq!(bench.read("a"), "first\n1\n2\n");
    assert!(bench.read("b").into_bytes() == [&big[..], &big].concat());
}

#[test]
fn a_rotation_within_a_batch_that_fails_is_taken_back() {
    let Some((disk, folder)) = small_disk() else { return };
    let filler = disk.0.join("filler");
    fill(&filler, 24 << 10);
    let a = origin(1, "a", None);
    let mut bench = Bench::at(folder, "x", Format::Text, by_size(8 << 10, 2));
    for old in [b"old 1\n", b"old 2\n", b"old 3\n"] {
        bench.delivered(&[(&a, &[old, &[vec![b'.'; 8000], b"\n".to_vec()].concat()])]);
    }
    let before = bench.files();
    assert_eq!(before.len(), 3);
    let line = |at: usize| [vec![b'0' + at as u8; 4000], b"\n".to_vec()].concat();
    let raw: Vec<Vec<u8>> = (0..8).map(line).collect();
    let raw: Vec<&[u8]> = raw.iter().map(Vec::as_slice).collect();
    // The first rotation is due without the batch; what the batch itself adds, and rotates away, must go.
    let batch = bench.batch(&[(&a, &raw)]);
    for _ in 0..3 {
        let why = why(bench.connection.deliver(&batch));
        assert!(why.contains("No space") && !why.contains("taken back"), "{why}");
        let mut after: Vec<String> = bench.files().into_values().collect();
        assert_eq!(after.remove(0), "");
        assert!(after.iter().eq(before.values().take(2)), "{:?}", bench.files().keys());
    }
    std::fs::remove_file(&filler).unwrap();
    assert!(matches!(bench.connection.deliver(&batch), Answer::Delivered));
    let texts: Vec<String> = bench.files().into_values().collect();
    let lines = |range: std::ops::Range<usize>| String::from_utf8(raw[range].concat()).unwrap();
    assert!(texts == [lines(6..8), lines(4..6), lines(2..4)]);
}
