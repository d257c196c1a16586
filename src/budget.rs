//! How much may be under way: bytes that were read and not yet answered for.
//!
//! A monitor takes credit *before* it reads ([`Door::try_take`], never a blocking wait) and the buffer that
//! the credit paid for gives it back when it is dropped, so the account cannot drift from the memory.
//! Refused monitors are served oldest first and are told by a one-slot signal when there is room.
//!
//! Always true: what was granted by `try_take` never exceeds the capacity. One source never holds more than the
//! larger of one read and half of what is free, so that a hot file leaves room for the quiet ones.
//!
//! Not here: the memory of encoded batches. It is bounded by the number of connections, when the agent starts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::order;
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// Fills a read from the page cache and a TCP window; some thirty of them fit the default budget.
pub const READ_BYTES: usize = 256 * 1024;

/// The rules alone: who may take how much, and who is next. Pure.
#[derive(Debug)]
struct Fair {
    capacity: usize,
    used: usize,
    /// Doors that were refused for lack of room, oldest first.
    queue: VecDeque<u64>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Answer {
    Granted,
    /// No room, or somebody has waited longer: the door is queued.
    Full,
    /// There is room, but this source has its part of it.
    SourceFull,
}

impl Fair {
    fn free(&self) -> usize {
        self.capacity.saturating_sub(self.used)
    }

    fn ask(&mut self, door: u64, held: usize, bytes: usize) -> Answer {
        let at = self.queue.iter().position(|waiting| *waiting == door);
        if at.unwrap_or(self.queue.len()) > 0 || bytes > self.free() {
            if at.is_none() {
                self.queue.push_back(door);
            }
            return Answer::Full;
        }
        // From here on the door is first in line, or there is no line.
        if held > 0 && held + bytes > READ_BYTES.max(self.free() / 2) {
            return Answer::SourceFull;
        }
        self.used += bytes;
        Answer::Granted
    }

    fn give(&mut self, bytes: usize) {
        self.used -= bytes;
    }

    /// Whether the door stood in the line: then the next one has to hear of it.
    fn leave(&mut self, door: u64) -> bool {
        let before = self.queue.len();
        self.queue.retain(|waiting| *waiting != door);
        self.queue.len() < before
    }
}

/// Shared by all monitors of one agent. Cheap to clone.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Only for those who ask who holds what: never locked by those who take and give.
    holders: Arc<Mutex<Holders>>,
}

/// Everybody who may hold credit.
#[derive(Default, Debug)]
struct Holders {
    list: BTreeMap<Number, Weak<Held>>,
    next: u64,
}

/// The caller's, or one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Number {
    Given(u64),
    Counted(u64),
}

impl Holders {
    fn add(
        &mut self,
        number: Number,
        source: &Arc<str>,
        filename: Option<&Arc<str>>,
        this: &Arc<Mutex<Holders>>,
    ) -> Holder {
        let listed = Listed { number, holders: this.clone() };
        let (source, filename) = (Some(source.clone()), filename.cloned());
        let held = Arc::new(Held { source, filename, _listed: Some(listed), ..Held::default() });
        self.list.insert(number, Arc::downgrade(&held));
        Holder(held)
    }
}

/// A line of that list, which goes with its holder: a file per minute, for ever, leaves nothing.
#[derive(Debug)]
struct Listed {
    number: Number,
    holders: Arc<Mutex<Holders>>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let list = &mut self.holders.lock().list;
        if list.get(&self.number).is_some_and(|held| held.strong_count() == 0) {
            list.remove(&self.number); // else somebody has come under this number since
        }
    }
}

struct State {
    fair: Fair,
    doors: Vec<Bell>,
    next_door: u64,
    /// Told of every refusal.
    refusals: Vec<Sender<()>>,
}

/// Of a door.
struct Bell {
    door: u64,
    ring: Sender<()>,
    /// It was refused since it rang: nobody else has to be woken up.
    is_awaited: bool,
}

/// One monitor thread's way to the budget.
pub struct Door {
    budget: Budget,
    id: u64,
    room: Receiver<()>,
}

/// What one source holds at the moment, in bytes.
#[derive(Clone, Default, Debug)]
pub struct Holder(Arc<Held>);

#[derive(Default, Debug)]
struct Held {
    bytes: AtomicUsize,
    source: Option<Arc<str>>,
    filename: Option<Arc<str>>,
    /// For as long as this lives.
    _listed: Option<Listed>,
}

impl Holder {
    pub fn held(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

/// What one source holds, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub bytes: usize,
    /// The `name` of the entry of `sources[]`.
    pub source: Arc<str>,
    /// `None` for a stream.
    pub filename: Option<Arc<str>>,
}

/// Why there is no credit now. Come back after [`Door::room`] rings.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Refused {
    /// The whole budget is under way, or another monitor is first: nothing else will be granted either.
    Full,
    /// This source holds its part; another source of the same monitor may well get some.
    SourceFull,
}

/// Bytes that may be under way, given back on drop.
#[derive(Debug)]
pub struct Credit {
    budget: Budget,
    holder: Holder,
    bytes: usize,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({} of {})", self.used(), self.capacity())
    }
}

impl Budget {
    /// `capacity` in bytes, at least one read.
    pub fn new(capacity: usize) -> Budget {
        assert!(capacity >= READ_BYTES, "the configuration guarantees room for one read");
        Budget::small(capacity)
    }

    /// For a stock of one owner, who sees to it himself that what is larger than all of it is granted alone.
    pub fn small(capacity: usize) -> Budget {
        let fair = Fair { capacity, used: 0, queue: VecDeque::new() };
        let state = Mutex::new(State { fair, doors: Vec::new(), next_door: 0, refusals: Vec::new() });
        Budget(Arc::new(Inner { state, holders: Arc::default() }))
    }

    /// How many holders are listed.
    pub fn holders(&self) -> usize {
        self.0.holders.lock().list.len()
    }

    /// A holder that [`Budget::holdings`] lists for as long as it, or credit of it, is alive.
    pub fn holder(&self, source: &Arc<str>, filename: Option<&Arc<str>>) -> Holder {
        let mut holders = self.0.holders.lock();
        let number = Number::Counted(holders.next);
        holders.next += 1;
        holders.add(number, source, filename, &self.0.holders)
    }

    /// The holder that has this number, as long as it, or credit of it, is alive; else a new one.
    pub fn holder_of(&self, number: u64, source: &Arc<str>, filename: &Arc<str>) -> Holder {
        let (mut holders, number) = (self.0.holders.lock(), Number::Given(number));
        let known = holders.list.get(&number).and_then(Weak::upgrade).map(Holder);
        known.unwrap_or_else(|| holders.add(number, source, Some(filename), &self.0.holders))
    }

    /// Who holds most at the moment: at most `top` sources that hold anything, the largest first. Looks at every
    /// source there is: for people, not for the path.
    pub fn holdings(&self, top: usize) -> Vec<Holding> {
        let held: Vec<Arc<Held>> = self.0.holders.lock().list.values().filter_map(Weak::upgrade).collect();
        let holding = |held: Arc<Held>| {
            let bytes = held.bytes.load(Ordering::Relaxed);
            let source = held.source.clone().filter(|_| bytes > 0)?;
            Some(Holding { bytes, source, filename: held.filename.clone() })
        };
        let mut holdings: Vec<Holding> = held.into_iter().filter_map(holding).collect();
        let largest_first =
            |a: &Holding, b: &Holding| b.bytes.cmp(&a.bytes).then_with(|| a.filename.cmp(&b.filename));
        order::sort_by(&mut holdings, largest_first);
        holdings.truncate(top);
        holdings
    }

    pub fn door(&self) -> Door {
        let (ring, room) = bounded(1);
        let mut state = self.0.state.lock();
        let id = state.next_door;
        state.next_door += 1;
        state.doors.push(Bell { door: id, ring, is_awaited: false });
        Door { budget: self.clone(), id, room }
    }

    /// `bell` rings when a monitor is refused: whoever holds records back to have more of them gets no more before
    /// it lets go of some. One slot, like [`Door::room`].
    pub fn tell_of_refusals(&self, bell: Sender<()>) {
        self.0.state.lock().refusals.push(bell);
    }

    pub fn capacity(&self) -> usize {
        self.0.state.lock().fair.capacity
    }

    pub fn used(&self) -> usize {
        self.0.state.lock().fair.used
    }

    fn give(&self, bytes: usize) {
        if bytes > 0 {
            let mut state = self.0.state.lock();
            state.fair.give(bytes);
            state.ring();
        }
    }
}

impl State {
    /// There are as many doors as monitors: a handful.
    fn ring(&mut self) {
        for bell in self.doors.iter_mut().filter(|bell| bell.is_awaited) {
            bell.is_awaited = false;
            let _ = bell.ring.try_send(()); // a full slot has rung already
        }
    }

    /// `door` waits no longer, whatever it got. Rings the others only if it did wait, and never itself: else
    /// two refused doors would keep each other awake.
    fn step_out(&mut self, door: u64) {
        if self.fair.leave(door) {
            for bell in self.doors.iter().filter(|bell| bell.door != door) {
                let _ = bell.ring.try_send(());
            }
        }
    }
}

impl Door {
    /// `bytes` at most what will be read and kept; see [`Credit::shrink_to`].
    pub fn try_take(&self, holder: &Holder, bytes: usize) -> Result<Credit, Refused> {
        let mut state = self.budget.0.state.lock();
        let answer = state.fair.ask(self.id, holder.held(), bytes);
        if answer != Answer::Granted {
            let ours = state.doors.iter_mut().filter(|bell| bell.door == self.id);
            ours.for_each(|bell| bell.is_awaited = true);
            for bell in &state.refusals {
                let _ = bell.try_send(()); // a full slot has rung already
            }
        }
        if answer == Answer::Full {
            return Err(Refused::Full);
        }
        state.step_out(self.id);
        if answer == Answer::SourceFull {
            return Err(Refused::SourceFull);
        }
        holder.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Credit { budget: self.budget.clone(), holder: holder.clone(), bytes })
    }

    /// Rings after credit was given back, if some was refused before. One slot: look again after each ring.
    pub fn room(&self) -> &Receiver<()> {
        &self.room
    }

    /// Nothing to read any more: give up the place in the line, so that nobody waits behind a sleeper.
    pub fn leave_queue(&self) {
        self.budget.0.state.lock().step_out(self.id);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let mut state = self.budget.0.state.lock();
        state.step_out(self.id);
        state.doors.retain(|bell| bell.door != self.id);
    }
}

impl Credit {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what was not needed after all.
    pub fn shrink_to(&mut self, bytes: usize) {
        let back = self.bytes.saturating_sub(bytes);
        self.release(back);
    }

    /// Accounts for memory that exists already (a stage made a record larger). May overdraw the budget: then
    /// nobody gets anything until it is paid back.
    pub fn grow(&mut self, by: usize) {
        self.budget.0.state.lock().fair.used += by;
        self.holder.0.bytes.fetch_add(by, Ordering::Relaxed);
        self.bytes += by;
    }

    fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.holder.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.give(bytes);
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_waiter_is_served_first() {
        let budget = Budget::new(READ_BYTES);
        let (first, second, third) = (budget.door(), budget.door(), budget.door());
        let all = first.try_take(&Holder::default(), READ_BYTES).unwrap();
        assert_eq!(second.try_take(&Holder::default(), 1).unwrap_err(), Refused::Full);
        assert_eq!(third.try_take(&Holder::default(), 1).unwrap_err(), Refused::Full);
        drop(all);
        assert!(second.room().try_recv().is_ok() && third.room().try_recv().is_ok());
        assert_eq!(third.try_take(&Holder::default(), 1).unwrap_err(), Refused::Full);
        assert!(second.try_take(&Holder::default(), 1).is_ok());
        assert!(third.try_take(&Holder::default(), 1).is_ok());
    }

    #[test]
    fn only_who_was_refused_is_woken_up() {
        let budget = Budget::new(READ_BYTES);
        let (first, second) = (budget.door(), budget.door());
        let mut all = first.try_take(&Holder::default(), READ_BYTES).unwrap();
        all.shrink_to(READ_BYTES / 2);
        assert!(first.room().is_empty() && second.room().is_empty());
        assert_eq!(second.try_take(&Holder::default(), READ_BYTES).unwrap_err(), Refused::Full);
        all.shrink_to(1);
        assert!(first.room().is_empty() && second.room().try_recv().is_ok());
        drop(all);
        assert!(second.room().is_empty(), "it has not asked again");
        let rest = first.try_take(&Holder::default(), 1).unwrap_err();
        assert_eq!(rest, Refused::Full, "the second one is first in the line");
        assert!(second.try_take(&Holder::default(), READ_BYTES).is_ok());
        assert!(first.room().try_recv().is_ok());
    }

    #[test]
    fn a_waiter_that_goes_away_blocks_nobody() {
        let budget = Budget::new(READ_BYTES);
        let (first, second, third) = (budget.door(), budget.door(), budget.door());
        let all = first.try_take(&Holder::default(), READ_BYTES).unwrap();
        let _ = second.try_take(&Holder::default(), 1).unwrap_err();
        let _ = third.try_take(&Holder::default(), 1).unwrap_err();
        drop(all);
        drop(second);
        assert!(third.try_take(&Holder::default(), 1).is_ok());
    }

    #[test]
    fn a_hot_source_leaves_half_of_the_room() {
        let budget = Budget::new(16 * READ_BYTES);
        let door = budget.door();
        let (hot, quiet) = (Holder::default(), Holder::default());
        let mut held = Vec::new();
        while let Ok(credit) = door.try_take(&hot, READ_BYTES) {
            held.push(credit);
        }
        assert!(hot.held() <= 8 * READ_BYTES, "{}", hot.held());
        assert!(door.try_take(&quiet, READ_BYTES).is_ok());
    }

    #[test]
    fn a_refusal_is_told_to_those_who_hold_back() {
        let budget = Budget::new(READ_BYTES);
        let (bell, refusals) = bounded(1);
        budget.tell_of_refusals(bell);
        let (door, holder) = (budget.door(), Holder::default());
        let credit = door.try_take(&holder, 1).unwrap();
        assert!(refusals.is_empty());
        assert_eq!(door.try_take(&holder, READ_BYTES).unwrap_err(), Refused::Full);
        assert!(refusals.try_recv().is_ok());
        drop(credit);
        assert!(door.try_take(&holder, READ_BYTES).is_ok() && refusals.is_empty());
    }

    #[test]
    fn credit_that_was_not_needed_returns_at_once() {
        let budget = Budget::new(READ_BYTES);
        let (door, holder) = (budget.door(), Holder::default());
        let mut credit = door.try_take(&holder, READ_BYTES).unwrap();
        credit.shrink_to(100);
        assert_eq!((budget.used(), holder.held()), (100, 100));
        credit.grow(50);
        assert_eq!(budget.used(), 150);
        drop(credit);
        assert_eq!((budget.used(), holder.held()), (0, 0));
    }

    #[test]
    fn who_holds_most_is_listed_first_and_the_dead_are_forgotten() {
        let budget = Budget::new(4 * READ_BYTES);
        let (door, source): (Door, Arc<str>) = (budget.door(), "app".into());
        let name = |number: usize| Arc::from(format!("/{number}.log"));
        let small = budget.holder(&source, Some(&name(1)));
        let large = budget.holder(&source, None);
        let _idle = budget.holder(&source, Some(&name(2)));
        let _credits = [door.try_take(&small, 10).unwrap(), door.try_take(&large, 30).unwrap()];
        drop(small); // its credit lives on
        let listed: Vec<_> = budget.holdings(5).into_iter().map(|held| (held.bytes, held.filename)).collect();
        assert_eq!(listed, [(30, None), (10, Some(name(1)))]);
        assert_eq!(budget.holdings(1).len(), 1);
        (0..10).for_each(|number| drop(budget.holder(&source, Some(&name(number)))));
        assert_eq!(budget.holders(), 3, "each goes with its last credit");
    }

    #[test]
    fn a_number_has_one_account_while_credit_of_it_is_alive() {
        let budget = Budget::new(READ_BYTES);
        let (door, name): (Door, Arc<str>) = (budget.door(), "app".into());
        let holder = |number| budget.holder_of(number, &name, &name);
        let credit = door.try_take(&holder(7), 10).unwrap();
        assert_eq!((holder(7).held(), holder(8).held()), (10, 0));
        assert_eq!(budget.holders(), 1);
        drop(credit);
        assert_eq!((budget.holders(), holder(7).held()), (0, 0));
    }

    proptest! {
        /// The model: any order of taking and giving by any doors keeps the sum right, never grants beyond the
        /// capacity, and once everything is given back the first in line is always served.
        #[test]
        fn the_account_never_drifts(acts in proptest::collection::vec((0usize..4, 1usize..READ_BYTES, any::<bool>()), 1..100)) {
            let budget = Budget::new(2 * READ_BYTES);
            let doors: Vec<Door> = (0..4).map(|_| budget.door()).collect();
            let holders: Vec<Holder> = (0..4).map(|_| Holder::default()).collect();
            let mut credits: Vec<Credit> = Vec::new();
            for (who, bytes, take) in acts {
                if take {
                    credits.extend(doors[who].try_take(&holders[who], bytes).ok());
                } else if !credits.is_empty() {
                    credits.swap_remove(who % credits.len());
                }
                let sum: usize = credits.iter().map(Credit::bytes).sum();
                prop_assert_eq!(budget.used(), sum);
                prop_assert!(sum <= budget.capacity());
                prop_assert_eq!(holders.iter().map(Holder::held).sum::<usize>(), sum);
            }
            credits.clear();
            let first = budget.0.state.lock().fair.queue.front().copied().unwrap_or(0);
            prop_assert!(doors[first as usize].try_take(&holders[first as usize], 1).is_ok());
        }
    }
}

/// Every interleaving of those who take and those who give back.
#[cfg(all(test, feature = "model"))]
mod model {
    use super::*;

    #[test]
    fn whoever_is_refused_is_rung_when_there_is_room() {
        loom::model(|| {
            let budget = Budget::new(READ_BYTES);
            let (first, second) = (budget.door(), budget.door());
            let credit = first.try_take(&Holder::default(), READ_BYTES).expect("there is room");
            let giver = loom::thread::spawn(move || drop(credit));
            let taken = second.try_take(&Holder::default(), READ_BYTES);
            giver.join().expect("giving back does not panic");
            if taken.is_err() {
                assert!(second.room().try_recv().is_ok(), "a bell was lost");
                assert!(second.try_take(&Holder::default(), READ_BYTES).is_ok(), "and there is room");
            }
            drop(taken);
            assert_eq!(budget.used(), 0);
        });
    }

    #[test]
    fn a_waiter_that_goes_away_leaves_the_line_to_the_next() {
        loom::model(|| {
            let budget = Budget::new(READ_BYTES);
            let (first, second, third) = (budget.door(), budget.door(), budget.door());
            let credit = first.try_take(&Holder::default(), READ_BYTES).expect("there is room");
            assert!(
                second.try_take(&Holder::default(), 1).is_err()
                    && third.try_take(&Holder::default(), 1).is_err()
            );
            let goes = loom::thread::spawn(move || drop(second));
            drop(credit);
            goes.join().expect("leaving does not panic");
            assert!(third.room().try_recv().is_ok(), "a bell was lost");
            assert!(third.try_take(&Holder::default(), 1).is_ok());
        });
    }

    #[test]
    fn what_one_source_holds_adds_up() {
        loom::model(|| {
            let budget = Budget::new(4 * READ_BYTES);
            let (door, holder) = (budget.door(), Holder::default());
            let mut one = door.try_take(&holder, 100).expect("there is room");
            let other = door.try_take(&holder, 200).expect("there is room");
            let thread = loom::thread::spawn(move || {
                one.grow(50);
                one.shrink_to(30);
            });
            drop(other);
            thread.join().expect("changing does not panic");
            assert_eq!((budget.used(), holder.held()), (0, 0));
        });
    }
}
