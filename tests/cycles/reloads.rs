//! Reloads, one after the other: each life gives back what it took, and what is kept from one to the next does not
//! grow. The configurations take turns: another source, another sink, another number of workers.

#![expect(clippy::disallowed_methods, reason = "the configuration of a test need not survive a power cut")]

use std::fs;

use log_capturer::agent::Exit;
use log_capturer::clock::Clock;
use serde_json::json;

use crate::house::{Census, Held, Life, append, descriptors, errors, until};
use crate::receiver::Receiver;

const LINES: u64 = 20;

pub fn many_reloads(reloads: u64) {
    let receiver = Receiver::start((reloads + 1) * LINES);
    let room = tempfile::tempdir().expect("a temporary folder can be made");
    let logs = room.path().join("logs");
    fs::create_dir(&logs).expect("a folder can be made");
    let config = |more: bool| {
        let source =
            |name: &str| json!({ "type": "file", "name": name, "include": [format!("{name}/*.log")] });
        let loki = json!({ "type": "loki", "url": receiver.url(), "batch": { "max_wait": "5ms" } });
        let out = json!({ "type": "file", "path": "out.txt", "batch": { "max_wait": "5ms" } });
        let (sources, sinks) = match more {
            false => (json!([source("logs")]), json!([loki])),
            true => (json!([source("logs"), source("more")]), json!([loki, out])),
        };
        json!({
            "agent": { "data_dir": "data", "workers": 1 + usize::from(more) },
            "status": { "listen": "127.0.0.1:0" },
            "sources": sources,
            "sinks": sinks,
        })
        .to_string()
    };

    let clock = Clock::real();
    let (began, before) = (clock.now(), Held::now());
    let mut census = Census::new();
    let life = Life::start(&config(false), room.path());
    let mut after: Vec<Held> = Vec::with_capacity(reloads as usize);
    for reload in 0..=reloads {
        if reload > 0 {
            fs::write(room.path().join("next.json"), config(reload % 2 == 1)).expect("a file can be written");
            assert_eq!(life.post("/api/v1/reload"), 202, "{}", errors());
            let done = format!("reloads_total{{result=\"done\"}} {reload}\n");
            until("it has started anew", errors, || life.get("/metrics").contains(&done));
        }
        append(&logs.join("a.log"), reload * LINES..(reload + 1) * LINES);
        until("the lines have arrived", errors, || receiver.distinct() == (reload + 1) * LINES);
        census.sample(&life);
        let is_noted = || {
            let books = life.json("/api/v1/ledger");
            books["sinks"].as_array().is_some_and(|sinks| sinks.iter().all(|sink| sink["pending"] == 0))
        };
        until("every answer is noted", errors, is_noted);
        after.push(Held::settled());
    }
    let took = clock.now() - began;
    assert_eq!(life.stop(), Exit::Delivered, "{}", errors());
    until("the receiver has seen the end of the connection", errors, || receiver.connections() == 0);
    receiver.assert_exact((reloads + 1) * LINES);

    // Those of an even number had the first configuration.
    let (warm, last) = (after[(reloads as usize / 3).next_multiple_of(2)], after[reloads as usize & !1]);
    println!(
        "{reloads} reloads in one process, {:.0?} each: {} threads, {} descriptors, live heap {} after a third of them; {} threads, \
         {} descriptors, live heap {} after all",
        took / reloads as u32,
        warm.threads,
        warm.descriptors,
        warm.heap,
        last.threads,
        last.descriptors,
        last.heap,
    );
    assert_eq!((last.threads, last.descriptors), (warm.threads, warm.descriptors), "{}", descriptors());
    assert!(last.heap.bytes <= warm.heap.bytes + crate::house::ONCE.bytes, "{last:?} against {warm:?}");
    assert!(last.heap.blocks <= warm.heap.blocks + crate::house::ONCE.blocks, "{last:?} against {warm:?}");
    let end = Held::now();
    assert_eq!((end.threads, end.descriptors), (before.threads, before.descriptors), "{}", descriptors());
}
