//! What is wrong, for how long, and who must know: pure functions of snapshots.

pub mod history;
pub mod phase;
