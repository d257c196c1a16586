//! Programs that write logs: numbered lines into a file that is rotated, truncated, deleted and made again
//! while they write. A writer remembers how many lines it wrote; they are numbered from 0.

#![expect(
    clippy::disallowed_methods,
    reason = "programs that write logs sync nothing, and that is the point"
)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::expect::push_line;

/// What a program with a buffered logger hands to the kernel at once.
const WRITE_BYTES: usize = 64 * 1024;

pub struct Writer {
    id: u32,
    path: PathBuf,
    file: File,
    written: u64,
}

impl Writer {
    /// Opens `path` to append; the folder is made when it is missing.
    pub fn new(id: u32, path: impl Into<PathBuf>) -> Writer {
        let path = path.into();
        fs::create_dir_all(path.parent().expect("a log stands in a folder")).expect("a folder can be made");
        let file = open(&path);
        Writer { id, path, file, written: 0 }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which lines were written: a row for [`crate::expect::Arrived::compare`].
    pub fn written(&self) -> (u32, u64) {
        (self.id, self.written)
    }

    pub fn write(&mut self, lines: u64) {
        let mut buffer = Vec::with_capacity(WRITE_BYTES + 256);
        for number in self.written..self.written + lines {
            push_line(&mut buffer, self.id, number);
            if buffer.len() >= WRITE_BYTES {
                self.put(&buffer);
                buffer.clear();
            }
        }
        self.put(&buffer);
        self.written += lines;
    }

    /// Half of the next line now; [`Writer::finish_line`] writes the rest.
    pub fn begin_line(&mut self) {
        let line = self.next_line();
        self.put(&line[..line.len() / 2]);
    }

    pub fn finish_line(&mut self) {
        let line = self.next_line();
        self.put(&line[line.len() / 2..]);
        self.written += 1;
    }

    /// Renames the file to `name` in the same folder and makes a new one.
    pub fn rotate(&mut self, name: &str) {
        fs::rename(&self.path, self.path.with_file_name(name)).expect("a log can be renamed");
        self.file = open(&self.path);
    }

    /// Renames only: the writer holds the old file for a while, as many do.
    pub fn rename(&mut self, name: &str) {
        fs::rename(&self.path, self.path.with_file_name(name)).expect("a log can be renamed");
    }

    /// Makes the file (again) at its path; the old one, if any, is let go.
    pub fn reopen(&mut self) {
        self.file = open(&self.path);
    }

    /// Copies the file to `name` in the same folder, then empties it, as `logrotate` does with `copytruncate`.
    pub fn copytruncate(&mut self, name: &str) {
        fs::copy(&self.path, self.path.with_file_name(name)).expect("a log can be copied");
        self.truncate();
    }

    pub fn truncate(&mut self) {
        self.file.set_len(0).expect("a log can be emptied");
    }

    pub fn delete(&mut self) {
        fs::remove_file(&self.path).expect("a log can be deleted");
    }

    fn next_line(&self) -> Vec<u8> {
        let mut line = Vec::new();
        push_line(&mut line, self.id, self.written);
        line
    }

    fn put(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).expect("a log can be written");
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).expect("a log can be made")
}

/// A file with exactly these bytes; its folder is made when it is missing.
pub fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a file stands in a folder")).expect("a folder can be made");
    fs::write(path, bytes).expect("a file can be written");
}

/// Empty when it is not there yet.
pub fn bytes(path: &Path) -> Vec<u8> {
    match fs::read(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        read => read.unwrap_or_else(|cause| panic!("{}: {cause}", path.display())),
    }
}
