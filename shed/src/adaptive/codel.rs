//! CoDel on the wait in an accept queue (RFC 8289, with connections in the place of packets).
//!
//! Pure. A short queue that comes and goes is fine, one that stays is not: so what counts is
//! whether the shortest wait of an interval is above the target.

use std::time::Duration;

/// The judge of one accept queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codel {
    target: Duration,
    interval: Duration,
    /// From then on, waits were above the target for an interval.
    late_from: Option<Duration>,
    is_shedding: bool,
    /// Sheds of this phase, and when the next one is due.
    n: u32,
    next: Duration,
}

impl Codel {
    pub(crate) fn new(target: Duration, interval: Duration) -> Self {
        let next = Duration::ZERO;
        Self { target, interval, late_from: None, is_shedding: false, n: 0, next }
    }

    /// The queue was empty.
    pub(crate) fn emptied(&mut self) {
        self.late_from = None;
        self.is_shedding = false;
    }

    /// Whether to shed the head of the queue, which waited for `waited`. `now` never goes back.
    pub(crate) fn sheds(&mut self, waited: Duration, now: Duration) -> bool {
        if waited < self.target {
            self.emptied();
            return false;
        }
        let late_from = *self.late_from.get_or_insert(now + self.interval);
        if now < late_from {
            return false;
        }
        if !self.is_shedding {
            // soon after the last phase, the pace that was needed then is nearly right
            let is_recent = self.n != 0 && now < self.next + self.interval * 16;
            self.n = if is_recent { self.n.saturating_sub(2).max(1) } else { 1 };
            self.is_shedding = true;
            self.next = now + self.pace();
            return true;
        }
        if now < self.next {
            return false;
        }
        self.n = self.n.saturating_add(1);
        self.next += self.pace();
        true
    }

    /// The time between two sheds: interval / √n.
    fn pace(&self) -> Duration {
        self.interval.div_f64(f64::from(self.n).sqrt())
    }
}
