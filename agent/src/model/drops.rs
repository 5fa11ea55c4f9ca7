//! From `sk_drops` of sockets to listen drops of listeners.
//!
//! `sk_drops` counts more than listen drops: a last ACK that is refused twice, a bare ACK on a
//! `TCP_DEFER_ACCEPT` listener once (`tcp_v4_rcv`, net/ipv4/tcp_ipv4.c). The namespace's
//! ListenDrops counts exactly these (`tcp_listendrop`, include/net/tcp.h), but for all listeners
//! together. So each sample hands out no more than ListenDrops moved, and first to listeners whose
//! queue was full.

/// What one listening socket's `sk_drops` did since the sample before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// How far `sk_drops` moved.
    pub(super) moved: u64,
    /// Whether its accept queue was seen longer than its limit.
    pub(super) was_full: bool,
}

/// The namespace's listen drops that are not handed out so far.
///
/// What one sample leaves is good in the next one only: ListenDrops is read after the sockets, so
/// it can be ahead of them by what happened between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowance {
    left: u64,
}

impl Allowance {
    /// Shares `listen_drops`, the movement of ListenDrops in this sample, among `claims`: how many
    /// each gets, in their order. Never more in all than ListenDrops moved, nor more to one than
    /// it claims.
    pub(super) fn share(&mut self, listen_drops: u64, claims: &[Claim]) -> Vec<u64> {
        let mut shares = vec![0; claims.len()];
        let mut rest = self.left + listen_drops;
        for full in [true, false] {
            let wanted = |claim: &Claim| if claim.was_full == full { claim.moved } else { 0 };
            let mut asked: u64 = claims.iter().map(wanted).sum();
            for (claim, share) in claims.iter().zip(&mut shares) {
                let want = wanted(claim);
                if want == 0 {
                    continue;
                }
                // in proportion, rounded so that the last one gets what is left
                let part = u128::from(rest) * u128::from(want) / u128::from(asked);
                *share = u64::try_from(part).unwrap_or(u64::MAX).min(want);
                rest -= *share;
                asked -= want;
            }
        }
        self.left = rest.min(listen_drops);
        shares
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(listen_drops: u64, claims: &[(u64, bool)], expected: &[u64]) {
        let claims: Vec<_> =
            claims.iter().map(|&(moved, was_full)| Claim { moved, was_full }).collect();
        assert_eq!(expected, Allowance::default().share(listen_drops, &claims), "{claims:?}");
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
    fn what_is_left_serves_the_next_sample_and_no_later_one() {
        let claim = |moved| [Claim { moved, was_full: true }];
        let mut allowance = Allowance::default();
        assert_eq!([0], allowance.share(5, &claim(0))[..]);
        assert_eq!([5], allowance.share(0, &claim(9))[..]);
        assert_eq!([0], allowance.share(5, &claim(0))[..]);
        assert_eq!([0], allowance.share(0, &claim(0))[..]);
        assert_eq!([0], allowance.share(0, &claim(5))[..]);
    }

    proptest! {
        #[test]
        fn shares_add_up_to_no_more_than_there_is_and_waste_nothing(
            listen_drops in 0_u64..10_000,
            claims in prop::collection::vec((0_u64..5_000, any::<bool>()), 0..20),
        ) {
            let claims: Vec<_> =
                claims.into_iter().map(|(moved, was_full)| Claim { moved, was_full }).collect();
            let shares = Allowance::default().share(listen_drops, &claims);
            let (given, wanted): (u64, u64) =
                (shares.iter().sum(), claims.iter().map(|claim| claim.moved).sum());
            prop_assert_eq!(given, listen_drops.min(wanted));
            for (share, claim) in shares.iter().zip(&claims) {
                prop_assert!(*share <= claim.moved);
            }
        }
    }
}
