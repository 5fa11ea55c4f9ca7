//! What steers one listener while it runs.

use std::sync::Arc;

use backlogd_shed::{Handle, Limits, SetError};
use tokio::sync::watch;

use super::Front;

/// A listener that runs, as it is.
#[derive(Clone, Debug)]
pub struct Live {
    handle: Handle,
    front: watch::Sender<Arc<Front>>,
}

impl Live {
    pub(super) fn new(handle: Handle, front: &Front) -> Self {
        Self { handle, front: watch::Sender::new(Arc::new(front.clone())) }
    }

    /// What the listener is.
    #[must_use]
    pub fn front(&self) -> Arc<Front> {
        Arc::clone(&self.front.borrow())
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Front>> {
        self.front.subscribe()
    }

    /// What reads its counters.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Has it be as `new` in what it takes while it runs, but for its limits.
    pub fn change(&self, new: &Front) {
        let has_another_backlog = self.front.borrow().backlog != new.backlog;
        self.front.send_modify(|front| *front = Arc::new(front.changed(new)));
        if has_another_backlog {
            self.set_backlog(new);
        }
    }

    fn set_backlog(&self, new: &Front) {
        let listener = self.handle.name();
        match self.handle.set_backlog(new.backlog) {
            Ok(backlog) => tracing::info!(listener, backlog, "queues by another limit"),
            Err(err) => {
                let error = crate::error::chain(&err);
                tracing::error!(listener, %error, "its backlog stays as it was");
            }
        }
    }

    /// Has it other limits.
    ///
    /// # Errors
    /// They cannot hold; those before stay.
    pub fn limit(&self, limits: Limits) -> Result<(usize, usize), SetError> {
        let bounds = self.handle.set_limits(limits)?;
        self.front.send_modify(|front| {
            *front = Arc::new(Front { limits, ..Front::clone(front) });
        });
        Ok((bounds.soft(), bounds.hard()))
    }
}
