//! What the process as a whole has of the system: threads, descriptors, memory. Read from `/proc/self`, in one
//! go and in some twenty microseconds.
//!
//! Formats: proc(5), `/proc/pid/status` and `/proc/pid/fd`.

use crate::error::{Context, Error, Result};

/// At one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    pub threads: u64,
    pub descriptors: u64,
    /// In RAM now, and at most so far.
    pub resident_bytes: u64,
    pub peak_bytes: u64,
}

impl Footprint {
    pub fn read() -> Result<Footprint> {
        let path = "/proc/self/status";
        let text = std::fs::read_to_string(path).context(|| format!("could not read {path}"))?;
        parse(&text, open_descriptors()?)
            .ok_or_else(|| Error::new(format!("the format of {path} is unknown")))
    }
}

fn parse(status: &str, descriptors: u64) -> Option<Footprint> {
    let figure = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    Some(Footprint {
        threads: figure("Threads:")?,
        descriptors,
        resident_bytes: figure("VmRSS:")? * 1024,
        peak_bytes: figure("VmHWM:")? * 1024,
    })
}

/// Since Linux 6.2 the size of the folder is their number; before, it is 0 and they have to be listed.
pub fn open_descriptors() -> Result<u64> {
    let doing = || "could not count the descriptors in /proc/self/fd".to_string();
    let size = std::fs::metadata("/proc/self/fd").context(doing)?.len();
    if size > 0 {
        return Ok(size);
    }
    let entries = std::fs::read_dir("/proc/self/fd").context(doing)?;
    let count = entries.collect::<std::io::Result<Vec<_>>>().context(doing)?.len() as u64;
    Ok(count.saturating_sub(1)) // the one that lists them
}

/// The allocator of the binary, which counts.
#[cfg(feature = "heap")]
#[global_allocator]
static HEAP: cap::Cap<dlmalloc::GlobalDlmalloc> = cap::Cap::new(dlmalloc::GlobalDlmalloc, usize::MAX);

/// Bytes that were asked for and not given back. `None`: nobody counts them, as in what is shipped.
pub fn live_heap_bytes() -> Option<u64> {
    #[cfg(feature = "heap")]
    return Some(HEAP.allocated() as u64);
    #[cfg(not(feature = "heap"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_file_is_read_and_a_strange_one_is_not_guessed_at() {
        let text = "Name:\ta VmRSS: b\nVmHWM:\t    2000 kB\nVmRSS:\t 1000 kB\nThreads:\t7\n";
        let expected =
            Footprint { threads: 7, descriptors: 3, resident_bytes: 1_024_000, peak_bytes: 2_048_000 };
        assert_eq!(parse(text, 3), Some(expected));
        assert_eq!(parse("VmRSS:\t1000 kB\nThreads:\t7\n", 3), None);
    }

    #[test]
    fn this_process_has_what_every_process_has() {
        let here = Footprint::read().unwrap();
        assert!(here.threads >= 1 && here.descriptors >= 3, "{here:?}");
        assert!(here.resident_bytes > 100_000 && here.peak_bytes >= here.resident_bytes / 2, "{here:?}");
    }
}
