//! How long to wait before what broke is tried again: twice as long each time, and as at first once it has held. Pure.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Pause {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Pause {
    pub fn new(first: Duration, most: Duration) -> Pause {
        Pause { first, most, next: first }
    }

    /// `lasted`: how long it went well until it broke. What has held for longer than the longest pause was well.
    pub fn after(&mut self, lasted: Duration) -> Duration {
        if lasted >= self.most {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        pause
    }

    /// It was not its own fault, or is well again.
    pub fn forgive(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_until_something_has_held() {
        let secs = Duration::from_secs;
        let mut pause = Pause::new(secs(1), secs(5));
        let mut check = |lasted: u64, expected: u64| assert_eq!(pause.after(secs(lasted)), secs(expected));
        check(0, 1);
        check(4, 2);
        check(0, 4);
        check(1, 5);
        check(4, 5);
        check(5, 1);
        check(0, 2);
        pause.forgive();
        assert_eq!(pause.after(secs(0)), secs(1));
    }
}
