//! When a source has met its engine for the first time: with `start_at: end` reading begins there.
//!
//! It is written down before anything is read. Otherwise a life that ends before the ledger has saved anything, or that
//! never gets to some container, would leave the next one without it: that would send what stood there before, or leave
//! out what was written since.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::error::{Context, Error, Result};

#[derive(Debug)]
pub struct Meeting {
    path: PathBuf,
    /// In nanoseconds since 1970, by the engine's clock.
    at_ns: Option<i64>,
}

impl Meeting {
    /// `folder`: of all sources. Errors: there is a file that cannot be read.
    pub fn open(folder: &Path, source: &str) -> Result<Meeting> {
        let path = folder.join(source);
        let at_ns = match fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().parse().map_err(|_| Error::new(format!("it says {text:?}")))),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(Err(Error::new(error.to_string()))),
        };
        let at_ns = at_ns
            .transpose()
            .context(|| format!("{source}: could not read {}, which says where it begins", path.display()))?;
        Ok(Meeting { path, at_ns })
    }

    pub fn at_ns(&self) -> Option<i64> {
        self.at_ns
    }

    /// It is now. On an error it is known in this life only.
    pub fn is_now(&mut self, now_ns: i64) -> Result<()> {
        self.at_ns = Some(now_ns);
        let folder = durable::folder_of(&self.path);
        fs::create_dir_all(folder).context(|| format!("could not make {}", folder.display()))?;
        durable::write_atomic(&self.path, format!("{now_ns}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_is_remembered_and_a_broken_file_is_said() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("containers");
        let mut meeting = Meeting::open(&folder, "docker").unwrap();
        assert_eq!(meeting.at_ns(), None);
        meeting.is_now(1_795_458_291_000_000_008).unwrap();
        assert_eq!(meeting.at_ns(), Some(1_795_458_291_000_000_008));
        assert_eq!(Meeting::open(&folder, "docker").unwrap().at_ns(), meeting.at_ns());
        assert_eq!(Meeting::open(&folder, "other").unwrap().at_ns(), None);
        durable::write_atomic(&folder.join("docker"), b"soon").unwrap();
        let said = Meeting::open(&folder, "docker").unwrap_err().to_string();
        assert!(said.contains("docker: could not read") && said.contains("it says \"soon\""), "{said}");
    }
}
