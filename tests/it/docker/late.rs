//! `start_at: end`: what stood there when the source met its engine for the first time is not read, whatever happens
//! then; and what is written later is, whoever is there.

use serde_json::json;

use super::daemon::Mood;
use super::{House, MS, T, checkpoints, numbered, readers};

/// What happens to the first life.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    NeverMeets,
    CannotRead,
    CannotReadAndIsNotSaved,
}

#[test]
fn the_beginning_outlives_a_death() {
    for first in [First::NeverMeets, First::CannotRead, First::CannotReadAndIsNotSaved] {
        let house = House::saved_every(json!({ "start_at": "end" }), "10m");
        house.daemon.run("c");
        house.say("c", 0..10);
        house.daemon.clock(T + 10 * MS);
        match first {
            First::NeverMeets => house.daemon.go(),
            _ => house.daemon.mood(Mood::NoLogs),
        }
        let agent = house.room.run();
        match first {
            First::NeverMeets => agent.until("it is said", || agent.get("/readyz").0 == 503),
            _ => agent.until("its log was asked for", || house.daemon.requests("logs") >= 1),
        }
        if first != First::CannotReadAndIsNotSaved {
            agent.until("that there was a life is saved", || checkpoints(&agent) >= 1);
        }
        agent.kill9();
        match first {
            First::NeverMeets => house.daemon.come_back(),
            _ => {
                house.say("c", 10..20); // while nobody is there
                house.daemon.clock(T + 3600 * 1000 * MS);
                house.daemon.mood(Mood::Well);
            }
        }
        let agent = house.room.run();
        agent.until("it is followed", || readers(&agent) == 1 && house.daemon.requests("logs") >= 1);
        if first == First::NeverMeets {
            house.say("c", 10..20);
        }
        house.say("c", 20..30);
        house.until_arrived(&agent, 20);
        assert_eq!(house.arrived(), numbered("c", 10..30), "{first:?}\n{}", agent.stderr());
        assert_eq!(agent.stop(), 0, "{}", agent.stderr());
    }
}
