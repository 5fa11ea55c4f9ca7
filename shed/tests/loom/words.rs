//! The words of one generation.

use super::{slots::Lane, sync::AtomicU64};

#[derive(Debug)]
pub(crate) struct Words {
    soft: AtomicU64,
    hard: AtomicU64,
}

impl Words {
    pub(crate) fn own() -> Self {
        Self { soft: AtomicU64::new(0), hard: AtomicU64::new(0) }
    }

    pub(crate) fn soft(&self) -> &AtomicU64 {
        &self.soft
    }

    pub(crate) fn hard(&self) -> &AtomicU64 {
        &self.hard
    }

    pub(crate) fn lane(&self) -> Lane {
        Lane::FIRST
    }

    pub(crate) async fn wait(&self, told: impl Future<Output = ()>) {
        told.await;
    }
}
