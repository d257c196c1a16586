//! Where the lines of a file come from, and on whose account: made when a chunk needs it, and kept for the files that
//! were read lately. Ten thousand that have nothing to say have no labels and no account.
//!
//! Always true: there are at most [`KEPT`] here. What is under way has its own share of what it came from, and a file
//! that is read again meanwhile gets the same account (`budget.rs`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::Stream;
use crate::ack::GenerationId;
use crate::budget::{Budget, Holder};
use crate::monitors::SourceOptions;
use crate::record::{Labels, Origin, Shift};

/// Half a kilobyte each. When more files than that have something to say, all of them begin anew.
const KEPT: usize = 1024;

/// What all files of one source have.
pub(super) struct Home {
    pub source: Arc<str>,
    labels: Labels,
}

/// Whose lines they are, and who holds credit for them.
#[derive(Clone)]
pub(super) struct Account {
    pub origin: Arc<Origin>,
    pub holder: Holder,
}

/// What a stream needs to have an account.
pub(super) enum Place {
    /// Its account is among the [`Origins`], or is made again.
    File { home: Arc<Home>, path: Arc<Path> },
    /// What is no file has one for as long as it lives.
    Own(Box<Own>),
}

pub(super) struct Own {
    pub account: Account,
    /// What the ledger knows it by.
    pub filename: Option<Arc<Path>>,
}

/// Of one Outlet.
pub(super) struct Origins {
    budget: Budget,
    /// One per source.
    homes: Vec<Arc<Home>>,
    /// And whether it was used since [`Origins::tidy`].
    accounts: HashMap<GenerationId, (Account, bool)>,
    /// The name of the label, once for all files.
    filename: Arc<str>,
}

impl Origins {
    pub fn new(budget: Budget) -> Origins {
        Origins { budget, homes: Vec::new(), accounts: HashMap::new(), filename: "filename".into() }
    }

    pub fn home(&mut self, source: &SourceOptions) -> Arc<Home> {
        if let Some(home) = self.homes.iter().find(|home| home.source == source.name) {
            return home.clone();
        }
        let home = Arc::new(Home { source: source.name.clone(), labels: source.labels.clone() });
        self.homes.push(home.clone());
        home
    }

    pub fn of<'a>(&'a mut self, stream: &'a Stream) -> &'a Account {
        let (home, path) = match &stream.place {
            Place::Own(own) => return &own.account,
            Place::File { home, path } => (home, path),
        };
        if !self.accounts.contains_key(&stream.generation) {
            if self.accounts.len() == KEPT {
                self.accounts.clear();
            }
            let account = self.make(home, path, stream);
            self.accounts.insert(stream.generation, (account, true));
        }
        let (account, is_used) =
            self.accounts.get_mut(&stream.generation).expect("it was there, or was put there just now");
        *is_used = true;
        account
    }

    /// Lets go of those that were not used since the last time.
    pub fn tidy(&mut self) {
        self.accounts.retain(|_, (_, is_used)| std::mem::take(is_used));
        self.accounts.shrink_to(2 * self.accounts.len());
    }

    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Its generation is over.
    pub fn forget(&mut self, stream: &Stream) {
        self.accounts.remove(&stream.generation);
    }

    fn make(&self, home: &Home, path: &Path, stream: &Stream) -> Account {
        let filename: Arc<str> = path.to_string_lossy().into();
        let labels = home.labels.with(self.filename.clone(), filename.clone());
        let origin = Origin {
            source: home.source.clone(),
            generation: stream.generation,
            lineage: stream.lineage,
            labels: Arc::new(labels),
            filename: Some(filename.clone()),
            replayable: true,
            stages: Box::default(),
            shift: Shift::default(),
        };
        let holder = self.budget.holder_of(stream.generation.0, &home.source, &filename);
        Account { origin: Arc::new(origin), holder }
    }
}
