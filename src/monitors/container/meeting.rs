//! When a source has met its engine for the first time: with `start_at: end` reading begins there.
//!
//! It is written down before anything is read. Otherwise a life that ends before the ledger has saved anything, or that
//! never gets to some container, would leave the next one without it: that would send what stood there before, or leave
//! out what was written since.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::disk::folder_of;
use crate::durable;
use crate::error::{Context, Result};

#[derive(Debug)]
pub struct Meeting {
    path: PathBuf,
    /// In nanoseconds since 1970, by the engine's clock.
    at_ns: Option<i64>,
}

impl Meeting {
    /// `folder`: of all sources. A file that is damaged or cannot be read is said, and nothing is left out because of it.
    pub fn open(folder: &Path, source: &str) -> Meeting {
        let path = folder.join(source);
        let why = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Meeting { path, at_ns: None },
            Err(error) => error.to_string(),
            Ok(bytes) => match parse(&bytes) {
                Some(at_ns) => return Meeting { path, at_ns: Some(at_ns) },
                None => format!("it says {:?}", String::from_utf8_lossy(&bytes)),
            },
        };
        log::error!(
            "{source}: could not read {}, which says where it began: {why}; containers of which nothing was read yet \
             are read from their beginning; remove it to begin at its next start",
            path.display()
        );
        Meeting { path, at_ns: Some(0) }
    }

    pub fn at_ns(&self) -> Option<i64> {
        self.at_ns
    }

    /// It is now. On an error it is known in this life only.
    pub fn is_now(&mut self, now_ns: i64) -> Result<()> {
        self.at_ns = Some(now_ns);
        let folder = folder_of(&self.path);
        fs::create_dir_all(folder).context(|| format!("could not make {}", folder.display()))?;
        durable::write_atomic(&self.path, text(now_ns).as_bytes())
    }
}

/// With a checksum: another time would leave something out.
fn text(at_ns: i64) -> String {
    format!("{at_ns} {:08x}\n", crc32fast::hash(&at_ns.to_le_bytes()))
}

fn parse(bytes: &[u8]) -> Option<i64> {
    let at_ns = std::str::from_utf8(bytes).ok()?.split(' ').next()?.parse().ok()?;
    (text(at_ns).as_bytes() == bytes).then_some(at_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_is_remembered() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("containers");
        let mut meeting = Meeting::open(&folder, "docker");
        assert_eq!(meeting.at_ns(), None);
        meeting.is_now(1_795_458_291_000_000_008).unwrap();
        assert_eq!(meeting.at_ns(), Some(1_795_458_291_000_000_008));
        assert_eq!(Meeting::open(&folder, "docker").at_ns(), meeting.at_ns());
        assert_eq!(Meeting::open(&folder, "other").at_ns(), None);
    }

    #[test]
    fn a_damaged_file_leaves_nothing_out() {
        let home = tempfile::tempdir().unwrap();
        let whole = text(1_795_458_291_000_000_008).into_bytes();
        let cut = (0..whole.len()).map(|len| whole[..len].to_vec());
        let flipped = (0..whole.len()).flat_map(|at| {
            (0..8).map({
                let whole = &whole;
                move |bit| {
                    let mut bytes = whole.clone();
                    bytes[at] ^= 1 << bit;
                    bytes
                }
            })
        });
        for bytes in cut.chain(flipped) {
            durable::write_atomic(&home.path().join("docker"), &bytes).unwrap();
            assert_eq!(Meeting::open(home.path(), "docker").at_ns(), Some(0), "{bytes:?}");
        }
    }
}
