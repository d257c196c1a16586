//! Only in tests: a thread that panics at one of its words.
//!
//! Whatever a thread does, it says so through its [`super::Task`]; so that is where a fault of its own can be put
//! into any of them, in the middle of its work, without a switch in what is shipped: this file is compiled for
//! unit tests alone. For a process of one's own, since names of threads are all that it knows.

use parking_lot::Mutex;

struct Poison {
    thread: String,
    word: String,
    left: u32,
}

static POISON: Mutex<Option<Poison>> = Mutex::new(None);

/// `thread` panics when it says something that starts with `word` for the `nth` time.
pub fn poison(thread: &str, word: &str, nth: u32) {
    *POISON.lock() = Some(Poison { thread: thread.to_owned(), word: word.to_owned(), left: nth });
}

pub(super) fn strike(thread: &str, says: &str) {
    let mut poison = POISON.lock();
    if let Some(Poison { left, .. }) =
        poison.as_mut().filter(|poison| poison.thread == thread && says.starts_with(&poison.word))
    {
        *left -= 1;
        if *left == 0 {
            *poison = None;
            drop(poison);
            panic!("on purpose");
        }
    }
}
