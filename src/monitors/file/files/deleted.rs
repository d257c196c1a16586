//! Files that were deleted and are held open because they are not read to their end: how much of the disk they may
//! take and for how long (`hold_deleted`), and what becomes of them at the stop, since no later life can read them.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use crossbeam_channel::select;

use super::super::identity::identity;
use super::super::tail::{BLOCK_BYTES, Tail};
use super::super::turn::{Reading, Turn};
use super::super::watch::{Hints, Named};
use super::{Files, file_options};
use crate::ack::GenerationId;
use crate::durable::FileId;
use crate::ledger::Head;
use crate::monitors::Opening;
use crate::order;
use crate::tasks::Task;

/// A deleted file that we keep on the disk.
struct Held {
    tail: Box<Tail>,
    bytes: u64,
}

impl Files {
    /// Gives up the oldest beyond what `hold_deleted` of their source allows.
    pub(super) fn limit_deleted(&mut self, now: Instant) {
        // None of them can be left alone, and those who cannot were found right before this.
        let (restless, tails) = (self.polls.restless().iter(), &mut self.tails);
        let gone = |tail: &&mut Box<Tail>| tail.few.gone_since.is_some() || tail.deleted;
        let held = |file| tails.get_mut(file).filter(gone).and_then(|tail| held_bytes(tail));
        let mut held: Vec<_> = restless.filter_map(held).collect();
        // The longest gone first, and of those the oldest generation.
        order::sort(&mut held);
        let mut all = 0;
        for source in 0..self.sources.len() {
            let Some(limit) = file_options(&self.sources[source]).map(|file| file.hold_deleted) else {
                continue;
            };
            let mut sum: u64 = held.iter().filter(|held| held.2.1 == source).map(|held| held.3).sum();
            for &(since, _, (file, _), bytes) in held.iter().filter(|held| held.2.1 == source) {
                let age = now.saturating_duration_since(since);
                let why = match limit.max_age {
                    Some(max_age) if age > max_age => "deleted for longer than hold_deleted.max_age",
                    _ if sum > limit.max_bytes => "more deleted files than hold_deleted.max_bytes",
                    _ => continue,
                };
                sum -= bytes;
                if let Some(tail) = self.tails.remove(&file) {
                    self.let_go(Held { tail, bytes }, why);
                    self.stir(now);
                }
            }
            all += sum;
        }
        self.meters.held.set(all as i64);
    }

    fn let_go(&mut self, held: Held, why: &str) {
        let Held { mut tail, bytes } = held;
        let unread = tail.unread();
        if unread > 0 {
            let path = tail.path.display();
            log::warn!(
                "files: gave up {unread} bytes of {path}, which held {bytes} bytes of the disk: {why}"
            );
            self.meters.deleted_given_up.add(unread);
            self.open_books(&mut tail);
            let upto = tail.position() + unread;
            if let Some(stream) = &mut tail.stream {
                self.outlet.give_up(stream, upto, why);
            }
        }
        self.remove(tail);
    }

    /// What was never opened is a generation too, of which nothing was read.
    pub(super) fn open_books(&mut self, tail: &mut Tail) {
        if tail.stream.is_none() {
            tail.stream = Some(self.outlet.open(Opening {
                source: &self.sources[tail.source()],
                generation: tail.reserved(),
                filename: Some(tail.name()),
                identity: Some(identity(tail.file, Head::of(b""))),
                start: tail.start,
                lineage: tail.lineage,
            }));
        }
    }

    /// After the stop: deleted files are read on while there is room and time; nothing waits for those that another
    /// life can read. What stays is given up when the account is made.
    pub(super) fn read_deleted_on(&mut self, task: &Task) {
        let mut files = Vec::new();
        for tail in self.tails.values_mut().filter(|tail| tail.few.gone_since.is_some() || tail.deleted) {
            if let Some(Ok(metadata)) = tail.descriptor.as_ref().map(|file| file.metadata()) {
                tail.refresh(&metadata, task.now());
            }
            if tail.deleted && tail.form.is_none() && tail.unread() > 0 {
                files.push((tail.number(), tail.file));
            }
        }
        order::sort(&mut files);
        if files.is_empty() {
            return;
        }
        log::info!("files: reads on in {} deleted files before it stops", files.len());
        self.outlet.read_on_until_abort();
        for (_, file) in files {
            let Some(mut tail) = self.tails.remove(&file) else { continue };
            let goes_on = self.read_to_end(&mut tail, task);
            self.tails.insert(file, tail);
            if !goes_on {
                return;
            }
        }
    }

    /// Whether there is still time.
    fn read_to_end(&mut self, tail: &mut Tail, task: &Task) -> bool {
        if tail.stream.is_none() {
            self.open(tail, task);
        }
        tail.few.until = Some(tail.size); // so that a half line at the end is shipped at once
        let abort = self.outlet.stop().abort.clone();
        while !abort.is_closed() {
            task.beat();
            let mut reading = Reading {
                outlet: &mut self.outlet,
                options: &self.sources[tail.source()],
                task,
                buffers: &mut self.buffers,
                cut_lines: &self.meters.cut_lines,
                now: task.now(),
                gathers: false,
                in_company: false,
            };
            match tail.turn(&mut reading) {
                Turn::Again | Turn::Caught(_) => {}
                Turn::NoCredit(_) => {
                    task.waits_for("room");
                    select! {
                        recv(self.outlet.room()) -> _ => {}
                        recv(abort.channel()) -> _ => return false,
                    }
                }
                Turn::Stopped => return false,
                Turn::Rest | Turn::Finish | Turn::Truncated { .. } | Turn::Failed(_) => return true,
            }
        }
        false
    }

    /// The end. What could not be opened is unread too.
    pub(super) fn account_for_unread(mut self, task: &Task) {
        // Before the first sweep is over, nobody knows.
        let mut unseen = if self.swept { self.unsure } else { 1 };
        let last_words = self.last_words(task);
        let mut tails = std::mem::take(&mut self.tails);
        for tail in tails.values_mut() {
            // How far the last life was with it, and whether it is the same, is known when it is opened.
            if tail.stream.is_none() && self.not_met.perhaps(tail.file).is_some() {
                unseen += 1;
                continue;
            }
            // On a slow file system a look at each of thousands is too long: then it is what we saw last.
            let aborted = self.outlet.stop().abort.is_closed();
            // Who waits for another one is not looked at before its turn comes.
            let is_known = tail.can_be_left_alone()
                && tail.stream.is_some()
                && !tail.queued
                && !last_words.tell_of(&tail.path);
            let descriptor =
                tail.descriptor.as_ref().filter(|_| !aborted && !is_known && tail.form.is_none());
            if let Some(metadata) = descriptor.and_then(|file| file.metadata().ok()) {
                tail.refresh(&metadata, tail.changed());
            }
            let bytes = tail.unread();
            if bytes == 0 {
                continue;
            }
            self.open_books(tail);
            let upto = tail.position() + bytes;
            if let Some(stream) = &mut tail.stream {
                match tail.deleted {
                    // Nobody can read it after us.
                    true => self.outlet.give_up(stream, upto, "deleted, and not read before the stop"),
                    false => self.outlet.unread(stream, bytes),
                }
            }
        }
        if unseen > 0 {
            self.outlet.unseen(unseen as u64);
        }
        drop(self); // the path below ends while thousands of descriptors are closed
        drop(tails);
    }

    /// Which files were reported until the stop and not looked at since: `watch` says so before it ends. A file
    /// that is not among them, was read to its end and is always reported needs no look.
    fn last_words(&mut self, task: &Task) -> Named {
        let abort = self.outlet.stop().abort.clone();
        task.waits_for("the last changes");
        let last = select! {
            recv(self.heard_out) -> _ => self.hints.take(),
            recv(abort.channel()) -> _ => Hints::Everything,
        };
        last.named()
    }
}

type HeldFile = (Instant, Option<GenerationId>, (FileId, usize), u64);

/// `None`: a name leads to it.
fn held_bytes(tail: &mut Tail) -> Option<HeldFile> {
    let metadata = tail.descriptor.as_ref()?.metadata().ok()?;
    if metadata.nlink() > 0 {
        return None;
    }
    if tail.form.is_none() {
        tail.size = tail.size.max(metadata.len()); // a look that is no turn: the next turn sees what has changed
    }
    let since = tail.few.gone_since.unwrap_or(tail.changed());
    Some((since, tail.number(), (tail.file, tail.source()), metadata.blocks() * BLOCK_BYTES))
}
