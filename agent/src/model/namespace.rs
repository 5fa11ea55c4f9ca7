//! One network namespace from sample to sample: what its own counters say of ours.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    input::{Absent, Known, NamespaceSample},
    model::{ByCookie, delta::moved, drops::Allowance, ports::Ports, socket::Socket},
    time::{Monotonic, Nanos},
};

/// State of one namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct NamespaceState {
    /// Its sockets that listen, or did a moment ago.
    pub(super) sockets: ByCookie<Socket>,
    /// Handshakes that the programs saw in it.
    pub(super) handshakes: u64,
    /// Children that the kernel made and undid.
    pub(super) undone: u64,
    pub(super) allowance: Allowance,
    pub(super) ports: Ports,
    listen_drops: Option<u64>,
    syn_queue_drops: Option<u64>,
    loss: Loss,
    netstat: NetstatTotals,
}

/// The kernel's own counters, which never go back though another namespace can have the same inode
/// number.
#[derive(Clone, Debug, Default)]
pub(super) struct NetstatTotals {
    /// As the kernel last showed them.
    last: Arc<BTreeMap<&'static str, u64>>,
    /// What namespaces before this one counted.
    before: BTreeMap<&'static str, u64>,
}

impl NetstatTotals {
    /// The counters with those of the namespaces before.
    pub(super) fn next(
        &mut self,
        now: &Arc<BTreeMap<&'static str, u64>>,
    ) -> Arc<BTreeMap<&'static str, u64>> {
        if !Arc::ptr_eq(&self.last, now) {
            let is_another =
                now.iter().any(|(name, n)| self.last.get(name).is_some_and(|it| n < it));
            if is_another {
                for (name, n) in self.last.iter() {
                    *self.before.entry(name).or_default() += n;
                }
            }
            self.last = now.clone();
        }
        if self.before.is_empty() {
            return now.clone();
        }
        let sum =
            |(name, n): (&&'static str, &u64)| (*name, n + self.before.get(name).unwrap_or(&0));
        Arc::new(now.iter().map(sum).collect())
    }

    /// What is left when the namespace is gone, for the next one of its number.
    pub(super) fn end(self) -> Self {
        let mut before = self.before;
        for (name, n) in self.last.iter() {
            *before.entry(name).or_default() += n;
        }
        Self { last: Arc::default(), before }
    }
}

impl NamespaceState {
    /// Of a namespace whose number others had before.
    pub(super) fn after(netstat: NetstatTotals) -> Self {
        Self { netstat, ..Self::default() }
    }

    /// The kernel's own counters, which never go back.
    pub(super) fn netstat(
        &mut self,
        sample: &NamespaceSample,
    ) -> Known<Arc<BTreeMap<&'static str, u64>>> {
        sample.netstat.as_ref().map(|now| self.netstat.next(now)).map_err(|absent| *absent)
    }

    /// What is left of it when it is gone.
    pub(super) fn end(self) -> NetstatTotals {
        self.netstat.end()
    }

    /// How far ListenDrops moved since the sample before; `None` when it cannot be told.
    pub(super) fn listen_drops(&mut self, sample: &NamespaceSample) -> Option<u64> {
        let now = *sample.netstat.as_ref().ok()?.get("ListenDrops")?;
        let before = self.listen_drops.replace(now);
        let before = before.or(sample.is_new.then_some(0));
        Some(before.map_or(0, |before| moved(before, now)))
    }

    /// How far TCPReqQFullDrop moved since the sample before; 0 when it cannot be told.
    pub(super) fn syn_queue_drops(&mut self, sample: &NamespaceSample) -> u64 {
        let now = sample.netstat.as_ref().ok().and_then(|it| it.get("TCPReqQFullDrop").copied());
        let Some(now) = now else { return 0 };
        let before = self.syn_queue_drops.replace(now).or(sample.is_new.then_some(0));
        before.map_or(0, |before| moved(before, now))
    }

    /// Handshakes that the kernel counted and no program saw, as of `at`.
    pub(super) fn lost(&mut self, sample: &NamespaceSample, at: Monotonic) -> Known<u64> {
        let passive_opens = sample.passive_opens?;
        let (after, handshakes) = (sample.passive_opens_after, self.handshakes + self.undone);
        // its counters began at 0, as ours did
        let after = if sample.is_new { Some(handshakes) } else { after };
        Ok(self.loss.next(at, passive_opens, after, handshakes))
    }
}

/// PassiveOpens against the handshakes that the programs saw.
///
/// PassiveOpens counts when the child is made (`tcp_create_openreq_child`,
/// net/ipv4/tcp_minisocks.c), those that it undoes among them, before the programs see it established, and is read before the
/// records: so the difference is never ahead of the truth, but for a CPU that took its time between
/// the two: an interrupt, or a hypervisor that ran another guest. Therefore two samples, and all
/// in [`LATE`], must agree.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    offset: Option<i128>,
    /// Since when, and the least that PassiveOpens was ahead from then on.
    span: Option<(Monotonic, i128)>,
    lost: u64,
    /// PassiveOpens when last looked at.
    seen: u64,
}

/// What comes later than this does not come.
const LATE: Nanos = Nanos(900_000_000);

impl Loss {
    fn next(
        &mut self,
        at: Monotonic,
        passive_opens: u64,
        after: Option<u64>,
        handshakes: u64,
    ) -> u64 {
        if passive_opens < self.seen {
            // another namespace has the same inode number
            *self = Self { lost: self.lost, ..Self::default() };
        }
        self.seen = passive_opens;
        let ahead = i128::from(passive_opens) - i128::from(handshakes);
        let first = || i128::from(after.unwrap_or(passive_opens)) - i128::from(handshakes);
        let offset = *self.offset.get_or_insert_with(first);
        let (since, least) = self.span.unwrap_or((at, ahead));
        let least = least.min(ahead);
        if at - since < LATE {
            self.span = Some((since, least));
        } else {
            self.span = Some((at, ahead));
            self.lost = self.lost.max(u64::try_from(least - offset).unwrap_or(0));
        }
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

    /// Samples each `apart`.
    #[track_caller]
    fn check(apart: Nanos, samples: &[(u64, Option<u64>, u64)], expected: &[u64]) {
        let mut loss = Loss::default();
        let times = (1..).map(|n| Monotonic(n * apart.0));
        let next = |(at, &(p, after, h)): (_, &(_, _, _))| loss.next(at, p, after, h);
        let got: Vec<_> = times.zip(samples).map(next).collect();
        assert_eq!(expected, got, "{samples:?}");
    }

    #[test]
    fn counters_of_the_same_number_never_go_back() {
        let fields = |n| Arc::new(BTreeMap::from([("ListenDrops", n)]));
        let mut totals = NetstatTotals::default();
        let mut next = |n| totals.next(&fields(n))["ListenDrops"];
        assert_eq!([5, 7, 9, 9, 10], [5, 7, 2, 2, 3].map(&mut next));
        let mut totals = totals.end();
        assert_eq!(10, totals.next(&fields(0))["ListenDrops"]);
        assert_eq!(14, totals.next(&fields(4))["ListenDrops"]);
    }

    #[test]
    fn a_loss_is_what_two_samples_in_a_row_agree_on() {
        let check = |samples: &_, expected: &_| check(Nanos(1_000_000_000), samples, expected);
        check(&[(100, Some(100), 0), (110, None, 10), (120, None, 20)], &[0, 0, 0]);
        check(&[(100, Some(100), 0), (110, None, 7), (110, None, 7)], &[0, 0, 3]);
        // one late event is none
        check(&[(100, Some(100), 0), (110, None, 9), (110, None, 10)], &[0, 0, 0]);
        // under load the records are read later and are ahead
        check(&[(100, Some(105), 0), (200, None, 110), (300, None, 205)], &[0, 0, 0]);
        // and what was published stays
        check(&[(9, Some(9), 0), (12, None, 0), (12, None, 0), (12, None, 3)], &[0, 0, 3, 3]);
    }

    #[test]
    fn what_is_late_for_many_quick_samples_is_not_lost() {
        let samples = [(9, Some(9), 0), (9, None, 0), (10, None, 0), (10, None, 0), (10, None, 1)];
        check(Nanos(10_000_000), &samples, &[0; 5]);
        let samples = [(9, Some(9), 0), (10, None, 0), (10, None, 0), (10, None, 0), (10, None, 0)];
        check(Nanos(450_000_000), &samples, &[0, 0, 0, 0, 1]);
    }
}
