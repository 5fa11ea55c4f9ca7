//! Loom's atomics, with fences where SeqCst needs them, and a model of tokio's `Notify`, for one
//! waiter.

use std::{future, task::Poll};

use loom::sync::{Mutex, atomic};

pub(crate) use loom::sync::atomic::Ordering;

/// Writes by `access`; where that is SeqCst, a fence follows, which is how processors do it.
fn written<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
    let result = access();
    if order == Ordering::SeqCst {
        atomic::fence(order);
    }
    result
}

macro_rules! cell {
    ($name:ident, $value:ty) => {
        #[derive(Debug)]
        pub(crate) struct $name(atomic::$name);

        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.0.load(order)
            }
        }

        impl From<$value> for $name {
            fn from(value: $value) -> Self {
                Self::new(value)
            }
        }
    };
}

cell!(AtomicUsize, usize);
cell!(AtomicU64, u64);

impl AtomicUsize {
    pub(crate) fn store(&self, value: usize, order: Ordering) {
        written(order, || self.0.store(value, order));
    }

    pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        written(order, || self.0.fetch_add(value, order))
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        written(order, || self.0.fetch_sub(value, order))
    }
}

impl AtomicU64 {
    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        written(order, || self.0.fetch_add(value, order))
    }

    pub(crate) fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        written(order, || self.0.fetch_and(value, order))
    }

    pub(crate) fn compare_exchange_weak(
        &self,
        current: u64,
        value: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        written(success, || self.0.compare_exchange_weak(current, value, success, failure))
    }
}

/// How often all that wait were told; who asks is told of each time after that.
#[derive(Debug)]
pub(crate) struct Notify {
    told: Mutex<usize>,
    waiter: loom::future::AtomicWaker,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self { told: Mutex::new(0), waiter: loom::future::AtomicWaker::new() }
    }

    pub(crate) fn notify_waiters(&self) {
        *self.told.lock().expect("no panic") += 1;
        self.waiter.wake();
    }

    /// Counts from this call on, not from the first poll, as tokio's does.
    pub(crate) fn notified(&self) -> impl Future<Output = ()> + '_ {
        let before = *self.told.lock().expect("no panic");
        future::poll_fn(move |context| {
            self.waiter.register_by_ref(context.waker());
            let told = *self.told.lock().expect("no panic");
            if told == before { Poll::Pending } else { Poll::Ready(()) }
        })
    }
}
