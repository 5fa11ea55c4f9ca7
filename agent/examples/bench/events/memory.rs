//! What an open connection adds to the kernel's memory.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use backlogd::sources::{Options, Sources};

use crate::{
    hold,
    report::{Goal, Report, median},
};

/// What open connections add to the kernel's general slabs, with the programs more than without.
pub(crate) fn rows(report: &mut Report) -> Result<()> {
    const OPEN: u32 = 10_000;
    const PAIRS: usize = 3;
    let mut each = Vec::new();
    let mut caches: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..PAIRS {
        let without = slab_growth(OPEN)?;
        let sources = Sources::open(&Options::default())?;
        let with = slab_growth(OPEN)?;
        drop(sources);
        let mut sum = 0.0;
        for (cache, bytes) in with {
            let more = (bytes - without.get(&cache).copied().unwrap_or(0.0)) / f64::from(OPEN);
            sum += more;
            *caches.entry(cache).or_default() += more / PAIRS as f64;
        }
        each.push(sum);
    }
    let large = caches.iter().filter(|(_, bytes)| 8.0 < bytes.abs());
    let large: Vec<_> = large.map(|(cache, bytes)| format!("{cache} {bytes:+.0}")).collect();
    let how = format!(
        "growth of kmalloc-* over {OPEN} open connections, with less without; median of {PAIRS}; {}",
        large.join(", ")
    );
    report.row("kernel memory per connection", Goal::AtMost(320.0), median(&each), "bytes", how);
    Ok(())
}

fn slab_growth(n_pairs: u32) -> Result<BTreeMap<String, f64>> {
    let settle = || thread::sleep(Duration::from_millis(1_500));
    settle();
    let before = slabs()?;
    let held = hold::hold(9, usize::try_from(n_pairs)?)?;
    settle();
    let mut growth = slabs()?;
    drop(held);
    for (cache, bytes) in &mut growth {
        *bytes -= before.get(cache).copied().unwrap_or(0.0);
    }
    Ok(growth)
}

/// Bytes in use of each kmalloc cache.
fn slabs() -> Result<BTreeMap<String, f64>> {
    let text = fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    let cache = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next().filter(|name| name.starts_with("kmalloc-"))?;
        let mut number = || words.next()?.parse::<f64>().ok();
        let (active, _, size) = (number()?, number()?, number()?);
        Some((name.to_owned(), active * size))
    };
    Ok(text.lines().filter_map(cache).collect())
}
