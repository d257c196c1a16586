//! Bounds, and what is said when they do not hold.

use super::*;

/// Values against a bound of 10, and what is said: `+` grew, `-` back, `.` nothing.
fn check(values: &[u64], said: &str) {
    let mut suspect = Suspect::default();
    let word = |value: &u64| match judge(&mut suspect, Reading { value: *value, bound: 10 }) {
        None => '.',
        Some(Verdict::Grew { .. }) => '+',
        Some(Verdict::Back { .. }) => '-',
    };
    assert_eq!(values.iter().map(word).collect::<String>(), said, "{values:?}");
}

#[test]
fn one_word_per_change_of_state() {
    check(&[0, 10, 10, 10], "....");
    check(&[11, 11, 11, 11, 12, 99], "..+...");
    check(&[11, 11, 10, 11, 11, 10], "......");
    check(&[11, 11, 10, 11, 11, 11], ".....+");
    check(&[11, 11, 11, 10, 10], "..+-.");
    check(&[11, 11, 11, 10, 11, 11, 11], "..+-..+");
}

#[test]
fn growth_is_told_from_the_last_value_that_was_right() {
    let mut suspect = Suspect::default();
    let mut said = [3, 7, 11, 12, 13].map(|value| judge(&mut suspect, Reading { value, bound: 10 }));
    let grew = Verdict::Grew { from: Some(7), reading: Reading { value: 13, bound: 10 } };
    assert_eq!(said[4].take(), Some(grew));
    assert_eq!(said, [None; 5]);
}

fn scale() -> Scale {
    let at_start = Footprint { threads: 1, descriptors: 5, resident_bytes: 4 << 20, peak_bytes: 0 };
    Scale {
        at_start: Some(at_start),
        threads: 12,
        connections: 3,
        sinks: 2,
        file_sinks: 1,
        workers: 2,
        stages: 3,
        label_stages: 1,
        open_files_max: 512,
        streams: 1,
        engines: 0,
        known: 7,
        known_stamps: 9,
        memory_budget: 16 << 20,
        chunk_bytes: 8 << 20,
        spools_max_bytes: Some(2 << 30),
        dead_letters_max_bytes: 1000,
    }
}

fn bound(what: &str, sample: Sample) -> Option<u64> {
    let thing = THINGS.iter().find(|thing| thing.what == what).unwrap_or_else(|| panic!("no {what}"));
    (thing.bound)(&scale(), &sample)
}

#[test]
fn bounds_follow_the_configuration_and_the_work() {
    let check = |what: &str, sample: Sample, expected: u64| {
        assert_eq!(bound(what, sample.clone()), Some(expected), "{what} with {sample:?}");
    };
    let some = Some;
    let idle = Sample::default;
    check("threads", idle(), 13);
    check("tasks", idle(), 12);
    let readers = Sample { helpers: some(5), containers_followed: some(4), ..idle() };
    check("threads", readers.clone(), 18);
    check("tasks", readers.clone(), 17);
    check("helpers", readers.clone(), 12);
    check("descriptors", readers, 39 + 6 + 10 + 4);
    check("descriptors", idle(), 5 + 12 + 16 + 6 + 2 * 3);
    let busy = Sample {
        files_open: some(100),
        outputs_open: some(10),
        outputs_unsynced: some(20),
        status_clients: some(4),
        journal_segments: some(40),
        output_journal_segments: some(3),
        ..idle()
    };
    check("descriptors", busy, 39 + 6 + 134 + 43);
    let mib = 1 << 20;
    check("resident_bytes", idle(), (4 + 32 + 32 + 3 + 1) * mib + 7 * 8192);
    let files = Sample { files_followed: some(1280), generations: some(1300), ..idle() };
    check("resident_bytes", files, 72 * mib + 1307 * 8192);
    let files = Sample { files_matching: some(10), files_gone: some(2), files_shown: some(12), ..idle() };
    check("files_followed", files.clone(), 12);
    check("files_overdue", Sample { files_in_line: some(3), ..idle() }, 3);
    check("files_open", files.clone(), 512);
    check("paths", files.clone(), 12);
    check("lineages", files.clone(), 12);
    check("files_in_line", files.clone(), 12);
    check("files_rested", files.clone(), 512 + 128 + 64);
    check("files_passed_over", files.clone(), 84);
    check("files_not_met", files, 7);
    check("watches", Sample { folders: some(3), ..idle() }, 3);
    check("generations", Sample { files_followed: some(5), ..idle() }, 5 + 1 + 7);
    let finished = Sample {
        files_followed: some(5),
        not_met: some(2),
        generations_finished: some(4),
        open_chunks: some(6),
        ..idle()
    };
    check("generations", finished.clone(), 5 + 1 + 2 + 4);
    check("generations_finished", finished, 6);
    check("open_chunks", Sample { budget_used: some(7680), ..idle() }, 10 + 512);
    check("kept_stamps", Sample { budget_used: some(7680), ..idle() }, 9 + 10 + 512);
    check("kept_stamps", Sample { budget_used: some(0), open_chunks: some(20), ..idle() }, 9 + 20 + 512);
    check("journal_segments", Sample { journal_segments_needed: some(5), ..idle() }, 5 + 3);
    check("folders_complained_of", idle(), 1000);
    check("containers_in_line", Sample { containers_known: some(4), ..idle() }, 4);
    check("spool_former", idle(), 2 * 7);
    check("containers_gone", Sample { containers_followed: some(4), ..idle() }, 4 + 8);
    let holders = Sample { files_followed: some(5), containers_known: some(6), ..idle() };
    check("budget_holders", Sample { generations: some(20), ..holders }, 5 + 6 + 1 + 20 + 2 + 512);
    check("output_journal_segments", idle(), 32);
    check("budget_used_bytes", Sample { open_chunks: some(0), ..idle() }, 3 * mib);
    check("budget_used_bytes", Sample { open_chunks: some(1), ..idle() }, 16 * mib);
    check("label_sets_bytes", idle(), 512 << 10);
    check("outputs_open", idle(), 64);
    check("outputs_unsynced", idle(), 256 + 66 + 4 + 2 * 20);
    check("own_files", Sample { own_files_room: some(256), ..idle() }, 257);
    check("dead_letter_bytes", idle(), 1000);
    check("metric_series", idle(), 75 + 3 * 35 + 32 + 12);
}

/// Everything is in use and has some.
fn in_use() -> Sample {
    let some = Some(10);
    Sample {
        threads: some,
        descriptors: some,
        resident_bytes: some,
        tasks: some,
        helpers: some,
        containers_followed: some,
        containers_known: some,
        containers_gone: some,
        containers_in_line: some,
        files_shown: some,
        files_matching: some,
        files_gone: some,
        files_overdue: some,
        paths: some,
        lineages: some,
        files_in_line: some,
        files_rested: some,
        passed_over: some,
        not_met: some,
        folders: some,
        watches: some,
        complaints: some,
        files_followed: some,
        files_open: some,
        generations: some,
        generations_finished: some,
        open_chunks: some,
        kept_stamps: some,
        journal_segments: some,
        journal_segments_needed: some,
        budget_used: some,
        budget_holders: some,
        buffers_spare_bytes: some,
        buffers_spare_most: some,
        label_sets_bytes: some,
        outputs_open: some,
        output_journal_segments: some,
        spool_files: some,
        spool_bytes: some,
        spool_former: some,
        outputs_unsynced: some,
        own_files: some,
        own_files_room: some,
        dead_letter_bytes: some,
        status_clients: some,
        series: some,
    }
}

/// In each row: what it is the figure of.
type Row = (&'static str, fn(&mut Sample) -> &mut Option<u64>);

const ROWS: [Row; COUNT] = [
    ("threads", |sample| &mut sample.threads),
    ("tasks", |sample| &mut sample.tasks),
    ("helpers", |sample| &mut sample.helpers),
    ("descriptors", |sample| &mut sample.descriptors),
    ("resident_bytes", |sample| &mut sample.resident_bytes),
    ("files_followed", |sample| &mut sample.files_shown),
    ("files_open", |sample| &mut sample.files_open),
    ("files_overdue", |sample| &mut sample.files_overdue),
    ("paths", |sample| &mut sample.paths),
    ("lineages", |sample| &mut sample.lineages),
    ("files_in_line", |sample| &mut sample.files_in_line),
    ("files_rested", |sample| &mut sample.files_rested),
    ("files_passed_over", |sample| &mut sample.passed_over),
    ("files_not_met", |sample| &mut sample.not_met),
    ("watches", |sample| &mut sample.watches),
    ("folders_complained_of", |sample| &mut sample.complaints),
    ("containers_gone", |sample| &mut sample.containers_gone),
    ("containers_in_line", |sample| &mut sample.containers_in_line),
    ("generations", |sample| &mut sample.generations),
    ("generations_finished", |sample| &mut sample.generations_finished),
    ("open_chunks", |sample| &mut sample.open_chunks),
    ("kept_stamps", |sample| &mut sample.kept_stamps),
    ("journal_segments", |sample| &mut sample.journal_segments),
    ("budget_holders", |sample| &mut sample.budget_holders),
    ("budget_used_bytes", |sample| &mut sample.budget_used),
    ("buffers_pooled_bytes", |sample| &mut sample.buffers_spare_bytes),
    ("label_sets_bytes", |sample| &mut sample.label_sets_bytes),
    ("outputs_open", |sample| &mut sample.outputs_open),
    ("output_journal_segments", |sample| &mut sample.output_journal_segments),
    ("outputs_unsynced", |sample| &mut sample.outputs_unsynced),
    ("spool_bytes", |sample| &mut sample.spool_bytes),
    ("spool_former", |sample| &mut sample.spool_former),
    ("own_files", |sample| &mut sample.own_files),
    ("dead_letter_bytes", |sample| &mut sample.dead_letter_bytes),
    ("metric_series", |sample| &mut sample.series),
];

/// At its bound nothing is said; one more, and it is, for that row.
#[test]
fn each_row_warns_when_it_is_above_its_bound() {
    assert_eq!(THINGS.each_ref().map(|thing| thing.what), ROWS.map(|(what, _)| what));
    for (thing, (what, figure)) in THINGS.iter().zip(ROWS) {
        let said = |more: u64| {
            let mut sample = in_use();
            let bound = (thing.bound)(&scale(), &sample).expect("everything is in use");
            *figure(&mut sample) = Some(bound + more);
            let mut suspect = Suspect::default();
            let readings = (0..PATIENCE).map(|_| thing.read(&scale(), &sample));
            readings.filter_map(|reading| judge(&mut suspect, reading.expect("it is in use"))).count()
        };
        assert_eq!((said(0), said(1)), (0, 1), "{what}");
    }
}

#[test]
fn nothing_is_said_about_what_is_not_known() {
    let nothing = Scale { at_start: None, ..scale() };
    let sample = Sample { threads: Some(1_000), paths: Some(1_000), ..Sample::default() };
    let read: Vec<&str> = THINGS
        .iter()
        .filter(|thing| thing.read(&nothing, &sample).is_some())
        .map(|thing| thing.what)
        .collect();
    assert_eq!(read, [""; 0]);
}
