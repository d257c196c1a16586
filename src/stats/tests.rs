//! The whole of it with a process made by hand: what it says, shows and forgets.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::after;

use super::*;
use crate::budget::READ_BYTES;
use crate::error::Error;
use crate::tasks::{self, Spec, Switch};

const START: Footprint =
    Footprint { threads: 1, descriptors: 3, resident_bytes: 1 << 20, peak_bytes: 1 << 20 };

/// Without sources or sinks; 30 threads are expected.
struct House {
    stats: Option<Stats>,
    clock: Clock,
    metrics: Arc<Registry>,
    /// What the process says that it has.
    threads: Arc<AtomicU64>,
    switch: Switch,
}

/// As many threads make the process unreadable.
const UNREADABLE: u64 = 666;

fn house() -> House {
    let (clock, metrics) = (Clock::by_hand(1_000_000_000), Arc::new(Registry::default()));
    let (switch, stop) = Switch::new().unwrap();
    let unsynced = Unsynced::default();
    let folder = std::path::Path::new("/nowhere");
    let rooms = Rooms {
        clock: clock.clone(),
        metrics: metrics.clone(),
        table: Arc::new(Table::new(clock.clone())),
        budget: Budget::new(READ_BYTES),
        pools: Pools::new(READ_BYTES, READ_BYTES),
        unsynced: unsynced.clone(),
        own_files: OwnFiles::default(),
        dead_letters: DeadLetters::open(folder, 1000, unsynced, clock.clone()),
        files: None,
        sinks: vec!["loki".into()],
    };
    let scale = Scale { at_start: Some(START), threads: 29, ..Scale::default() };
    let threads = Arc::new(AtomicU64::new(30));
    let mut stats = Stats::new(rooms, scale, stop.stop);
    let said = threads.clone();
    stats.footprint = Box::new(move || match said.load(Ordering::SeqCst) {
        UNREADABLE => Err(Error::new("no /proc here")),
        threads => Ok(Footprint { threads, ..START }),
    });
    House { stats: Some(stats), clock, metrics, threads, switch }
}

impl House {
    fn stats(&mut self) -> &mut Stats {
        self.stats.as_mut().expect("it is here until it runs")
    }

    fn look(&mut self, threads: u64) {
        self.threads.store(threads, Ordering::SeqCst);
        self.clock.advance(SAMPLE_EVERY);
        self.stats().look();
    }

    fn suspected(&self) -> Option<u64> {
        self.metrics.value("leak_suspected", &[("what", "threads")])
    }
}

#[test]
fn a_leak_is_seen_everywhere_and_forgotten_when_it_is_over() {
    let mut house = house();
    let view = house.stats().view();
    assert_eq!(house.suspected(), Some(0), "the series is there from the start");
    for threads in [30, 31, 40] {
        house.look(threads);
        assert_eq!((view.suspicions(), house.suspected()), (Vec::new(), Some(0)), "{threads}");
    }
    house.look(50);
    assert_eq!(view.suspicions(), ["degraded: threads 50 above their bound 30"]);
    assert_eq!((house.suspected(), house.metrics.sum("leak_suspected")), (Some(1), Some(1)));
    assert_eq!(house.metrics.value("watched", &[("what", "threads")]), Some(50));
    let watch = view.leak_watch();
    let row = watch.as_array().unwrap().iter().find(|row| row["what"] == "threads").unwrap();
    assert_eq!((&row["value"], &row["bound"], &row["suspected"]), (&json!(50), &json!(30), &json!(true)));
    house.look(30);
    assert_eq!((view.suspicions(), house.suspected()), (Vec::new(), Some(0)));
}

#[test]
fn a_process_that_cannot_be_read_is_not_judged() {
    let mut house = house();
    let view = house.stats().view();
    for threads in [30, 31, 31, UNREADABLE, UNREADABLE] {
        house.look(threads);
        assert_eq!(view.suspicions(), [""; 0], "{threads}");
    }
    let history = view.history();
    let values = |at: usize| history["columns"][at]["values"].as_array().unwrap().clone();
    assert_eq!(values(1), [json!(30), json!(31), json!(31), Value::Null, Value::Null]);
    assert!(values(6).iter().all(|used| used == 0), "what is not of the process is there");
}

#[test]
fn nothing_is_judged_during_a_stop() {
    let mut house = house();
    let view = house.stats().view();
    house.switch.stop();
    (0..2 * PATIENCE).for_each(|_| house.look(1000));
    assert_eq!(view.suspicions(), [""; 0]);
}

#[test]
fn rates_are_of_the_counters_that_the_rooms_move() {
    let mut house = house();
    let view = house.stats().view();
    let read = house.metrics.counter("read_lines_total", "", &[]);
    let delivered = house.metrics.counter("delivered_lines_total", "", &[("sink", "loki")]);
    house.look(30);
    read.add(500);
    delivered.add(50);
    house.look(30);
    let rates = view.rates();
    assert_eq!(rates["read_lines"], json!({ "10s": 100.0, "1m": 100.0, "5m": 100.0 }));
    assert_eq!(rates["sinks"]["loki"]["delivered_lines"]["10s"], json!(10.0));
}

#[test]
fn it_is_calm_when_nothing_moves_nothing_is_under_way_and_all_is_within_its_bounds() {
    let mut house = house();
    let read = house.metrics.counter("read_bytes_total", "", &[]);
    let delivered = house.metrics.counter("delivered_lines_total", "", &[("sink", "loki")]);
    let budget = house.stats().rooms.budget.clone();
    let look = |house: &mut House, threads| {
        house.look(threads);
        house.stats().is_calm
    };
    assert_eq!([look(&mut house, 30), look(&mut house, 30)], [false, true]);
    read.add(1);
    assert_eq!([look(&mut house, 30), look(&mut house, 30)], [false, true]);
    delivered.add(1);
    assert_eq!([look(&mut house, 30), look(&mut house, 30)], [false, true]);
    let (door, holder) = (budget.door(), budget.holder(&"app".into(), None));
    let credit = door.try_take(&holder, 1234).unwrap();
    assert!(!look(&mut house, 30));
    drop(credit);
    assert_eq!([look(&mut house, 30), look(&mut house, 31), look(&mut house, 30)], [true, false, true]);
}

#[test]
fn who_holds_memory_is_named() {
    let mut house = house();
    let budget = house.stats().rooms.budget.clone();
    let (door, holder) = (budget.door(), budget.holder(&"app".into(), Some(&"/var/a.log".into())));
    let _credit = door.try_take(&holder, 1234).unwrap();
    house.look(30);
    let text = house.stats().view().memory_text();
    assert!(text.starts_with(&format!("budget: 1234 of {READ_BYTES} bytes used\n")), "{text}");
    assert!(text.contains("        1234  app  /var/a.log\n"), "{text}");
    assert!(text.contains("          30            30  threads\n"), "{text}");
}

/// The thread itself: it samples until it is told to end, and finds the leak by itself.
#[test]
fn the_thread_watches_until_it_is_told_to_end() {
    let mut house = house();
    let mut stats = house.stats.take().unwrap();
    stats.every = Duration::from_millis(1);
    let (view, table) = (stats.view(), Arc::new(Table::new(Clock::real())));
    let (closer, ended) = tasks::closing().unwrap();
    tasks::run(table.clone(), |tasks| {
        let told = ended.clone();
        let spec = Spec::keeper("stats", Duration::from_secs(5));
        tasks.spawn(spec, move |task| stats.run(task, &told)).unwrap();
        let until = |fact: &dyn Fn() -> bool| {
            let patience = after(Duration::from_secs(20));
            while !fact() && patience.is_empty() {
                let _ = after(Duration::from_millis(1)).recv(); // a timer: it always comes
            }
            fact()
        };
        let is_well = || view.shown.lock().readings[0].0.is_some() && view.suspicions().is_empty();
        let mut seen = vec![until(&is_well)];
        house.threads.store(99, Ordering::SeqCst);
        seen.push(until(&|| !view.suspicions().is_empty()));
        house.threads.store(30, Ordering::SeqCst);
        seen.push(until(&is_well));
        drop(closer);
        assert_eq!(seen, [true; 3], "well, suspected, well again");
    })
    .unwrap();
    assert_eq!(table.fault(true), None);
}
