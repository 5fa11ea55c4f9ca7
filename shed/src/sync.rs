//! What threads meet by in the gate and its slots: there, tests/loom.rs puts models in its place.

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub(crate) use tokio::sync::Notify;
