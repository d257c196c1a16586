//! The `watch` thread: turns what inotify says about folders into hints.
//!
//! Folders are watched, not files: a watch per folder is few, and a file that is created after the watch needs
//! none of its own. `discovery` adds and removes the watches ([`Watches`]); this thread only waits in `poll`.
//!
//! Always true: hints are bounded ([`HINTS_MAX`]); whatever is lost (an overflow of the kernel's queue, too many
//! names) becomes "look at everything". Without inotify, or without room for more watches, there are fewer
//! hints and nothing else changes: polls and sweeps find the same, later.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::Post;
use super::sweep::join;
use crate::error::{Error, Result};
use crate::order;
use crate::tasks::{Closed, Task};

/// More names at once are not worth telling apart: everything is looked at.
const HINTS_MAX: usize = 4096;

/// Sixteen kilobytes hold some hundred events, and always at least one: its name is at most 255 bytes.
const EVENT_BYTES: usize = 16 * 1024;

/// A megabyte, as much as the kernel's queue holds; whoever writes faster than that is looked at anyway.
const LAST_READS_MAX: usize = 64;

/// How long the events of a busy folder gather before the next look: a writer with a thousand lines a second
/// wakes us fifty times, and equal events become one in the kernel.
const GATHER: Duration = Duration::from_millis(20);

/// Which files may have changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Hints {
    /// In the order in which it happened; some may be named more than once.
    These(Vec<Hint>),
    Everything,
}

/// Something has happened at a path.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    pub path: PathBuf,
    /// Something was written to what stands there, and that is all: it is the file that stood there before.
    pub is_written: bool,
}

impl Default for Hints {
    fn default() -> Hints {
        Hints::These(Vec::new())
    }
}

impl Hints {
    pub(super) fn add(&mut self, hint: Hint) {
        let Hints::These(these) = self else { return };
        if these.len() == 2 * HINTS_MAX {
            order::sort(these); // what is more than written comes first
            these.dedup_by(|next, kept| next.path == kept.path);
            if these.len() > HINTS_MAX {
                return *self = Hints::Everything;
            }
        }
        these.push(hint);
    }

    /// By name, for many questions.
    pub(super) fn named(self) -> Named {
        Named(match self {
            Hints::These(these) => Some(these.into_iter().map(|hint| hint.path).collect()),
            Hints::Everything => None,
        })
    }
}

/// The files that hints are about; `None`: all.
pub(super) struct Named(Option<HashSet<PathBuf>>);

impl Named {
    pub fn tell_of(&self, path: &Path) -> bool {
        self.0.as_ref().is_none_or(|paths| paths.contains(path))
    }
}

/// What happens to the entries of a folder, and to their contents.
fn everything() -> WatchMask {
    entries() | WatchMask::MODIFY | WatchMask::ATTRIB
}

/// What happens to the entries of a folder.
fn entries() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
        | WatchMask::MASK_ADD // a folder may be watched twice, for its entries and for everything
}

/// The thread's body.
pub struct Watch {
    inotify: Option<Inotify>,
    folders: Arc<Mutex<Folders>>,
    hints: Post<Hints>,
    /// Rings `discovery`: entries have changed.
    stir: Sender<()>,
    stop: Closed,
    /// Dropped with everything else when it ends, however that happens.
    _until_heard_out: Sender<Infallible>,
}

/// Which folders are watched: `discovery`'s end.
pub struct Watches {
    inotify: Option<inotify::Watches>,
    folders: Arc<Mutex<Folders>>,
    sweep: u64,
    /// Folders that this sweep asked for.
    asked: usize,
    /// No room for more watches: not asked for again in this sweep.
    full: bool,
    complained: bool,
}

/// Watch descriptors are never used twice by one inotify instance; a folder can be reached by several paths.
#[derive(Default)]
struct Folders {
    by_descriptor: HashMap<i32, (WatchDescriptor, Vec<PathBuf>)>,
    /// With the number of the last sweep that wanted it.
    by_path: HashMap<PathBuf, (i32, u64)>,
}

/// Makes both ends, and what breaks when the first of them has ended and put in its last hint. Without inotify there
/// are no hints, which is said once.
/// `once`: they are not wanted.
pub(super) fn watch(
    hints: Post<Hints>,
    stir: Sender<()>,
    stop: Closed,
    once: bool,
) -> (Watch, Watches, Receiver<Infallible>) {
    let complain = |cause: &std::io::Error| {
        log::warn!("files: could not use inotify: {cause}; changes are found by polling, a little later");
    };
    let inotify = if once { None } else { Inotify::init().inspect_err(complain).ok() };
    let folders = Arc::new(Mutex::new(Folders::default()));
    let watches = Watches {
        inotify: inotify.as_ref().map(Inotify::watches),
        folders: folders.clone(),
        sweep: 0,
        asked: 0,
        full: false,
        complained: false,
    };
    let (_until_heard_out, heard_out) = bounded(0);
    (Watch { inotify, folders, hints, stir, stop, _until_heard_out }, watches, heard_out)
}

impl Watch {
    /// Ends on stop only.
    pub fn run(mut self, task: &Task) -> Result<()> {
        let Some(mut inotify) = self.inotify.take() else {
            task.waits_for("the stop: there is no inotify");
            select! { recv(self.stop.channel()) -> _ => return Ok(()) }
        };
        let mut buffer = vec![0; EVENT_BYTES];
        while self.wait(&inotify, task)? {
            task.beat();
            match inotify.read_events(&mut buffer) {
                Ok(events) => self.handle(events),
                Err(cause) if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(cause) => return Err(Error::new(format!("could not read inotify events: {cause}"))),
            }
        }
        self.hear_out(&mut inotify, &mut buffer);
        Ok(())
    }

    /// What has happened until now: `files` tells by it what needs no look any more.
    fn hear_out(&self, inotify: &mut Inotify, buffer: &mut [u8]) {
        for _ in 0..LAST_READS_MAX {
            match inotify.read_events(buffer) {
                Ok(events) => self.handle(events),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break, // nobody knows what it was
            }
        }
        self.hints.put(|hints| *hints = Hints::Everything);
    }

    /// Whether there is something to read; `false`: stop.
    fn wait(&self, inotify: &Inotify, task: &Task) -> Result<bool> {
        task.waits_for("changes");
        self.stop.wait(GATHER);
        if self.stop.is_closed() {
            return Ok(false);
        }
        loop {
            let mut ready =
                [PollFd::new(inotify, PollFlags::IN), PollFd::new(&self.stop, PollFlags::empty())];
            match poll(&mut ready, None) {
                Ok(_) if !ready[1].revents().is_empty() => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(cause) => return Err(Error::new(format!("could not wait for inotify events: {cause}"))),
            }
        }
    }

    fn handle(&self, events: inotify::Events) {
        let mut entries_changed = false;
        self.hints.put(|hints| {
            let mut folders = self.folders.lock();
            for event in events {
                let is_written = event.mask == EventMask::MODIFY;
                entries_changed |= !is_written;
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    *hints = Hints::Everything;
                } else if event.mask.contains(EventMask::IGNORED) {
                    folders.forget_descriptor(event.wd.get_watch_descriptor_id());
                } else if let Some((_, paths)) =
                    folders.by_descriptor.get(&event.wd.get_watch_descriptor_id())
                {
                    if let Some(name) = event.name {
                        paths
                            .iter()
                            .for_each(|folder| hints.add(Hint { path: join(folder, name), is_written }));
                    }
                } else {
                    // The watch is so new that its folder is not noted yet.
                    *hints = Hints::Everything;
                }
            }
        });
        if entries_changed {
            let _ = self.stir.try_send(()); // one slot: rung already, or discovery has ended
        }
    }
}

impl Folders {
    /// Returns the watch that nobody needs any more, if there is one: of the folder that stood there before.
    fn note(&mut self, path: &Path, descriptor: WatchDescriptor, sweep: u64) -> Option<WatchDescriptor> {
        let id = descriptor.get_watch_descriptor_id();
        let other = self.by_path.get(path).is_some_and(|(known, _)| *known != id);
        let unwanted = if other { self.forget_path(path) } else { None };
        let (_, paths) = self.by_descriptor.entry(id).or_insert_with(|| (descriptor, Vec::new()));
        if !paths.iter().any(|known| known == path) {
            paths.push(path.to_owned());
        }
        self.by_path.insert(path.to_owned(), (id, sweep));
        unwanted
    }

    fn forget_descriptor(&mut self, id: i32) {
        if let Some((_, paths)) = self.by_descriptor.remove(&id) {
            for path in paths {
                if self.by_path.get(&path).is_some_and(|(known, _)| *known == id) {
                    self.by_path.remove(&path);
                }
            }
        }
    }

    /// Returns the watch that nobody needs any more, if there is one.
    fn forget_path(&mut self, path: &Path) -> Option<WatchDescriptor> {
        let (id, _) = self.by_path.remove(path)?;
        let (_, paths) = self.by_descriptor.get_mut(&id)?;
        paths.retain(|known| known != path);
        if !paths.is_empty() {
            return None;
        }
        self.by_descriptor.remove(&id).map(|(descriptor, _)| descriptor)
    }
}

impl Watches {
    pub(super) fn begin_sweep(&mut self) {
        self.sweep += 1;
        self.asked = 0;
        self.full = false;
    }

    /// Before the folder is read, so that nothing falls between. In every sweep: another folder may stand there.
    /// Says whether all that happens in it will be reported.
    pub(super) fn add(&mut self, folder: &Path) -> bool {
        let is_listened_to = Arc::strong_count(&self.folders) > 1;
        self.add_for(folder, everything()) && is_listened_to && tells_all(folder)
    }

    /// For a folder that is only waited in, for another to appear.
    pub(super) fn add_for_entries(&mut self, folder: &Path) {
        self.add_for(folder, entries());
    }

    /// Whether there is a watch now.
    fn add_for(&mut self, folder: &Path, mask: WatchMask) -> bool {
        self.asked += 1;
        let Some(inotify) = self.inotify.as_mut().filter(|_| !self.full) else { return false };
        // No lock is held here: a look-up of a path may take its time.
        match inotify.add(folder, mask) {
            Ok(descriptor) => {
                let unwanted = self.folders.lock().note(folder, descriptor, self.sweep);
                remove(inotify, unwanted);
                return true;
            }
            // Other errors: gone or forbidden, and the walk that follows meets the same and says so.
            Err(cause) => {
                let no_room = [Errno::NOSPC, Errno::MFILE, Errno::NOMEM].map(Some);
                self.full = no_room.contains(&Errno::from_io_error(&cause));
                if self.full && !self.complained {
                    self.complained = true;
                    log::warn!(
                        "files: no room for more inotify watches (fs.inotify.max_user_watches): {cause}; \
                         changes in other folders are found by polling, a little later"
                    );
                }
            }
        }
        false
    }

    /// Forgets the folders that this sweep did not want. Only after a sweep that saw everything.
    pub(super) fn end_sweep(&mut self) {
        let mut unwanted = Vec::new();
        {
            let mut folders = self.folders.lock();
            let old =
                |(path, (_, sweep)): (&PathBuf, &(i32, u64))| (*sweep < self.sweep).then(|| path.clone());
            let paths: Vec<PathBuf> = folders.by_path.iter().filter_map(old).collect();
            unwanted.extend(paths.iter().filter_map(|path| folders.forget_path(path)));
        }
        if let Some(inotify) = &mut self.inotify {
            remove(inotify, unwanted);
        }
    }

    /// How many folders this sweep asked for, and how many are watched.
    pub(super) fn asked_and_watched(&self) -> (usize, usize) {
        let folders = self.folders.lock();
        (self.asked, folders.by_path.len().max(folders.by_descriptor.len()))
    }

    #[cfg(test)]
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.folders.lock().by_path.keys().cloned().collect();
        paths.sort();
        paths
    }
}

/// File systems of this host's own disks and memory. Others (of a network, of a container's layers, in user space)
/// do not report what somebody else does to them. Magic numbers: statfs(2).
const LOCAL: [u64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0x2fc1_2fc1];

fn tells_all(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|stat| LOCAL.contains(&(stat.f_type as u64)))
}

fn remove(inotify: &mut inotify::Watches, unwanted: impl IntoIterator<Item = WatchDescriptor>) {
    for descriptor in unwanted {
        // An error means that the folder is gone, and its watch with it.
        let _ = inotify.remove(descriptor);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Mailbox, mailbox};
    use super::*;
    use crate::clock::Clock;
    use crate::tasks::{self, Spec, Switch, Table};

    /// Runs `body` beside a watch thread, then stops it.
    fn check(body: impl FnOnce(&mut Watches, &Mailbox<Hints>, &Receiver<()>)) {
        let (mut switch, stop) = Switch::new().unwrap();
        let (post, mail) = mailbox();
        let (ring, stirred) = bounded(1);
        let (watch, mut watches, _heard_out) = watch(post, ring, stop.stop, false);
        let table = Arc::new(Table::new(Clock::real()));
        tasks::run(table.clone(), |tasks| {
            tasks.spawn(Spec::keeper("watch", Duration::from_secs(5)), |task| watch.run(task)).unwrap();
            body(&mut watches, &mail, &stirred);
            switch.stop();
        })
        .unwrap();
        assert_eq!(table.fault(true), None);
    }

    /// Whether it was written to, and nothing else.
    fn until_hinted(mail: &Mailbox<Hints>, wanted: &Path) -> bool {
        loop {
            mail.bell().recv_timeout(Duration::from_secs(20)).expect("a hint");
            let Hints::These(these) = mail.take() else { return false };
            let mut hints = these.iter().filter(|hint| hint.path == wanted).peekable();
            if hints.peek().is_some() {
                return hints.all(|hint| hint.is_written);
            }
        }
    }

    fn until_stirred(stirred: &Receiver<()>) {
        stirred.recv_timeout(Duration::from_secs(20)).expect("discovery is rung");
    }

    #[test]
    fn a_stop_ends_a_watch_without_events() {
        check(|_, _, _| {});
    }

    #[test]
    fn without_a_listener_nothing_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let (_switch, stop) = Switch::new().unwrap();
        let (watch, mut watches, _heard_out) = watch(mailbox().0, bounded(1).0, stop.stop, false);
        assert_eq!(watches.add(folder.path()), tells_all(folder.path()));
        assert!(!watches.add(&folder.path().join("missing")));
        assert!(!tells_all(Path::new("/proc")), "others change it");
        drop(watch);
        assert!(!watches.add(folder.path()));
    }

    #[test]
    fn changes_become_hints() {
        let folder = tempfile::tempdir().unwrap();
        check(|watches, mail, stirred| {
            watches.begin_sweep();
            watches.add(folder.path());
            let path = folder.path().join("a\nb.log");
            let mut file = fs::File::create(&path).unwrap();
            assert!(!until_hinted(mail, &path), "it has come");
            until_stirred(stirred);
            std::io::Write::write_all(&mut file, b"line\n").unwrap();
            assert!(until_hinted(mail, &path));
            rustix::fs::rename(&path, folder.path().join("b.log")).unwrap();
            assert!(!until_hinted(mail, &path), "it has gone");
        });
    }

    #[test]
    fn folders_that_vanish_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, gone) = (folder.path().join("kept"), folder.path().join("gone"));
        fs::create_dir(&kept).unwrap();
        fs::create_dir(&gone).unwrap();
        check(|watches, _, stirred| {
            watches.begin_sweep();
            watches.add(&kept);
            watches.add(&gone);
            watches.end_sweep();
            assert_eq!(watches.paths(), [gone.clone(), kept.clone()]);
            fs::remove_dir(&gone).unwrap();
            while watches.paths().len() > 1 {
                until_stirred(stirred);
            }
            assert_eq!(watches.paths(), std::slice::from_ref(&kept));
            // And those that are not wanted any more.
            watches.begin_sweep();
            watches.end_sweep();
            assert!(watches.paths().is_empty());
            assert!(watches.folders.lock().by_descriptor.is_empty());
        });
    }

    #[test]
    fn another_folder_at_the_same_path_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("current"), folder.path().join("old"));
        fs::create_dir(&path).unwrap();
        check(|watches, mail, _| {
            watches.begin_sweep();
            watches.add(&path);
            std::os::unix::fs::symlink(&path, folder.path().join("same")).unwrap();
            watches.add(&folder.path().join("same"));
            assert_eq!(watches.folders.lock().by_descriptor.len(), 1, "one folder, two paths");
            fs::remove_file(folder.path().join("same")).unwrap();
            rustix::fs::rename(&path, &aside).unwrap();
            fs::create_dir(&path).unwrap();
            watches.begin_sweep();
            watches.add(&path);
            watches.end_sweep();
            assert_eq!(watches.paths(), std::slice::from_ref(&path));
            fs::File::create(path.join("new.log")).unwrap();
            until_hinted(mail, &path.join("new.log"));
        });
    }

    #[test]
    fn too_many_names_become_everything() {
        let mut hints = Hints::default();
        let hint = |n: usize, is_written| Hint { path: PathBuf::from(n.to_string()), is_written };
        // Few names, however often: and what was more than written stays so.
        (0..10 * HINTS_MAX).for_each(|n| hints.add(hint(n % 2, n != 1)));
        let Hints::These(these) = &hints else { panic!("two names are few") };
        assert!(these.len() <= 2 * HINTS_MAX && these.contains(&hint(1, false)));
        (0..=2 * HINTS_MAX).for_each(|n| hints.add(hint(n, true)));
        assert_eq!(hints, Hints::Everything);
        hints.add(hint(0, true));
        assert_eq!(hints, Hints::Everything);
    }
}
