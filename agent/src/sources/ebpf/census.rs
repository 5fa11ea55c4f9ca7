//! Whether what is counted as open is there.
//!
//! Some kernels run no program for a few of the ends of connections, and then a listener would seem to
//! leak. So every ten seconds a walk over the tags of all connections counts those that exist. Cost:
//! 0.1 µs for each, on a thread of its own, followed by a rest of fifty times what it took.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use aya::{Ebpf, maps::Map};

use super::{CENSUS, load::array, maps::Slots};
use crate::{
    id::{Cookie, Slot},
    input::SlotRecord,
    sources::background::Background,
    sys::{
        bpf,
        mmap::{Pages, SharedWords},
    },
};

/// Between two walks, at least.
const EVERY: Duration = Duration::from_secs(10);

/// A walk is followed by so many times its duration without one.
const REST: u32 = 50;

/// Counts connections.
#[derive(Debug)]
pub(super) struct Census {
    link: Arc<OwnedFd>,
    found: Arc<SharedWords>,
    slots: Arc<Slots>,
    walking: Background<Option<Unseen>>,
    next: Instant,
    /// Ends that no program saw, by the listener's record.
    unseen: HashMap<Slot, (Cookie, u64)>,
    corrections: u64,
}

/// What a walk showed: of each listener, how many ends were not seen by then.
type Unseen = Vec<(Slot, Cookie, u64)>;

/// What a record showed of a listener, before or after a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// Connections that were tagged.
    tagged: u64,
    /// Those whose end was seen.
    closed: u64,
}

/// How many of the connections that are counted as open before a walk were gone: `found` is what it
/// found. Those that ended during it may have been passed before or after, so they are left out.
fn unseen(before: Count, after: Count, found: u64) -> u64 {
    let meanwhile = after.closed.saturating_sub(before.closed);
    let open = before.tagged.saturating_sub(before.closed);
    open.saturating_sub(meanwhile).saturating_sub(found)
}

impl Census {
    /// `None` where this kernel has no such iterator.
    pub(super) fn open(ebpf: &Ebpf, slots: Arc<Slots>) -> Option<Self> {
        let program = ebpf.program(CENSUS)?.fd().ok()?;
        let Some(Map::SkStorage(tags)) = ebpf.map("TAGS") else { return None };
        let n_words = usize::try_from(slots.capacity()).ok()?;
        let found = array(ebpf, "CENSUS").ok()?;
        let found = SharedWords::map(found.fd().as_fd(), n_words, Pages::WhenTouched);
        match (bpf::link_iterator(program.as_fd(), tags.fd().as_fd()), found) {
            (Ok(link), Ok(found)) => Some(Self {
                link: Arc::new(link),
                found: Arc::new(found),
                slots,
                walking: Background::new("census"),
                next: Instant::now() + EVERY,
                unseen: HashMap::new(),
                corrections: 0,
            }),
            (Err(err), _) | (_, Err(err)) => {
                tracing::warn!(error = %err, "connections that are there cannot be counted");
                None
            }
        }
    }

    /// Ends that no program saw.
    pub(super) fn corrections(&self) -> u64 {
        self.corrections
    }

    /// Adds to `closed` of each record what no program saw, and starts a walk when it is time.
    pub(super) fn update(&mut self, records: &mut [SlotRecord]) {
        self.finish();
        if !self.walking.is_busy() && self.next <= Instant::now() {
            self.start(records);
        }
        for record in records {
            if let Some((cookie, n)) = self.unseen.get(&record.slot)
                && *cookie == record.cookie
            {
                record.closed += n;
            }
        }
    }

    /// A slot is given to another listener.
    pub(super) fn clear(&mut self, slot: Slot) {
        self.unseen.remove(&slot);
    }

    fn start(&mut self, records: &[SlotRecord]) {
        let listeners: Vec<(Slot, Cookie)> =
            records.iter().map(|record| (record.slot, record.cookie)).collect();
        let known: HashMap<Slot, (Cookie, u64)> = self.unseen.clone();
        let (link, found, slots) = (self.link.clone(), self.found.clone(), self.slots.clone());
        // whatever comes of it
        self.next = Instant::now() + EVERY;
        self.walking.start(move || {
            let count = |slot| {
                slots
                    .tagged(slot)
                    .map(|(cookie, tagged, closed)| (cookie, Count { tagged, closed }))
            };
            let before: Vec<_> = listeners.iter().map(|&(slot, _)| count(slot)).collect();
            if let Err(err) = walk(&link, &found) {
                tracing::debug!(error = %err, "connections not counted");
                return None;
            }
            let one = |(&(slot, cookie), before): (&(Slot, Cookie), &Option<(Cookie, Count)>)| {
                let (was, before) = (*before)?;
                let (is, after) = count(slot)?;
                let connections = found.words().get(slot.0 as usize)?.load(Relaxed);
                let n = unseen(before, after, connections);
                let old = known.get(&slot).filter(|it| it.0 == cookie).map_or(0, |it| it.1);
                (was == cookie && is == cookie && old < n).then_some((slot, cookie, n))
            };
            Some(listeners.iter().zip(&before).filter_map(one).collect())
        });
    }

    fn finish(&mut self) {
        let Some(walk) = self.walking.finish(Duration::ZERO) else { return };
        self.next = Instant::now() + EVERY.max(walk.took * REST);
        for (slot, cookie, n) in walk.value.into_iter().flatten() {
            let old = self.unseen.insert(slot, (cookie, n));
            let old = old.filter(|it| it.0 == cookie).map_or(0, |it| it.1);
            self.corrections += n - old.min(n);
        }
    }
}

/// Clears `found`, and has the kernel count every connection into it.
fn walk(link: &OwnedFd, found: &SharedWords) -> io::Result<()> {
    for word in found.words() {
        if word.load(Relaxed) != 0 {
            word.store(0, Relaxed);
        }
    }
    let mut file = File::from(bpf::open_iterator(link.as_fd())?);
    // the program writes nothing: the first read walks to the end
    while 0 < file.read(&mut [0; 64])? {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_be_gone_counts_as_unseen() {
        #[track_caller]
        fn check(before: (u64, u64), after: (u64, u64), found: u64, expected: u64) {
            let count = |(tagged, closed)| Count { tagged, closed };
            let got = unseen(count(before), count(after), found);
            assert_eq!(expected, got, "{before:?} {after:?} {found}");
        }
        // ten open, ten found
        check((100, 90), (100, 90), 10, 0);
        // two ends were not seen
        check((100, 90), (100, 90), 8, 2);
        // they may be those that ended during the walk
        check((100, 90), (100, 92), 8, 0);
        check((100, 90), (100, 91), 8, 1);
        // more were found than there were before
        check((100, 90), (120, 90), 25, 0);
    }
}
