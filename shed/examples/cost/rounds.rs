//! Contenders in turn, A-B-C-C-B-A, so that what the machine does beside falls on all of them.

use anyhow::Result;

use crate::report::median;

/// After one that warms up.
const ROUNDS: usize = 15;

/// What each contender needed in each round.
#[derive(Debug)]
pub(crate) struct Rounds<const N: usize>(Vec<[f64; N]>);

impl<const N: usize> Rounds<N> {
    /// Calls `measure` with the place of each contender, twice in each round.
    pub(crate) async fn run(mut measure: impl AsyncFnMut(usize) -> Result<f64>) -> Result<Self> {
        let mut rounds = Vec::new();
        for _ in 0..=ROUNDS {
            let mut sums = [0.0; N];
            for place in (0..N).chain((0..N).rev()) {
                sums[place] += measure(place).await? / 2.0;
            }
            rounds.push(sums);
        }
        Ok(Self(rounds.split_off(1)))
    }

    pub(crate) fn median(&self, place: usize) -> f64 {
        median(&self.0.iter().map(|round| round[place]).collect::<Vec<_>>())
    }

    /// Median, least and largest of the rounds' ratios of `place` to the best of `others`.
    pub(crate) fn ratio(&self, place: usize, others: &[usize]) -> [f64; 3] {
        // the best over all rounds: the best of each would flatter whoever spreads most
        let best =
            others.iter().copied().min_by(|&a, &b| self.median(a).total_cmp(&self.median(b)));
        let best = best.unwrap_or(place);
        let mut ratios: Vec<_> = self.0.iter().map(|round| round[place] / round[best]).collect();
        ratios.sort_by(f64::total_cmp);
        [median(&ratios), ratios[0], ratios[ratios.len() - 1]]
    }
}

/// How the spread of ratios is shown.
pub(crate) fn spread([_, least, most]: [f64; 3]) -> String {
    format!("median of {ROUNDS} rounds, {least:.3} to {most:.3}")
}
