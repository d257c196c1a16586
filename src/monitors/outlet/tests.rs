//! What the door does when the disk or the budget says no.

use super::super::SourceKind;
use super::*;
use crate::budget::READ_BYTES;
use crate::disk::model::ModelDisk;
use crate::record::Labels;

fn stdin() -> SourceOptions {
    SourceOptions {
        name: "one".into(),
        labels: Labels::default(),
        max_line_bytes: 1000,
        idle: Duration::from_secs(5),
        kind: SourceKind::Stdin,
    }
}

fn opening(source: &SourceOptions) -> Opening<'_> {
    Opening { source, generation: None, filename: None, identity: None, start: 0, lineage: 0 }
}

/// What the budget says that a chunk of one byte costs with so many sinks.
fn cost(sinks: usize) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let below = fixture::below(folder.path(), sinks, READ_BYTES);
    let source = stdin();
    let mut outlet = below.supply.outlet();
    let mut stream = outlet.open(opening(&source));
    let credit = outlet.take(&stream, 1).unwrap();
    outlet.send(&mut stream, b"\n", &[1], credit).unwrap();
    below.supply.budget.used()
}

/// A full disk that no room was allocated on.
#[test]
fn what_cannot_be_stamped_is_not_sent_and_waits() {
    let disk = ModelDisk::default();
    disk.set_full(true);
    let clock = Clock::by_hand(1_000_000);
    let fixture::Below { mut ledger, mut supply, journal, chunks, .. } =
        fixture::below_on(Arc::new(disk.clone()), Path::new("/data/ledger"), 1, READ_BYTES);
    supply.clock = clock.clone();
    let mut outlet = supply.stamping_outlet(journal);
    let source = stdin();
    let filename = Some(&Path::new("/var/log/a").into());
    let mut stream = outlet.open(Opening { filename, ..opening(&source) });
    for wait in [STAMP_RETRY / 2, STAMP_RETRY] {
        let credit = outlet.take(&stream, 2).unwrap();
        assert_eq!(outlet.send(&mut stream, b"a\n", &[2], credit), Err(NotSent::Unstamped));
        assert_eq!((stream.position(), chunks.len()), (0, 0));
        ledger.catch_up(false).unwrap();
        assert!(ledger.stamping_trouble().unwrap().starts_with("could not make /data/ledger/journal-0"));
        clock.advance(STAMP_RETRY - wait.min(STAMP_RETRY - Duration::from_millis(1)));
        assert_eq!(outlet.take(&stream, 2).unwrap_err(), Refused::Full);
        clock.advance(wait);
    }
    disk.set_full(false);
    let credit = outlet.take(&stream, 2).unwrap();
    assert_eq!(outlet.send(&mut stream, b"a\n", &[2], credit), Ok(()));
    ledger.catch_up(false).unwrap();
    assert_eq!((stream.position(), chunks.len(), ledger.stamping_trouble()), (2, 1, None));
    // A crash now: how it began is in the journal too, although it could not be written then.
    drop((outlet, ledger));
    let below = fixture::below_on(Arc::new(disk), Path::new("/data/ledger"), 1, READ_BYTES);
    let known = &below.restored.known[0];
    assert_eq!((known.filename.as_ref(), known.stamps.len(), known.position), (filename, 1, 0));
}

/// Three files with a line each, and room for one chunk at the worker.
#[test]
fn a_group_is_written_down_at_once_before_any_of_it_leaves() {
    let disk = ModelDisk::default();
    let fixture::Below { mut switch, mut ledger, supply, journal, chunks, .. } =
        fixture::below_on(Arc::new(disk.clone()), Path::new("/data/ledger"), 1, READ_BYTES);
    let mut outlet = supply.stamping_outlet(journal);
    let source = stdin();
    let paths = ["/var/log/a", "/var/log/b", "/var/log/c"].map(|path| Arc::from(Path::new(path)));
    let open = |path| outlet.open(Opening { filename: Some(path), ..opening(&source) });
    let mut streams: Vec<Stream> = paths.iter().map(open).collect();
    let small = |outlet: &mut Outlet, stream: &Stream| {
        assert!(outlet.gathers(stream));
        let (credit, mut data) = (outlet.take(stream, 2).unwrap(), outlet.buffer(2));
        data.copy_from_slice(b"a\n");
        outlet.gather(data, WholeLines::Found(&[2]), Head::of(b"a\n"), credit, None)
    };
    let send_all = |outlet: &mut Outlet, streams: &mut [Stream]| {
        let smalls: Vec<Small> = streams.iter().map(|stream| small(outlet, stream)).collect();
        let ended = outlet.send_all(streams.iter_mut().zip(smalls));
        (ended, streams.iter().map(Stream::position).collect::<Vec<_>>())
    };

    switch.stop();
    let before = disk.changes();
    assert_eq!(send_all(&mut outlet, &mut streams), ((1, Err(NotSent::Stopped)), vec![2, 0, 0]));
    assert_eq!((disk.changes() - before, chunks.len()), (1, 1));
    assert_eq!(
        supply.budget.used(),
        chunks.recv().unwrap().lines.credit.bytes(),
        "nobody pays for the others"
    );
    ledger.catch_up(false).unwrap();
    assert_eq!(ledger.stamping_trouble(), None);
    let known = ledger.restored().known;
    assert_eq!(
        known.iter().map(Known::known_to).collect::<Vec<_>>(),
        [2, 0, 0],
        "the others were taken back"
    );
    disk.fail_after(0);
    assert_eq!(send_all(&mut outlet, &mut streams), ((0, Err(NotSent::Unstamped)), vec![2, 0, 0]));
    ledger.catch_up(false).unwrap();
    assert!(chunks.is_empty() && ledger.stamping_trouble().is_some());
    // A crash now.
    drop((outlet, ledger));
    disk.process_dies();
    let below = fixture::below_on(Arc::new(disk), Path::new("/data/ledger"), 1, READ_BYTES);
    let known = below.restored.known.iter().map(|known| (known.stamps.len(), known.position));
    assert_eq!(known.collect::<Vec<_>>(), [(1, 0); 3]);
}

#[test]
fn a_chunk_is_paid_for_with_all_its_shares() {
    let one = cost(1);
    assert!((900..1200).contains(&one), "{one}");
    assert_eq!(cost(64) - one, 63 * SHARE_BYTES);
}
