//! From samples to the snapshot; pure.
pub mod snapshot;
