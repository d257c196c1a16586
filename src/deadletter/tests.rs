#![expect(clippy::disallowed_methods, reason = "several threads put letters at once")]

use super::*;
use crate::ack::GenerationId;
use crate::budget::{Budget, Holder, READ_BYTES};
use crate::record::{Changed, Entry, Labels, Lines, Origin, Records, Shift};

fn records(raw: &[u8], changed: Option<Changed>) -> Records {
    let origin = Arc::new(Origin {
        source: "app".into(),
        generation: GenerationId(7),
        lineage: 1,
        labels: Arc::new(Labels::new([("time", "of the label")])),
        filename: Some("/var/log/a.log".into()),
        replayable: true,
        stages: Box::default(),
        shift: Shift::default(),
    });
    let credit = Budget::new(READ_BYTES).door().try_take(&Holder::default(), 1).unwrap();
    let lines = Lines {
        origin,
        start: 40,
        data: [b"first\n", raw].concat().into(),
        sums: None,
        ends: vec![6, 6 + raw.len() as u32].into(),
        base_ns: 1_000_000_000,
        first_line: 0,
        continues: false,
        timed: None,
        credit,
    };
    Records::kept(lines, vec![Entry { line: 1, changed: changed.map(Box::new) }])
}

fn letter(raw: &[u8], changed: Option<Changed>) -> Letter {
    Letter::of(&records(raw, changed).get(0), "loki", "entry too far behind")
}

fn open(folder: &tempfile::TempDir, max_bytes: u64) -> DeadLetters {
    let clock = Clock::by_hand(5_000_000_007);
    DeadLetters::open(&folder.path().join("deadletter"), max_bytes, Unsynced::default(), clock)
}

fn read(letters: &DeadLetters) -> Vec<Result<Kept<Letter>>> {
    let text = std::fs::read(letters.path()).unwrap();
    text.split_inclusive(|byte| *byte == b'\n').map(Kept::parse).collect()
}

fn check(raw: &[u8], changed: Option<Changed>, expected: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1 << 20);
    let letter = letter(raw, changed);
    assert_eq!((letter.offset, letter.len), (46, raw.len() as u64));
    letters.put(&letter).unwrap();
    let kept = read(&letters).pop().unwrap().unwrap();
    assert_eq!(kept.letter.bytes().unwrap(), expected);
    assert_eq!(kept, Kept { time: "1970-01-01T00:00:05.000000007Z".into(), letter });
}

#[test]
fn letters_come_back_as_they_went() {
    for raw in ["a\n", "a\r\n", "no end", "\n", "nul\0\n", "{\"time\":\"\n", "ä \u{1f600}\n"] {
        check(raw.as_bytes(), None, raw.as_bytes());
    }
    check(b"\xff\xfe\n", None, b"\xff\xfe\n");
    let metadata = vec![("trace".into(), "7".into())];
    let changed = Changed { text: Some(b"new".as_slice().into()), metadata, ..Changed::default() };
    check(b"old\n", Some(changed), b"new");
}

#[test]
fn the_format_is_one_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1 << 20);
    letters.put(&letter(b"a\xff\n", None)).unwrap();
    assert_eq!(
        std::fs::read_to_string(letters.path()).unwrap(),
        "{\"time\":\"1970-01-01T00:00:05.000000007Z\",\"sink\":\"loki\",\"reason\":\"entry too far behind\",\
         \"source\":\"app\",\"filename\":\"/var/log/a.log\",\"generation\":7,\"offset\":46,\"len\":3,\
         \"record_time\":\"1970-01-01T00:00:01.000000001Z\",\"labels\":{\"time\":\"of the label\"},\
         \"bytes\":\"Yf8K\",\"encoding\":\"base64\"}\n"
    );
}

#[test]
fn nothing_is_made_before_the_first_letter_and_that_waits_for_its_sync() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1 << 20);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    letters.put(&letter(b"a\n", None)).unwrap();
    assert_eq!(letters.0.unsynced.len(), 2, "the file and its folder");
    letters.put(&letter(b"b\n", None)).unwrap();
    assert_eq!(letters.0.unsynced.len(), 2, "one descriptor for all letters");
}

#[test]
fn a_full_file_is_an_error_until_it_is_purged() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1000);
    let accepted = (0..10).take_while(|_| letters.put(&letter(b"a\n", None)).is_ok()).count();
    assert!((2..5).contains(&accepted), "{accepted}");
    let error = letters.put(&letter(b"a\n", None)).unwrap_err().to_string();
    assert!(error.contains(" is full with ") && error.contains(" of 1000 bytes: replay or purge"), "{error}");
    assert_eq!(read(&letters).len(), accepted);
    std::fs::remove_file(letters.path()).unwrap();
    letters.put(&letter(b"b\n", None)).unwrap();
    assert_eq!(read(&letters).len(), 1);
}

#[test]
fn half_a_letter_costs_no_other_letter() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1 << 20);
    letters.put(&letter(b"a\n", None)).unwrap();
    let whole = std::fs::read(letters.path()).unwrap();
    let half = &whole[..whole.len() / 2];
    OpenOptions::new().append(true).open(letters.path()).unwrap().write_all(half).unwrap();
    let letters = open(&folder, 1 << 20);
    letters.put(&letter(b"b\n", None)).unwrap();
    letters.put(&letter(b"c\n", None)).unwrap();
    let read = read(&letters);
    let bytes: Vec<_> =
        read.iter().map(|kept| kept.as_ref().ok().map(|kept| kept.letter.text.as_str())).collect();
    assert_eq!(bytes, [Some("a\n"), None, Some("b\n"), Some("c\n")]);
    for cut in 1..whole.len() - 1 {
        let glued = [&whole[..cut], &whole].concat();
        assert_eq!(Kept::parse(&glued).unwrap().letter.text, "a\n", "cut at {cut}");
        assert!(Kept::parse(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_disk_that_takes_nothing_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1 << 20);
    std::fs::create_dir(folder.path().join("deadletter")).unwrap();
    std::os::unix::fs::symlink("/dev/full", letters.path()).unwrap();
    let error = letters.put(&letter(b"a\n", None)).unwrap_err().to_string();
    assert!(error.contains("could not write to ") && error.contains("No space"), "{error}");
    std::fs::remove_file(letters.path()).unwrap();
    letters.put(&letter(b"a\n", None)).unwrap();
    assert_eq!(read(&letters).len(), 1);
}

#[test]
fn letters_of_several_threads_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1 << 20);
    let put = |name: usize| {
        let letters = letters.clone();
        move || {
            (0..50).for_each(|at| letters.put(&letter(format!("{name}.{at}\n").as_bytes(), None)).unwrap())
        }
    };
    let threads: Vec<_> = (0..4).map(|name| std::thread::spawn(put(name))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut all: Vec<String> = read(&letters).into_iter().map(|kept| kept.unwrap().letter.text).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 200);
}

fn all(folder: &tempfile::TempDir) -> Vec<String> {
    let files = folder::files(&folder.path().join("deadletter")).unwrap();
    let lines = files.iter().flat_map(|path| folder::Lines::open(path).unwrap().unwrap());
    lines.map(|line| line.unwrap().kept.unwrap().letter.text).collect()
}

#[test]
fn letters_are_moved_aside_while_others_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1 << 20);
    letters.put(&letter(b"first\n", None)).unwrap();
    let desk = folder::Desk::take(&folder.path().join("deadletter")).unwrap().unwrap();
    assert!(folder::Desk::take(&folder.path().join("deadletter")).is_err(), "one command at a time");
    let put = |name: usize| {
        let letters = letters.clone();
        move || {
            (0..200).for_each(|at| letters.put(&letter(format!("{name}.{at}\n").as_bytes(), None)).unwrap())
        }
    };
    let threads: Vec<_> = (0..3).map(|name| std::thread::spawn(put(name))).collect();
    let mut taken = Vec::new();
    loop {
        let over = threads.iter().all(|thread| thread.is_finished());
        for path in desk.clear().unwrap() {
            // Nothing may come to it any more: what is read now is all there ever was.
            taken
                .extend(folder::Lines::open(&path).unwrap().unwrap().map(|line| line.unwrap().kept.unwrap()));
            folder::Rewrite::of(&path).finish().unwrap();
        }
        if over {
            break;
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((taken.len(), all(&folder).len()), (601, 0));
    for name in 0..3 {
        let of_one = taken.iter().filter(|kept| kept.letter.text.starts_with(&format!("{name}.")));
        let expected = (0..200).map(|at| format!("{name}.{at}\n"));
        assert!(of_one.map(|kept| &kept.letter.text).eq(expected.collect::<Vec<_>>().iter()), "in order");
    }
}

#[test]
fn what_is_left_takes_the_place_of_the_file_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1 << 20);
    assert!(folder::Desk::take(&folder.path().join("deadletter")).unwrap().is_none(), "there never were any");
    for name in ["a\n", "b\n", "c\n"] {
        letters.put(&letter(name.as_bytes(), None)).unwrap();
    }
    let desk = folder::Desk::take(&folder.path().join("deadletter")).unwrap().unwrap();
    let path = desk.clear().unwrap().remove(0);
    letters.put(&letter(b"d\n", None)).unwrap();
    let rewrite = |keep: &[&str], finish: bool| {
        let mut rest = folder::Rewrite::of(&path);
        for line in folder::Lines::open(&path).unwrap().unwrap() {
            let mut line = line.unwrap();
            let kept = line.kept.as_mut().unwrap();
            if keep.contains(&&*kept.letter.text) {
                kept.letter.reason = "again".into();
                rest.keep_letter(kept).unwrap();
            }
        }
        if finish {
            rest.finish().unwrap();
        }
    };
    rewrite(&["b\n"], false);
    assert_eq!(all(&folder), ["a\n", "b\n", "c\n", "d\n"], "killed before its end: nothing has changed");
    rewrite(&["a\n", "c\n"], true);
    assert_eq!(all(&folder), ["a\n", "c\n", "d\n"]);
    rewrite(&[], true);
    assert_eq!(all(&folder), ["d\n"]);
    assert!(!path.exists());
}

#[test]
fn letters_that_were_moved_aside_count() {
    let folder = tempfile::tempdir().unwrap();
    let letters = open(&folder, 1000);
    while letters.put(&letter(b"a\n", None)).is_ok() {}
    let before = all(&folder).len();
    let desk = folder::Desk::take(&folder.path().join("deadletter")).unwrap().unwrap();
    let path = desk.clear().unwrap().remove(0);
    assert!(letters.put(&letter(b"b\n", None)).is_err());
    assert_eq!((all(&folder).len(), letters.0.failed.get()), (before, 2));
    folder::Rewrite::of(&path).finish().unwrap();
    letters.put(&letter(b"b\n", None)).unwrap();
}

/// What a sink gets of a letter is what it got of the line.
#[test]
fn a_letter_becomes_the_record_that_it_was() {
    let changed = |text: Option<&[u8]>| Changed {
        text: text.map(Into::into),
        time_ns: Some(-5),
        metadata: vec![("trace".into(), "7".into())],
        ..Changed::default()
    };
    for (raw, changed) in [
        (&b"a\r\n"[..], None),
        (b"\xff\xfe\n", None),
        (b"cut", None),
        (b"\n", Some(changed(None))),
        (b"old\n", Some(changed(Some(b"new")))),
        (b"old\n", Some(changed(Some(b"")))),
        (b"cut", Some(changed(Some(b"new\nlines")))),
    ] {
        let before = records(raw, changed);
        let letter = Letter::of(&before.get(0), "loki", "why");
        let credit = Budget::new(READ_BYTES).door().try_take(&Holder::default(), 1).unwrap();
        let after = letter.records(credit).unwrap();
        let (before, after) = (before.get(0), after.get(0));
        let told = |record: &Record<'_>| {
            let (origin, labels) = (record.origin, record.labels.clone());
            let place = (origin.source.clone(), origin.generation, origin.filename.clone(), record.offset);
            let metadata = record.metadata.to_vec();
            (record.text.to_vec(), record.raw.map(<[u8]>::to_vec), record.time_ns, labels, metadata, place)
        };
        assert_eq!(told(&before), told(&after), "{raw:?}");
        assert_eq!(before.partial, after.partial, "{raw:?}");
    }
}
