//! How many alerts each receiver took, refused, or did not answer for, for `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::queue::Outcome;

/// Most receivers that are remembered, those of former configurations included.
const MOST: usize = 256;

/// The accounts of all receivers; copies share them.
#[derive(Clone, Debug, Default)]
pub struct Deliveries(Arc<Mutex<BTreeMap<String, Delivery>>>);

/// The account of one receiver. Two of the same host and port share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Alerts that it took.
    pub taken: u64,
    /// Alerts that it refused: they are dropped, and sent again if they still fire.
    pub refused: u64,
    /// Alerts of requests that failed: they are tried again.
    pub failed: u64,
    /// Alerts whose newest state it does not know.
    pub pending: u64,
}

impl Deliveries {
    /// All of them, by host and port.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Delivery> {
        self.lock().clone()
    }

    /// One account; it is there from now on.
    pub(super) fn open(&self, receiver: &str) -> Account {
        let mut all = self.lock();
        if all.len() < MOST {
            all.entry(receiver.to_owned()).or_default();
        }
        Account { deliveries: self.clone(), receiver: receiver.to_owned(), pending: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Delivery>> {
        // numbers are whole between two statements
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One account as its courier holds it.
pub(super) struct Account {
    deliveries: Deliveries,
    receiver: String,
    pending: u64,
}

impl Account {
    pub(super) fn receiver(&self) -> &str {
        &self.receiver
    }

    pub(super) fn count(&self, outcome: Outcome, n: usize) {
        let n = n as u64;
        self.change(|delivery| match outcome {
            Outcome::Taken => delivery.taken += n,
            Outcome::Refused => delivery.refused += n,
            Outcome::Failed => delivery.failed += n,
        });
    }

    pub(super) fn set_pending(&mut self, n: usize) {
        let (before, after) = (std::mem::replace(&mut self.pending, n as u64), n as u64);
        if before != after {
            self.change(|delivery| delivery.pending = delivery.pending + after - before);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Delivery)) {
        if let Some(delivery) = self.deliveries.lock().get_mut(&self.receiver) {
            change(delivery);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.set_pending(0);
    }
}
