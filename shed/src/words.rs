//! Where it is counted what is taken of the limits: here, or in memory that generations share.

use std::{sync::Arc, time::Duration};

use tokio::time;

use crate::{
    page::{Held, Page},
    slots::Lane,
    sync::AtomicU64,
};

/// Another process gives back without a word: so often is looked whether it did.
const LOOK: Duration = Duration::from_millis(50);

/// Where it is counted what is taken.
#[derive(Debug)]
pub(crate) enum Words {
    /// Here, for one generation of a server.
    Own { soft: AtomicU64, hard: AtomicU64 },
    /// In memory that generations share.
    Page { page: Arc<Page>, entry: usize },
}

impl Words {
    pub(crate) fn own() -> Self {
        Self::Own { soft: AtomicU64::new(0), hard: AtomicU64::new(0) }
    }

    /// Connections that are served, without exempt ones.
    pub(crate) fn soft(&self) -> &AtomicU64 {
        match self {
            Self::Own { soft, .. } => soft,
            Self::Page { page, entry } => page.soft(*entry),
        }
    }

    /// Descriptors of connections: served, exempt, lingering.
    pub(crate) fn hard(&self) -> &AtomicU64 {
        match self {
            Self::Own { hard, .. } => hard,
            Self::Page { page, entry } => page.hard(*entry),
        }
    }

    pub(crate) fn lane(&self) -> Lane {
        match self {
            Self::Own { .. } => Lane::FIRST,
            Self::Page { page, .. } => page.lane(),
        }
    }

    /// Says to other generations that this one has the listening socket; `None`: there are none.
    pub(crate) fn hold(&self) -> Option<Held> {
        match self {
            Self::Own { .. } => None,
            Self::Page { page, entry } => Some(Held::new(Arc::clone(page), *entry)),
        }
    }

    /// Whether another generation has the listening socket.
    pub(crate) fn others_listen(&self) -> bool {
        match self {
            Self::Own { .. } => false,
            Self::Page { page, entry } => page.others_listen(*entry),
        }
    }

    /// Waits for `told`; where generations share the words, at most until the next look.
    pub(crate) async fn wait(&self, told: impl Future<Output = ()>) {
        match self {
            Self::Own { .. } => told.await,
            // which of the two came first does not matter
            Self::Page { .. } => drop(time::timeout(LOOK, told).await),
        }
    }
}
