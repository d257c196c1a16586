//! What the container monitor shows to others: replaced as a whole.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// One source.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineView {
    pub source: String,
    pub engine: String,
    /// Why the engine is not well; `None`: it is.
    pub ill: Option<String>,
    /// Has answered once.
    pub met: bool,
    pub containers: Vec<ContainerView>,
    /// Removed before they could be read to their end, since the agent started.
    pub given_up: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ContainerView {
    pub id: String,
    pub name: String,
    pub image: String,
    /// `reading`, `waiting` (for its turn), `stopped`, `broken`, `missing`, `unreadable`.
    pub state: &'static str,
    pub why: Option<String>,
}

pub type View = Arc<Mutex<Arc<EngineView>>>;
