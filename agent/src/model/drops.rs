//! From what the hooks saw and `sk_drops` to listen drops of listeners.
//!
//! The namespace's ListenDrops counts exactly the listen drops (`tcp_listendrop`,
//! include/net/tcp.h), but for all listeners together. A hook tells listener and reason, yet judges
//! a SYN a moment before the kernel does. `sk_drops` counts more than listen drops: a last ACK that
//! is refused twice, a bare ACK on a `TCP_DEFER_ACCEPT` listener once (`tcp_v4_rcv`,
//! net/ipv4/tcp_ipv4.c). So each sample hands out exactly what ListenDrops moved: first to what the
//! hooks saw, then to what `sk_drops` moved beyond that, first of listeners whose queue was full.
//!
//! ListenDrops is read before the records and the sockets, so what they show can be ahead of it:
//! a claim that finds nothing left is good for the next sample, and no longer.

use crate::input::HookedDrops;

/// What one listening socket shows of drops that are not handed out so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// What the hooks saw.
    pub(super) hooked: HookedDrops,
    /// How far `sk_drops` moved beyond that.
    pub(super) moved: u64,
}

/// The claims of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// Left by the sample before.
    pub(super) old: Claim,
    pub(super) new: Claim,
    /// Whether its accept queue was seen longer than its limit.
    pub(super) was_full: bool,
}

/// What one socket gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) hooked: HookedDrops,
    /// Of no known reason.
    pub(super) rest: u64,
}

/// The namespace's listen drops that nobody claims so far; good for the next sample only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowance {
    left: u64,
}

impl Claim {
    /// What `sk_drops` moved by and what the hooks saw meanwhile: a last ACK counts twice in it.
    pub(super) fn new(hooked: HookedDrops, moved: u64) -> Self {
        let HookedDrops { full_syn, full_ack, syn_queue_full } = hooked;
        Self { hooked, moved: moved.saturating_sub(full_syn + 2 * full_ack + syn_queue_full) }
    }
}

impl Share {
    /// All of it.
    pub(super) fn total(&self) -> u64 {
        let HookedDrops { full_syn, full_ack, syn_queue_full } = self.hooked;
        full_syn + full_ack + syn_queue_full + self.rest
    }
}

impl Allowance {
    /// Shares `listen_drops`, the movement of ListenDrops in this sample, among `claims`: what each
    /// gets, in their order, and what is left of its new claim.
    pub(super) fn share(&mut self, listen_drops: u64, claims: &[Claims]) -> Vec<(Share, Claim)> {
        let mut shares: Vec<_> =
            claims.iter().map(|claims| (Share::default(), claims.new)).collect();
        let mut rest = self.left + listen_drops;
        for age in [Age::Old, Age::New] {
            for reason in REASONS {
                let wanted: Vec<u64> =
                    claims.iter().map(|it| *reason(&mut age.of(it).hooked)).collect();
                for ((share, unpaid), n) in shares.iter_mut().zip(hand_out(&mut rest, &wanted)) {
                    *reason(&mut share.hooked) += n;
                    if age == Age::New {
                        *reason(&mut unpaid.hooked) -= n;
                    }
                }
            }
        }
        for full in [true, false] {
            for age in [Age::Old, Age::New] {
                let want = |it: &Claims| if it.was_full == full { age.of(it).moved } else { 0 };
                let wanted: Vec<u64> = claims.iter().map(want).collect();
                for ((share, unpaid), n) in shares.iter_mut().zip(hand_out(&mut rest, &wanted)) {
                    share.rest += n;
                    if age == Age::New {
                        unpaid.moved -= n;
                    }
                }
            }
        }
        self.left = rest.min(listen_drops);
        shares
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    Old,
    New,
}

impl Age {
    fn of(self, claims: &Claims) -> Claim {
        match self {
            Self::Old => claims.old,
            Self::New => claims.new,
        }
    }
}

/// A reason's count.
type Reason = fn(&mut HookedDrops) -> &mut u64;

const REASONS: [Reason; 3] =
    [|drops| &mut drops.full_syn, |drops| &mut drops.full_ack, |drops| &mut drops.syn_queue_full];

/// Hands out as much of `rest` as is wanted, in proportion, to each no more than it wants.
fn hand_out(rest: &mut u64, wanted: &[u64]) -> Vec<u64> {
    let mut asked: u64 = wanted.iter().sum();
    let mut give = |&want: &u64| {
        if want == 0 {
            return 0;
        }
        // rounded so that the last one gets what is left
        let part = u128::from(*rest) * u128::from(want) / u128::from(asked);
        let given = u64::try_from(part).unwrap_or(u64::MAX).min(want);
        *rest -= given;
        asked -= want;
        given
    };
    wanted.iter().map(&mut give).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moved(moved: u64) -> Claim {
        Claim { moved, ..Claim::default() }
    }

    fn hooked(full_syn: u64, full_ack: u64, syn_queue_full: u64) -> HookedDrops {
        HookedDrops { full_syn, full_ack, syn_queue_full }
    }

    #[track_caller]
    fn check(listen_drops: u64, claims: &[(u64, bool)], expected: &[u64]) {
        let claim =
            |&(n, was_full): &(u64, bool)| Claims { new: moved(n), was_full, ..Claims::default() };
        let claims: Vec<_> = claims.iter().map(claim).collect();
        let shares = Allowance::default().share(listen_drops, &claims);
        let shares: Vec<u64> = shares.iter().map(|(share, _)| share.rest).collect();
        assert_eq!(expected, shares, "{claims:?}");
    }

    #[test]
    fn drops_go_to_full_listeners_first_and_never_exceed_listen_drops() {
        check(100, &[(100, true)], &[100]);
        check(15, &[(30, true)], &[15]); // last ACKs count twice
        check(0, &[(20, false)], &[0]); // deferred ACKs are no drops
        check(10, &[(1000, false), (10, true)], &[0, 10]);
        check(30, &[(40, true), (20, true)], &[20, 10]);
        check(7, &[(3, true), (9, false)], &[3, 4]);
        check(5, &[], &[]);
    }

    #[test]
    fn what_a_hook_saw_comes_first_and_keeps_its_reason() {
        let seen = Claims { new: Claim::new(hooked(3, 2, 1), 8), ..Claims::default() };
        let other = Claims { new: moved(5), was_full: true, ..Claims::default() };
        let shares = Allowance::default().share(8, &[other, seen]);
        assert_eq!(2, shares[0].0.total(), "what is left");
        assert_eq!(Share { hooked: hooked(3, 2, 1), rest: 0 }, shares[1].0);
        assert_eq!(Claim::default(), shares[1].1, "all of it is paid");
    }

    #[test]
    fn a_claim_that_is_ahead_of_listen_drops_is_paid_by_the_next_sample() {
        let mut allowance = Allowance::default();
        let new = Claim { hooked: hooked(4, 0, 0), moved: 0 };
        let first = allowance.share(1, &[Claims { new, ..Claims::default() }]);
        assert_eq!((1, 3), (first[0].0.total(), first[0].1.hooked.full_syn));
        let old = first[0].1;
        let second = allowance.share(3, &[Claims { old, ..Claims::default() }]);
        assert_eq!((3, Claim::default()), (second[0].0.total(), second[0].1));
    }

    #[test]
    fn what_nobody_claims_serves_the_next_sample_and_no_later_one() {
        let claim = |n| [Claims { new: moved(n), was_full: true, ..Claims::default() }];
        let mut allowance = Allowance::default();
        assert_eq!(0, allowance.share(5, &claim(0))[0].0.total());
        assert_eq!(5, allowance.share(0, &claim(9))[0].0.total());
        assert_eq!(0, allowance.share(5, &claim(0))[0].0.total());
        assert_eq!(0, allowance.share(0, &claim(0))[0].0.total());
        assert_eq!(0, allowance.share(0, &claim(5))[0].0.total());
    }

    proptest! {
        #[test]
        fn shares_add_up_to_no_more_than_there_is_and_waste_nothing(
            listen_drops in 0_u64..10_000,
            claims in prop::collection::vec((0_u64..5_000, 0_u64..500, any::<bool>()), 0..20),
        ) {
            let claim = |(moved, seen, was_full)| Claims {
                new: Claim { hooked: hooked(seen, seen / 2, seen / 3), moved },
                was_full,
                ..Claims::default()
            };
            let claims: Vec<_> = claims.into_iter().map(claim).collect();
            let shares = Allowance::default().share(listen_drops, &claims);
            let given: u64 = shares.iter().map(|(share, _)| share.total()).sum();
            let all = |it: &Claim| Share { hooked: it.hooked, rest: it.moved }.total();
            let wanted: u64 = claims.iter().map(|claims| all(&claims.new)).sum();
            prop_assert_eq!(given, listen_drops.min(wanted));
            for (claims, (share, unpaid)) in claims.iter().zip(&shares) {
                prop_assert_eq!(all(&claims.new), share.total() + all(unpaid));
            }
        }
    }
}
