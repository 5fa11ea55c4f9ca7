//! Incidents, each provoked for real and then told: which detection, about whom, why, with which
//! numbers, how soon; and nothing else is told meanwhile. With `BACKLOGD_TEST_RECORD=DIR` each leaves a
//! recording there: docs/incidents.md.

mod calls;
mod closing;
mod outbound;
mod queues;
mod stall;
mod syn;
mod watch;
