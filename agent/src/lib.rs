//! backlogd: a Linux agent for TCP listen queues.
//!
//! In reading order: what the kernel says ([`input`], `sources`), what it means ([`model`]), and
//! how it is shown (`publish`, `cli`). `ARCHITECTURE.md` is the map.

pub mod config;
pub mod errno;
pub mod error;
pub mod event;
pub mod histogram;
pub mod id;
pub mod input;
pub mod intern;
pub mod metric;
pub mod outlet;
pub mod serial;
pub mod threads;
pub mod time;

pub mod sys;

pub mod sources;

pub mod audit;
pub mod detect;
pub mod model;
pub mod notify;
pub mod publish;
pub mod recording;
pub mod shed;

pub mod cli;
pub mod daemon;
