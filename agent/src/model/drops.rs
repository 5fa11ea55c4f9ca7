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
//! a claim that finds nothing left is good for the next sample, too. After that what a hook saw was
//! no drop, and what `sk_drops` moved gets what is left over. The records are read before the
//! sockets, so a last ACK can be in `sk_drops` one sample before its hook; whatever that gives to
//! the wrong socket, the other one's claim is still there. A socket that left the dump and is not
//! destroyed yet shows nothing: it gets what nobody claims ahead of its claim.

use crate::input::HookedDrops;

/// What one listening socket shows of drops that are not handed out so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// What the hooks saw.
    pub(super) hooked: HookedDrops,
    /// How far `sk_drops` moved beyond that.
    pub(super) moved: u64,
    /// What moved in earlier samples than the last.
    pub(super) stale: u64,
    /// What it got before it showed it.
    pub(super) ahead: u64,
}

/// The claims of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// Left by the sample before.
    pub(super) old: Claim,
    pub(super) new: Claim,
    /// Whether its accept queue was seen longer than its limit.
    pub(super) was_full: bool,
    /// Whether it has just left the dump and its last `sk_drops` is not known yet.
    pub(super) is_leaving: bool,
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
    /// What did not move now moved before, and comes off `old`.
    pub(super) fn new(hooked: HookedDrops, moved: u64, old: &mut Self) -> Self {
        let HookedDrops { full_syn, full_ack, syn_queue_full } = hooked;
        let mut seen = full_syn + 2 * full_ack + syn_queue_full;
        let mut less = |moved: u64| {
            let rest = moved.saturating_sub(seen);
            seen -= moved - rest;
            rest
        };
        let moved = less(moved);
        (old.moved, old.stale) = (less(old.moved), less(old.stale));
        let ahead = std::mem::take(&mut old.ahead);
        let paid = ahead.min(moved);
        Self { hooked, moved: moved - paid, stale: 0, ahead: ahead - paid }
    }
}

impl Claims {
    /// All of it, for a sample that can pay.
    pub(super) fn whole(&self) -> Claim {
        let (old, new) = (&self.old, &self.new);
        Claim {
            hooked: HookedDrops {
                full_syn: old.hooked.full_syn + new.hooked.full_syn,
                full_ack: old.hooked.full_ack + new.hooked.full_ack,
                syn_queue_full: old.hooked.syn_queue_full + new.hooked.syn_queue_full,
            },
            moved: old.moved + new.moved,
            stale: old.stale + new.stale,
            ahead: old.ahead + new.ahead,
        }
    }

    /// Whether nothing can be paid, now or later.
    fn is_empty(&self) -> bool {
        self.old == Claim::default() && self.new == Claim::default() && !self.is_leaving
    }

    /// What is left for the next sample.
    fn unpaid(&self) -> Claim {
        Claim { stale: self.old.moved + self.old.stale, ..self.new }
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
        let n = claims.len();
        // mostly none has anything to claim
        let (places, mut claims): (Vec<usize>, Vec<Claims>) =
            claims.iter().copied().enumerate().filter(|(_, it)| !it.is_empty()).unzip();
        let mut shares = vec![Share::default(); claims.len()];
        let mut rest = self.left + listen_drops;
        for age in AGES {
            for reason in REASONS {
                let given = pay(&mut rest, &mut claims, |it| Some(reason(&mut age(it).hooked)));
                for (share, n) in shares.iter_mut().zip(given) {
                    *reason(&mut share.hooked) += n;
                }
            }
        }
        let mut add = |given: Vec<u64>| {
            shares.iter_mut().zip(given).for_each(|(share, n)| share.rest += n);
        };
        for full in [true, false] {
            for age in AGES {
                add(pay(&mut rest, &mut claims, |it| {
                    (it.was_full == full).then(|| &mut age(it).moved)
                }));
            }
        }
        add(pay_ahead(&mut rest, &mut claims));
        add(pay(&mut rest, &mut claims, |it| Some(&mut it.old.stale)));
        self.left = rest.min(listen_drops);
        let mut all = vec![(Share::default(), Claim::default()); n];
        for ((at, share), claims) in places.into_iter().zip(shares).zip(&claims) {
            all[at] = (share, claims.unpaid());
        }
        all
    }
}

/// Tells of drops that are handed out without a reason that they were for a full SYN queue, as many
/// as TCPReqQFullDrop moved beyond what the hooks saw. Kernels differ in whether a queue as long as
/// its limit is full (`inet_csk_reqsk_queue_is_full`, include/net/inet_connection_sock.h, changed in
/// 2025 and in stable releases); the hook takes it for not full.
pub(super) fn name_syn_queue_full(shares: &mut [(Share, Claim)], moved: u64) {
    let seen: u64 = shares.iter().map(|(share, _)| share.hooked.syn_queue_full).sum();
    let mut unseen = moved.saturating_sub(seen);
    if unseen == 0 {
        return;
    }
    let rest: Vec<u64> = shares.iter().map(|(share, _)| share.rest).collect();
    for ((share, _), n) in shares.iter_mut().zip(hand_out(&mut unseen, &rest)) {
        share.rest -= n;
        share.hooked.syn_queue_full += n;
    }
}

/// A claim of one age.
type Aged = fn(&mut Claims) -> &mut Claim;

const AGES: [Aged; 2] = [|claims| &mut claims.old, |claims| &mut claims.new];

/// A reason's count.
type Reason = fn(&mut HookedDrops) -> &mut u64;

const REASONS: [Reason; 3] =
    [|drops| &mut drops.full_syn, |drops| &mut drops.full_ack, |drops| &mut drops.syn_queue_full];

/// Pays a part of each of `claims`, if it has one; how much of it.
fn pay(
    rest: &mut u64,
    claims: &mut [Claims],
    part: impl Fn(&mut Claims) -> Option<&mut u64>,
) -> Vec<u64> {
    let wanted: Vec<u64> =
        claims.iter_mut().map(|it| part(it).map_or(0, |wanted| *wanted)).collect();
    let given = hand_out(rest, &wanted);
    for (it, n) in claims.iter_mut().zip(&given) {
        if let Some(wanted) = part(it) {
            *wanted -= n;
        }
    }
    given
}

/// Pays what nobody claims to those that cannot say; how much to each.
fn pay_ahead(rest: &mut u64, claims: &mut [Claims]) -> Vec<u64> {
    let wanted: Vec<u64> = claims.iter().map(|it| if it.is_leaving { *rest } else { 0 }).collect();
    let given = hand_out(rest, &wanted);
    claims.iter_mut().zip(&given).for_each(|(it, n)| it.new.ahead += n);
    given
}

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
        let seen = Claims {
            new: Claim::new(hooked(3, 2, 1), 8, &mut Claim::default()),
            ..Claims::default()
        };
        let other = Claims { new: moved(5), was_full: true, ..Claims::default() };
        let shares = Allowance::default().share(8, &[other, seen]);
        assert_eq!(2, shares[0].0.total(), "what is left");
        assert_eq!(Share { hooked: hooked(3, 2, 1), rest: 0 }, shares[1].0);
        assert_eq!(Claim::default(), shares[1].1, "all of it is paid");
    }

    #[test]
    fn a_claim_that_is_ahead_of_listen_drops_is_paid_by_the_next_sample() {
        let mut allowance = Allowance::default();
        let new = Claim { hooked: hooked(4, 0, 0), ..Claim::default() };
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

    #[test]
    fn a_socket_that_left_the_dump_gets_what_nobody_claims_and_not_twice() {
        let leaving = Claims { is_leaving: true, ..Claims::default() };
        let other = Claims { new: moved(4), ..Claims::default() };
        let mut allowance = Allowance::default();
        let shares = allowance.share(9, &[leaving, other]);
        assert_eq!((5, 4), (shares[0].0.total(), shares[1].0.total()));
        let mut old = shares[0].1;
        let part = Claim::new(hooked(0, 0, 0), 1, &mut old.clone());
        assert_eq!((0, 4), (part.moved, part.ahead));
        let new = Claim::new(hooked(0, 0, 0), 7, &mut old);
        assert_eq!((2, 0, 0), (new.moved, new.ahead, old.ahead));
        let shares = allowance.share(9, &[Claims { new, ..Claims::default() }]);
        assert_eq!(2, shares[0].0.total());
    }

    #[test]
    fn what_went_to_the_wrong_socket_does_not_shorten_the_sum() {
        let mut allowance = Allowance::default();
        // last ACKs of the first socket, before their hook, and SYNs of the second: eight drops each
        let claims = [16, 8].map(|n| Claims { new: moved(n), ..Claims::default() });
        let shares = allowance.share(8, &claims);
        assert_eq!(8, sum(&shares));
        // the hook, and eight SYNs of the first, which ListenDrops does not show so far
        let [mut first, second] = [shares[0].1, shares[1].1];
        let new = Claim::new(hooked(0, 8, 0), 8, &mut first);
        let claims = [Claims { old: first, new, ..Claims::default() }, just(second)];
        let shares = allowance.share(8, &claims);
        assert_eq!(8, sum(&shares));
        let claims = [just(shares[0].1), just(shares[1].1)];
        let shares = allowance.share(8, &claims);
        assert_eq!(8, sum(&shares));
    }

    fn sum(shares: &[(Share, Claim)]) -> u64 {
        shares.iter().map(|(share, _)| share.total()).sum()
    }

    fn just(old: Claim) -> Claims {
        Claims { old, ..Claims::default() }
    }

    #[test]
    fn drops_for_a_syn_queue_as_long_as_its_limit_get_their_name() {
        let share = |syn_queue_full, rest| Share { hooked: hooked(1, 0, syn_queue_full), rest };
        let mut shares = [(share(2, 0), Claim::default()), (share(0, 9), Claim::default())];
        name_syn_queue_full(&mut shares, 7);
        assert_eq!([share(2, 0), share(5, 4)], shares.map(|(share, _)| share));
        name_syn_queue_full(&mut shares, 3);
        assert_eq!([share(2, 0), share(5, 4)], shares.map(|(share, _)| share));
    }

    proptest! {
        #[test]
        fn shares_add_up_to_no_more_than_there_is_and_waste_nothing(
            listen_drops in 0_u64..10_000,
            claims in prop::collection::vec((0_u64..5_000, 0_u64..500, any::<bool>()), 0..20),
        ) {
            let claim = |(moved, seen, was_full)| Claims {
                new: Claim { hooked: hooked(seen, seen / 2, seen / 3), moved, ..Claim::default() },
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
