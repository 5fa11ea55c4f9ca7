//! Puts the series of a fleet into a block.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result};

use super::{
    block::{Block, ChunkRef, Symbols},
    series::{self, FAMILIES, Family, Labels, N_VARIANTS, Of},
};

/// As many as Prometheus puts into a chunk.
const N_OF_CHUNK: usize = 120;

/// How large the fleet is, and which time is simulated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fleet {
    pub(super) n_hosts: u32,
    pub(super) n_listeners: u32,
    /// From one scrape to the next.
    pub(super) seconds: u32,
    pub(super) n_scrapes: u32,
    /// Of the last scrape, in milliseconds since 1970.
    pub(super) end: i64,
}

/// What was made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) n_series: usize,
    pub(super) n_samples: u64,
}

/// All that series may be about, with their labels.
struct Everyone(Vec<(Of, Vec<Labels>)>);

impl Everyone {
    fn new(fleet: &Fleet) -> Self {
        let all = [Of::Host, Of::Namespace, Of::Listener, Of::Udp, Of::Program, Of::Destination];
        Self(all.map(|of| (of, series::all(of, fleet.n_hosts, fleet.n_listeners))).into())
    }

    fn of(&self, of: Of) -> Result<&[Labels]> {
        let found = self.0.iter().find(|it| it.0 == of);
        Ok(&found.context("each kind is there")?.1)
    }

    fn symbols(&self, families: &[Family]) -> Result<Symbols> {
        let mut all = BTreeSet::from(["", "__name__"].map(str::to_owned));
        for labels in self.0.iter().flat_map(|it| &it.1) {
            for (name, value) in labels {
                if !all.contains(*name) {
                    all.insert((*name).to_owned());
                }
                if !all.contains(value) {
                    all.insert(value.clone());
                }
            }
        }
        for family in families {
            all.insert(family.name.to_owned());
            if let Some((label, values)) = family.extra {
                all.insert(label.to_owned());
                all.extend(values.iter().map(|&it| it.to_owned()));
            }
        }
        Symbols::new(all)
    }
}

/// Writes a block below `data`.
pub(super) fn block(data: &Path, fleet: &Fleet) -> Result<Made> {
    let everyone = Everyone::new(fleet);
    let mut families = FAMILIES.to_vec();
    families.sort_unstable_by_key(|family| family.name);
    let symbols = everyone.symbols(&families)?;
    let mut block = Block::create(data, &symbols)?;
    for family in &families {
        add(&mut block, &symbols, family, fleet, everyone.of(family.of())?)?;
    }
    let (n_series, n_samples) = block.finish((fleet.at(0), fleet.end))?;
    Ok(Made { n_series, n_samples })
}

/// The series of one name, in the order of their labels.
fn add(
    block: &mut Block<'_>,
    symbols: &Symbols,
    family: &Family,
    fleet: &Fleet,
    ones: &[Labels],
) -> Result<()> {
    let none: &[&str] = &[""];
    let (label, values) = family.extra.unwrap_or(("", none));
    let mut chunks = Vec::new();
    for extra in 0..values.len() {
        for variant in 0..N_VARIANTS {
            chunks.push(fleet.chunks(block, family, variant, extra)?);
        }
    }
    let name = (symbols.place("__name__")?, symbols.place(family.name)?);
    let more = symbols.place(label)?;
    let mut all: Vec<(Vec<(u32, u32)>, usize)> = Vec::new();
    for (at, labels) in ones.iter().enumerate().filter(|(at, _)| family.has(*at)) {
        let mut places = Vec::with_capacity(labels.len() + 2);
        places.push(name);
        for (name, value) in labels {
            places.push((symbols.place(name)?, symbols.place(value)?));
        }
        for (extra, value) in values.iter().enumerate() {
            let mut places = places.clone();
            if !label.is_empty() {
                places.push((more, symbols.place(value)?));
                places.sort_unstable();
            }
            let variant = usize::try_from(family.variant(at) + N_VARIANTS * extra as u64)?;
            all.push((places, variant));
        }
    }
    // places of symbols are in the order of their texts
    all.sort_unstable();
    for (labels, chunk) in &all {
        block.series(labels, &chunks[*chunk])?;
    }
    Ok(())
}

impl Fleet {
    /// The time of a scrape.
    fn at(&self, scrape: u32) -> i64 {
        self.end - i64::from((self.n_scrapes - 1 - scrape) * self.seconds) * 1000
    }

    fn chunks(
        &self,
        block: &mut Block<'_>,
        family: &Family,
        variant: u64,
        extra: usize,
    ) -> Result<Vec<ChunkRef>> {
        let sample = |step: u32| (self.at(step), family.value(variant, extra, step, self.seconds));
        let samples: Vec<_> = (0..self.n_scrapes).map(sample).collect();
        samples.chunks(N_OF_CHUNK).map(|it| block.chunk(it)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_is_a_block() {
        let folder = tempfile::tempdir().expect("a folder");
        let fleet = Fleet {
            n_hosts: 2,
            n_listeners: 3,
            seconds: 15,
            n_scrapes: 130,
            end: 1_700_000_000_000,
        };
        let Made { n_series, n_samples } = block(folder.path(), &fleet).expect("it is written");
        assert_eq!(n_samples, 130 * n_series as u64);
        let block = folder.path().join("01BACK0GDF0EET000000000000");
        let read = |name: &str| std::fs::read(block.join(name)).expect("it is there");
        assert!(read("index").starts_with(&[0xba, 0xaa, 0xd7, 0, 2]));
        assert!(read("chunks/000001").starts_with(&[0x85, 0xbd, 0x40, 0xdd, 1]));
        let meta: serde_json::Value = serde_json::from_slice(&read("meta.json")).expect("JSON");
        assert_eq!(meta["stats"]["numChunks"], 2 * n_series);
        assert_eq!(meta["minTime"], 1_700_000_000_000_i64 - 129 * 15_000);
    }
}
