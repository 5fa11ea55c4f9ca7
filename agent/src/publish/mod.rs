//! What leaves the process: a snapshot as metrics, JSON and HTTP answers.
//!
//! In: [`crate::model::snapshot::Snapshot`]. Out: bytes. Nothing here reads the kernel, but for
//! the agent's own cost ([`self_process`]).

pub mod api;
mod cap;
pub mod exposition;
pub mod fold;
mod histogram;
pub mod http;
pub mod metrics;
pub mod negotiate;
pub mod outlet;
pub mod protobuf;
pub mod self_process;
