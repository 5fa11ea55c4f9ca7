//! What a connection takes while it is decided about: all of it, or nothing.

use std::{mem, net::IpAddr};

use crate::{peer_map::Place, reason::Reason, shared::Shared};

/// Places that were taken so far, in the order of taking. Dropped, they are given back as if they
/// had never been taken.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    shared: &'a Shared,
    has_soft: bool,
    has_rate: bool,
    peer: Option<Place>,
}

impl<'a> Places<'a> {
    /// Takes a place of the hard limit, which holds for everybody.
    pub(crate) fn hard(shared: &'a Shared) -> Result<Self, Reason> {
        if !shared.gate.take_hard() {
            return Err(Reason::Hard);
        }
        Ok(Self { shared, has_soft: false, has_rate: false, peer: None })
    }

    /// Takes a place of the soft limit.
    pub(crate) fn soft(&mut self) -> Result<(), Reason> {
        self.has_soft = self.shared.gate.take_soft();
        if self.has_soft { Ok(()) } else { Err(Reason::Soft) }
    }

    /// Takes a token of the listener's rate.
    pub(crate) fn rate(&mut self) -> Result<(), Reason> {
        self.has_rate = self.shared.policy.take_rate();
        if self.has_rate { Ok(()) } else { Err(Reason::Rate) }
    }

    /// Takes one of what its peer may have.
    pub(crate) fn peer(&mut self, address: IpAddr) -> Result<(), Reason> {
        self.peer = self.shared.policy.take_peer(address)?;
        Ok(())
    }

    /// The connection is admitted: they are its permit's, which gives them back.
    pub(crate) fn keep(mut self) -> Option<Place> {
        let peer = self.peer.take();
        mem::forget(self);
        peer
    }
}

impl Drop for Places<'_> {
    fn drop(&mut self) {
        let Shared { gate, policy, .. } = self.shared;
        if let Some(place) = self.peer.take() {
            policy.undo_peer(place);
        }
        if self.has_rate {
            policy.give_back_rate();
        }
        if self.has_soft {
            gate.give_back_soft();
        }
        gate.give_back_hard();
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use proptest::prelude::*;
    use tokio::{runtime, sync::mpsc};

    use super::*;
    use crate::{
        close::OnShed, descriptors::Claim, limits::Limits, peer_map::PerIp, policy::Settings,
        rate::Rate, shared::Answers, stats::Stats, words::Words,
    };

    /// Soft 4, hard 6, 8 tokens, and for each peer 2 connections and 3 tokens.
    fn shared() -> Shared {
        let limits = Limits { hard: Some(6), ..Limits::soft(4) };
        let rate = Some(Rate::per_second(1).burst(3));
        let settings = Settings {
            rate: Some(Rate::per_second(1).burst(8)),
            per_ip: Some(PerIp { rate, capacity: 64, ..PerIp::connections(2) }),
            ..Settings::default()
        };
        let (claim, answers) = (Claim::alone(limits), Answers::new(OnShed::Rst));
        let policy = settings.check().expect("it holds");
        Shared::new("".into(), claim, Words::own(), answers, policy, None, mpsc::channel(1).0)
    }

    fn take(shared: &Shared, peer: u32, is_exempt: bool) -> Result<Places<'_>, Reason> {
        let mut places = Places::hard(shared)?;
        if !is_exempt {
            places.soft()?;
            places.rate()?;
            places.peer(Ipv4Addr::from_bits(peer).into())?;
        }
        Ok(places)
    }

    /// Connections, and tokens that were used.
    #[derive(Default)]
    struct Model {
        soft: usize,
        hard: usize,
        tokens: u32,
        peers: HashMap<u32, (u32, u32)>,
    }

    impl Model {
        fn refusal(&self, peer: u32, is_exempt: bool) -> Option<Reason> {
            let (n, tokens) = self.peers.get(&peer).copied().unwrap_or_default();
            match () {
                () if self.hard == 6 => Some(Reason::Hard),
                () if is_exempt => None,
                () if self.soft == 4 => Some(Reason::Soft),
                () if self.tokens == 8 => Some(Reason::Rate),
                () if n == 2 || tokens == 3 => Some(Reason::PerIp),
                () => None,
            }
        }
    }

    /// Peer, whether it is exempt, whether it is admitted in the end or else what ends.
    fn run(steps: Vec<(u32, bool, u8)>) -> Result<(), TestCaseError> {
        let (shared, mut model) = (shared(), Model::default());
        let mut open = Vec::new();
        for (peer, is_exempt, action) in steps {
            let taken = take(&shared, peer, is_exempt);
            prop_assert_eq!(taken.as_ref().err().copied(), model.refusal(peer, is_exempt));
            match (taken, action) {
                (Ok(places), 0..2) => {
                    open.push((peer, is_exempt, places.keep()));
                    model.hard += 1;
                    if !is_exempt {
                        (model.soft, model.tokens) = (model.soft + 1, model.tokens + 1);
                        let (n, tokens) = model.peers.entry(peer).or_default();
                        (*n, *tokens) = (*n + 1, *tokens + 1);
                    }
                }
                (taken, _) => drop(taken),
            }
            if action == 3 && !open.is_empty() {
                let (peer, is_exempt, place) = open.swap_remove(0);
                if let Some(place) = place {
                    shared.policy.give_back_peer(place);
                }
                if !is_exempt {
                    shared.gate.give_back_soft();
                    model.soft -= 1;
                    model.peers.entry(peer).or_default().0 -= 1;
                }
                shared.gate.give_back_hard();
                model.hard -= 1;
            }
            let taken = (shared.gate.soft_taken(), shared.gate.hard_taken());
            prop_assert_eq!(taken, (model.soft, model.hard));
            let mut stats = Stats::default();
            shared.policy.count(&mut stats);
            // the clock stands still: who ever used a token has not got it back
            prop_assert_eq!(stats.peers_tracked, model.peers.len() as u64);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn all_is_taken_or_nothing(
            steps in prop::collection::vec((0_u32..4, prop::bool::weighted(0.2), 0_u8..4), 1..60),
        ) {
            let mut paused = runtime::Builder::new_current_thread();
            let paused = paused.enable_time().start_paused(true).build();
            paused.expect("a runtime").block_on(async { run(steps) })?;
        }
    }
}
