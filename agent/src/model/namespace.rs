//! One network namespace from sample to sample: what its own counters say of ours.

use crate::{
    input::{Absent, Known, NamespaceSample},
    model::{delta::moved, drops::Allowance},
};

/// State of one namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct NamespaceState {
    /// Handshakes that the programs saw in it.
    pub(super) handshakes: u64,
    pub(super) allowance: Allowance,
    listen_drops: Option<u64>,
    loss: Loss,
}

impl NamespaceState {
    /// How far ListenDrops moved since the sample before; `None` when it cannot be told.
    pub(super) fn listen_drops(&mut self, sample: &NamespaceSample) -> Option<u64> {
        let now = *sample.netstat.as_ref().ok()?.get("ListenDrops")?;
        let before = self.listen_drops.replace(now);
        Some(before.map_or(0, |before| moved(before, now)))
    }

    /// Handshakes that the kernel counted and no program saw.
    pub(super) fn lost(&mut self, sample: &NamespaceSample) -> Known<u64> {
        let passive_opens = sample.passive_opens?;
        Ok(self.loss.next(passive_opens, sample.passive_opens_after, self.handshakes))
    }
}

/// PassiveOpens against the handshakes that the programs saw.
///
/// PassiveOpens counts when the child is made (`tcp_create_openreq_child`,
/// net/ipv4/tcp_minisocks.c), before the programs see it established, and is read before the
/// records: so the difference is never ahead of the truth, but for an interrupt that took its time
/// between the two. Therefore two samples in a row must agree.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    offset: Option<i128>,
    before: i128,
    lost: u64,
}

impl Loss {
    fn next(&mut self, passive_opens: u64, after: Option<u64>, handshakes: u64) -> u64 {
        let ahead = i128::from(passive_opens) - i128::from(handshakes);
        let first = || i128::from(after.unwrap_or(passive_opens)) - i128::from(handshakes);
        let offset = *self.offset.get_or_insert_with(first);
        let agreed = ahead.min(self.before) - offset;
        self.before = ahead;
        self.lost = self.lost.max(u64::try_from(agreed).unwrap_or(0));
        self.lost
    }
}

/// Whether the loss can be told at all.
pub(super) fn loss_absent(no_slot: Known<u64>) -> Option<Absent> {
    match no_slot {
        Ok(0) => None,
        // children of a listener without a slot are not seen either
        Ok(_) => Some(Absent::NoSlot),
        Err(absent) => Some(absent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(samples: &[(u64, Option<u64>, u64)], expected: &[u64]) {
        let mut loss = Loss::default();
        let got: Vec<_> = samples.iter().map(|&(p, after, h)| loss.next(p, after, h)).collect();
        assert_eq!(expected, got, "{samples:?}");
    }

    #[test]
    fn a_loss_is_what_two_samples_in_a_row_agree_on() {
        check(&[(100, Some(100), 0), (110, None, 10), (120, None, 20)], &[0, 0, 0]);
        check(&[(100, Some(100), 0), (110, None, 7), (110, None, 7)], &[0, 0, 3]);
        // one late event is none
        check(&[(100, Some(100), 0), (110, None, 9), (110, None, 10)], &[0, 0, 0]);
        // under load the records are read later and are ahead
        check(&[(100, Some(105), 0), (200, None, 110), (300, None, 205)], &[0, 0, 0]);
        // and what was published stays
        check(&[(9, Some(9), 0), (12, None, 0), (12, None, 0), (12, None, 3)], &[0, 0, 3, 3]);
    }
}
