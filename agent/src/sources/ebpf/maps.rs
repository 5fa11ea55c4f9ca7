//! The programs' records and cells, as user space sees them.
//!
//! In: the mapped words of SLOTS and CELLS. Out: [`SlotRecord`]. Cost: twenty-seven loads per slot in
//! use, one per slot that was used before; no system call.

use std::{
    collections::BTreeMap,
    io,
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release},
};

use backlogd_abi::{
    ADOPTED, DESTROYED, Holder, LENGTH_BITS, Place, RESET_SHIFT, Record, SEARCHED, WATCHED, cell,
};

use crate::{
    id::{Cookie, Inode, NetnsId, Pid, Slot},
    input::{HookedDrops, ListenSocket, SlotRecord},
    sys::mmap::{Pages, SharedWords},
};

const WORDS: usize = size_of::<Record>() / 8;
const COOKIE: usize = offset_of!(Record, cookie) / 8;
const HIGH_WATER: usize = offset_of!(Record, high_water) / 8;
const GENERATION: usize = offset_of!(Record, generation) / 8;
const AF_INET: u16 = 2;

/// The programs take the lowest free slot (FREE is a stack): behind this many slots in a row that
/// nobody has had, none is in use.
const UNTOUCHED: usize = 64;

/// All records.
#[derive(Debug)]
pub struct Slots {
    words: SharedWords,
    capacity: u32,
}

impl Slots {
    /// Maps the map of `capacity` records.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn map(map: impl AsFd, capacity: u32) -> io::Result<Self> {
        let n_words = usize::try_from(capacity).map_err(io::Error::other)? * WORDS;
        Ok(Self { words: SharedWords::map(map.as_fd(), n_words, Pages::AtOnce)?, capacity })
    }

    /// How many there are.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The records in use. Takes each one's high-water mark back to 0.
    pub fn read(&self, into: &mut Vec<SlotRecord>) {
        into.clear();
        self.each(|slot, words| {
            let mut copy = [0_u64; WORDS];
            for (copy, word) in copy.iter_mut().zip(words) {
                *copy = word.load(Relaxed);
            }
            copy[HIGH_WATER] = words[HIGH_WATER].swap(0, Relaxed);
            into.push(decode(slot, &copy));
        });
    }

    /// The namespaces of the records in use, and what moved in each.
    #[must_use]
    pub fn activity(&self) -> BTreeMap<NetnsId, Activity> {
        const MOVING: [usize; 7] = [
            offset_of!(Record, established),
            offset_of!(Record, discarded),
            offset_of!(Record, undone),
            offset_of!(Record, syns),
            offset_of!(Record, full_syn),
            offset_of!(Record, full_ack),
            offset_of!(Record, syn_queue_full),
        ];
        let mut found: BTreeMap<NetnsId, Activity> = BTreeMap::new();
        self.each(|_, words| {
            let half = |offset: usize| half(words[offset / 8].load(Relaxed), offset);
            let activity = found.entry(NetnsId(half(offset_of!(Record, netns)))).or_default();
            let counters = MOVING.iter().map(|offset| words[offset / 8].load(Relaxed));
            let drops =
                half(offset_of!(Record, drops)).wrapping_add(half(offset_of!(Record, final_drops)));
            let sum = counters.fold(u64::from(drops), u64::wrapping_add);
            activity.sum = activity.sum.wrapping_add(sum);
            let pid = Some(Pid(half(offset_of!(Record, pid)))).filter(|pid| pid.0 != 0);
            activity.pid = pid.or(activity.pid);
        });
        found
    }

    /// The listeners of `netns` that were adopted and whose connections were not looked for.
    #[must_use]
    pub fn adopted(&self, netns: NetnsId) -> Vec<Slot> {
        let mut slots = Vec::new();
        self.each(|slot, words| {
            let record = decode(slot, &std::array::from_fn(|at| words[at].load(Relaxed)));
            if record.adopted && record.netns == netns && record.found.is_none() {
                slots.push(slot);
            }
        });
        slots
    }

    /// Calls `look` for each record in use; takes nothing back.
    pub fn each(&self, mut look: impl FnMut(Slot, &[AtomicU64])) {
        let mut untouched = 0;
        for (slot, words) in (0..).map(Slot).zip(self.words.words().chunks_exact(WORDS)) {
            if words[COOKIE].load(Relaxed) != 0 {
                untouched = 0;
                look(slot, words);
                continue;
            }
            untouched += 1;
            if words[GENERATION].load(Relaxed) != 0 {
                untouched = 0;
            }
            if UNTOUCHED < untouched {
                break;
            }
        }
    }

    /// Of the listener in a slot: its cookie, connections that were tagged, and of these the ones
    /// whose end was seen. `None` while the slot is free.
    #[must_use]
    pub fn tagged(&self, slot: Slot) -> Option<(Cookie, u64, u64)> {
        // the ends first, so that the difference is never too small
        let closed = self.record(slot)[offset_of!(Record, closed) / 8].load(Relaxed);
        let record = decode(slot, &self.copy(slot));
        (record.cookie.0 != 0).then_some((record.cookie, record.tagged(), closed))
    }

    /// What the iterator or the sweep left in a record, if it came by in `pass`.
    #[must_use]
    pub fn visit(&self, slot: Slot, pass: u32) -> Option<Visit> {
        let copy = self.copy(slot);
        (four(&copy, offset_of!(Record, pass)) == pass).then(|| Visit {
            length: four(&copy, offset_of!(Record, length)),
            limit: four(&copy, offset_of!(Record, limit)),
            drops: four(&copy, offset_of!(Record, drops)),
            syn_queue: four(&copy, offset_of!(Record, syn_queue)),
            inode: Inode(four(&copy, offset_of!(Record, inode)).into()),
            port: two(&copy, offset_of!(Record, port)),
            v6only: four(&copy, offset_of!(Record, v6only)) != 0,
        })
    }

    /// Clears a record for its next listener. Events of children that still carry the old
    /// generation are counted as stale from here on.
    pub fn clear(&self, slot: Slot) {
        let generation = four(&self.copy(slot), offset_of!(Record, generation)).wrapping_add(1);
        let mut bytes = [0; 8];
        let start = offset_of!(Record, generation) % 8;
        bytes[start..start + 4].copy_from_slice(&generation.to_ne_bytes());
        let record = self.record(slot);
        // first: what comes late must not count in the cleared record
        record[GENERATION].store(u64::from_ne_bytes(bytes), Release);
        for (at, word) in record.iter().enumerate() {
            if at != GENERATION {
                word.store(0, Release);
            }
        }
    }

    /// Where a record's listener listens, and what names the record.
    #[must_use]
    pub fn place(&self, slot: Slot) -> (Place, Holder) {
        let copy = self.copy(slot);
        let place = Place {
            addr: sixteen(&copy, offset_of!(Record, addr)),
            port: two(&copy, offset_of!(Record, port)),
            family: two(&copy, offset_of!(Record, family)),
            member: 0,
        };
        let generation = four(&copy, offset_of!(Record, generation));
        (place, Holder { slot: slot.0, generation })
    }

    /// How much of an adopted listener's queue, as the iterator last saw it, is from before the
    /// programs.
    #[must_use]
    pub fn queued_before(&self, slot: Slot) -> u32 {
        let copy = self.copy(slot);
        let established = copy[offset_of!(Record, established) / 8];
        let length = four(&copy, offset_of!(Record, length));
        length.saturating_sub(u32::try_from(established).unwrap_or(u32::MAX))
    }

    /// Before connections from before the programs are looked for: none is found so far, neither
    /// queued nor accepted.
    pub fn begin_search(&self, slot: Slot) {
        self.set_four(slot, offset_of!(Record, base), 0);
        self.set_four(slot, offset_of!(Record, found), 0);
    }

    /// After it: `length` is the queue as the iterator saw it then. What is in the queue and was
    /// neither found nor established since has been reset, and is in no table of sockets.
    pub fn end_search(&self, slot: Slot, length: u32) {
        let copy = self.copy(slot);
        let base = four(&copy, offset_of!(Record, base));
        let established = copy[offset_of!(Record, established) / 8];
        let known = u64::from(base).saturating_add(established);
        let reset = u64::from(length).saturating_sub(known).min(u64::from(u32::MAX >> RESET_SHIFT));
        let reset = u32::try_from(reset).unwrap_or(0) << RESET_SHIFT;
        self.set_four(slot, offset_of!(Record, marks), reset | SEARCHED);
    }

    /// Sets half of a word. The other half is the agent's own, or written by the iterator alone,
    /// which does not run meanwhile.
    fn set_four(&self, slot: Slot, offset: usize, value: u32) {
        let word = &self.record(slot)[offset / 8];
        let mut bytes = word.load(Relaxed).to_ne_bytes();
        bytes[offset % 8..offset % 8 + 4].copy_from_slice(&value.to_ne_bytes());
        word.store(u64::from_ne_bytes(bytes), Release);
    }

    /// Lets events of a listener pass a filter by owner, or not; unless another listener has its
    /// slot.
    pub fn watch(&self, slot: Slot, cookie: Cookie, watched: bool) {
        let mut bit = [0; 8];
        let at = offset_of!(Record, marks) % 8;
        bit[at..at + 4].copy_from_slice(&WATCHED.to_ne_bytes());
        let (record, bit) = (self.record(slot), u64::from_ne_bytes(bit));
        // the other half of the word is not ours: atomic, so that it stays
        let word = &record[offset_of!(Record, marks) / 8];
        if record[COOKIE].load(Relaxed) != cookie.0 {
            return;
        }
        if watched {
            word.fetch_or(bit, Relaxed);
        } else {
            word.fetch_and(!bit, Relaxed);
        }
    }

    fn copy(&self, slot: Slot) -> [u64; WORDS] {
        let record = self.record(slot);
        std::array::from_fn(|at| record[at].load(Relaxed))
    }

    fn record(&self, slot: Slot) -> &[AtomicU64] {
        let start = slot.0 as usize * WORDS;
        &self.words.words()[start..start + WORDS]
    }
}

/// A listener as the iterator or the sweep saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visit {
    /// Connections in the accept queue.
    pub length: u32,
    /// The accept-queue limit.
    pub limit: u32,
    /// `sk_drops`.
    pub drops: u32,
    /// Request socks in the SYN queue.
    pub syn_queue: u32,
    /// Its inode, by the sweep alone.
    pub inode: Inode,
    /// Its port.
    pub port: u16,
    /// `IPV6_V6ONLY`, by the sweep alone.
    pub v6only: bool,
}

impl Visit {
    /// The socket of `record`, as the sweep saw it.
    #[must_use]
    pub fn socket(&self, record: &SlotRecord) -> ListenSocket {
        ListenSocket {
            cookie: record.cookie,
            inode: self.inode,
            addr: record.addr,
            port: self.port,
            v6only: self.v6only,
            length: self.length,
            limit: self.limit,
            drops: Ok(self.drops),
        }
    }
}

/// The host-wide cells.
#[derive(Debug)]
pub struct Cells {
    words: SharedWords,
}

impl Cells {
    /// Maps the map of cells.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn map(map: impl AsFd) -> io::Result<Self> {
        let n_words = usize::try_from(cell::COUNT).map_err(io::Error::other)?;
        Ok(Self { words: SharedWords::map(map.as_fd(), n_words, Pages::AtOnce)? })
    }

    /// Reads one cell of `backlogd_abi::cell`.
    #[must_use]
    pub fn get(&self, index: u32) -> u64 {
        self.words.words().get(index as usize).map_or(0, |word| word.load(Relaxed))
    }

    /// Sets one cell.
    pub fn set(&self, index: u32, value: u64) {
        if let Some(word) = self.words.words().get(index as usize) {
            word.store(value, Release);
        }
    }
}

/// What a record showed of the namespace that it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Sum of what makes the namespace's own counters move; wraps.
    pub sum: u64,
    /// A process that called listen(2) there.
    pub pid: Option<Pid>,
}

fn four(copy: &[u64; WORDS], offset: usize) -> u32 {
    half(copy[offset / 8], offset)
}

/// The half of a word that is at `offset` in the record.
fn half(word: u64, offset: usize) -> u32 {
    let bytes = word.to_ne_bytes();
    let at = offset % 8;
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn two(copy: &[u64; WORDS], offset: usize) -> u16 {
    let bytes = copy[offset / 8].to_ne_bytes();
    u16::from_ne_bytes([bytes[offset % 8], bytes[offset % 8 + 1]])
}

fn sixteen(copy: &[u64; WORDS], offset: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&copy[offset / 8].to_ne_bytes());
    bytes[8..].copy_from_slice(&copy[offset / 8 + 1].to_ne_bytes());
    bytes
}

fn decode(slot: Slot, copy: &[u64; WORDS]) -> SlotRecord {
    let word = |offset: usize| copy[offset / 8];
    let addr = sixteen(copy, offset_of!(Record, addr));
    let comm = sixteen(copy, offset_of!(Record, comm));
    let flags: u32 = four(copy, offset_of!(Record, flags));
    let last = word(offset_of!(Record, last));
    let marks = four(copy, offset_of!(Record, marks));
    let (searched, reset) = (marks & SEARCHED != 0, u64::from(marks >> RESET_SHIFT));
    let base = u64::from(four(copy, offset_of!(Record, base)));
    let length_mask = (1 << LENGTH_BITS) - 1;
    SlotRecord {
        slot,
        cookie: Cookie(word(offset_of!(Record, cookie))),
        netns: NetnsId(four(copy, offset_of!(Record, netns))),
        addr: if two(copy, offset_of!(Record, family)) == AF_INET {
            IpAddr::V4(Ipv4Addr::new(addr[0], addr[1], addr[2], addr[3]))
        } else {
            IpAddr::V6(Ipv6Addr::from(addr))
        },
        port: two(copy, offset_of!(Record, port)),
        established: word(offset_of!(Record, established)),
        closed: word(offset_of!(Record, closed)),
        discarded: word(offset_of!(Record, discarded)),
        resets: word(offset_of!(Record, resets)),
        undone: word(offset_of!(Record, undone)),
        high_water: u32::try_from(word(offset_of!(Record, high_water))).unwrap_or(u32::MAX),
        last: (last >> LENGTH_BITS, u32::try_from(last & length_mask).unwrap_or(u32::MAX)),
        base: base + if searched { reset } else { 0 },
        untagged: if searched { reset } else { base },
        found: searched.then(|| four(copy, offset_of!(Record, found)).into()),
        accepted: word(offset_of!(Record, accepted)),
        syns: word(offset_of!(Record, syns)),
        cookies: word(offset_of!(Record, cookies)),
        drops: HookedDrops {
            full_syn: word(offset_of!(Record, full_syn)),
            full_ack: word(offset_of!(Record, full_ack)),
            syn_queue_full: word(offset_of!(Record, syn_queue_full)),
        },
        syn_queue: None,
        live: None,
        pid: Some(Pid(four(copy, offset_of!(Record, pid)))).filter(|pid| pid.0 != 0),
        final_drops: (flags & DESTROYED != 0).then(|| four(copy, offset_of!(Record, final_drops))),
        adopted: flags & ADOPTED != 0,
        listened_by: (flags & ADOPTED == 0).then_some(comm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a record whose every byte differs from its neighbours'.
    fn words() -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for (i, word) in (0_u64..).zip(&mut words) {
            *word = u64::from_ne_bytes(std::array::from_fn(|b| {
                u8::try_from((i * 8) + u64::try_from(b).unwrap()).unwrap()
            }));
        }
        words
    }

    #[test]
    fn every_field_is_read_where_the_programs_write_it() {
        let mut words = words();
        let at = offset_of!(Record, flags);
        let mut flags = words[at / 8].to_ne_bytes();
        flags[at % 8..at % 8 + 4].copy_from_slice(&DESTROYED.to_ne_bytes());
        words[at / 8] = u64::from_ne_bytes(flags);
        let at = offset_of!(Record, marks);
        let mut marks = words[at / 8].to_ne_bytes();
        marks[at % 8..at % 8 + 4].copy_from_slice(&(SEARCHED | 3 << RESET_SHIFT).to_ne_bytes());
        words[at / 8] = u64::from_ne_bytes(marks);
        let record = decode(Slot(7), &words);
        let byte = |at: usize| u8::try_from(at).unwrap();
        let four = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| byte(at + i)));
        assert_eq!(Slot(7), record.slot);
        assert_eq!(words[1], record.established);
        assert_eq!(words[offset_of!(Record, full_ack) / 8], record.drops.full_ack);
        assert_eq!(u64::from(four(offset_of!(Record, base))) + 3, record.base);
        assert_eq!(3, record.untagged);
        assert_eq!(NetnsId(four(offset_of!(Record, netns))), record.netns);
        assert_eq!(Some(four(offset_of!(Record, final_drops))), record.final_drops);
        assert_eq!(Some(four(offset_of!(Record, found)).into()), record.found);
        let comm: [u8; 16] = std::array::from_fn(|i| byte(offset_of!(Record, comm) + i));
        assert_eq!(Some(comm), record.listened_by);
        let port = offset_of!(Record, port);
        assert_eq!(u16::from_ne_bytes([byte(port), byte(port + 1)]), record.port);
        let IpAddr::V6(addr) = record.addr else { panic!("{record:?}") };
        assert_eq!(byte(offset_of!(Record, addr)), addr.octets()[0]);
        assert!(!record.adopted);
    }
}
