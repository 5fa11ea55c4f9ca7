//! What the agent says beside what the kernel, the clients and the servers say.
//!
//! Each test runs in a network namespace of its own, so that every count is exact; it provokes
//! what it is about with a named offender and compares. The eBPF programs see the whole host, so
//! the tests run one at a time: `cargo test --test kernel -- --ignored --test-threads=1`, as root.

mod actors;
mod agent;
mod binary;
mod burst;
mod churn;
mod clients;
mod crowd;
mod escalation;
mod exhaustion;
mod failures;
mod incidents;
mod killed;
mod life;
mod members;
mod mixed;
mod namespace;
mod neighbours;
mod offenders;
mod open;
mod overflow;
mod owners;
mod protocols;
mod reasons;
mod restart;
mod rps;
mod sampled;
mod segment;
mod servers;
mod shapes;
mod shed;
mod space;
mod spaces;
mod table;
mod threads;
mod tier;
mod trace;
mod truth;
mod undone;
mod waits;
mod watched;
