//! From file to file at full speed: what is far behind is written from where it was read, past the page cache.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::path::Path;

use rustix::io::{ReadWriteFlags, preadv2};
use serde_json::json;

use crate::agent::Room;
use crate::files::{bytes, put};

const PAGE: u64 = 4096;

fn numbered(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 100);
    for number in 0_u64.. {
        if text.len() >= bytes {
            break;
        }
        text.extend(format!("{number} {}\n", "x".repeat((number % 83) as usize)).bytes());
    }
    text
}

/// Whoever does not want to wait for the disk is given what is in the cache, and nothing else.
fn share_in_cache(path: &Path) -> f64 {
    let (file, pages) = (File::open(path).unwrap(), path.metadata().unwrap().len().div_ceil(PAGE));
    let is_cached = |page: &u64| {
        let mut byte = [0];
        preadv2(&file, &mut [IoSliceMut::new(&mut byte)], page * PAGE, ReadWriteFlags::NOWAIT).is_ok()
    };
    (0..pages).filter(is_cached).count() as f64 / pages as f64
}

/// On the disk that the build stands on, where nobody says that files live in memory. The output has an odd length
/// already, and is another file every 5 MiB.
#[test]
fn a_backlog_leaves_the_page_cache_alone_and_arrives_as_it_is_over_rotations() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let output = folder.path().join("out.txt");
    for rotate in [json!(null), json!({ "max_bytes": "5MiB", "keep": 9 })] {
        let room = Room::new(json!({
            "sources": [{ "type": "file", "include": ["app.log"] }],
            "sinks": [{ "type": "file", "path": &output, "rotate": rotate }],
        }));
        let text = numbered(24 << 20);
        put(&room.path("app.log"), &text);
        put(&output, b"there\n");
        let (code, stderr) = room.run_once();
        assert_eq!(code, 0, "{stderr}");
        let rotated = (1..=9).rev().map(|number| folder.path().join(format!("out.txt.{number}")));
        let files: Vec<_> = rotated.filter(|path| path.exists()).chain([output.clone()]).collect();
        let largest = files.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let share = share_in_cache(largest);
        let arrived: Vec<u8> = files.iter().flat_map(|path| bytes(path)).collect();
        assert!(arrived == [b"there\n", &text[..]].concat(), "{rotate}: {} bytes", arrived.len());
        assert_eq!(files.len() > 4, rotate.is_object(), "{files:?}");
        assert!(share < 0.5, "{rotate}: {share} of the output is in the page cache");
        files.iter().for_each(|path| fs::remove_file(path).unwrap());
    }
}

/// Whatever a crash leaves of a write that was past the cache is cut off, or is a receipt.
#[test]
fn killed_in_the_middle_each_line_of_a_backlog_stands_once() {
    let source = |name: &str| json!({ "type": "file", "name": name, "include": [format!("{name}.log")] });
    let room = Room::new(json!({
        "agent": { "sync_interval": "20ms" },
        "sources": [source("a"), source("b")],
        "sinks": [{ "type": "file", "path": "out/{source}.txt" }],
    }));
    let text = numbered(48 << 20);
    let outputs = ["a", "b"].map(|name| {
        put(&room.path(&format!("{name}.log")), &text);
        room.path(&format!("out/{name}.txt"))
    });
    let total = || outputs.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum::<u64>();
    for part in 1..=4 {
        let agent = room.run();
        let upto = 2 * text.len() as u64 * part / 6;
        agent.until("some more is there", || total() >= upto);
        agent.kill9();
    }
    let (code, stderr) = room.run_once();
    assert_eq!(code, 0, "{stderr}");
    for path in outputs {
        let arrived = bytes(&path);
        assert!(arrived == text, "{}: {} of {} bytes", path.display(), arrived.len(), text.len());
    }
}
