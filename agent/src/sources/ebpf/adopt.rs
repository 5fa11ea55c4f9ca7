//! Listeners and connections from before the programs.
//!
//! Cost: once for each namespace, a pass over its listeners; where it has connections, too, a walk
//! over the whole hash of sockets (2 ms for 262,144 buckets), some 0.5 µs and 320 bytes of kernel
//! memory for each open connection of a listener.

use std::{collections::BTreeMap, io};

use aya::maps::{HashMap, MapData};
use backlogd_abi::{Place, Seat, cell};

use super::Programs;
use crate::id::{NetnsId, Slot};

const PLACE: usize = size_of::<Place>();
const SEAT: usize = size_of::<Seat>();

impl Programs {
    /// Adopts the listeners of this thread's namespace `netns` that have no slot, `n_listeners` being
    /// all of them, and tags the connections that those have already if there are `connections` at
    /// all.
    ///
    /// # Errors
    /// What bpf(2) or read(2) answers; the listeners are then not followed.
    pub fn adopt(
        &mut self,
        netns: NetnsId,
        n_listeners: usize,
        connections: bool,
    ) -> io::Result<()> {
        if self.served("adopt").is_err() || n_listeners == 0 {
            return Ok(());
        }
        self.visit(n_listeners as u64)?;
        let slots = self.slots.adopted(netns);
        if slots.is_empty() {
            return Ok(());
        }
        if connections {
            self.search(&slots)?;
        } else {
            slots.iter().for_each(|slot| self.slots.begin_search(*slot));
        }
        self.visit(n_listeners as u64)?;
        for slot in slots {
            if let Some(visit) = self.slots.visit(slot, self.pass) {
                self.slots.end_search(slot, visit.length);
            }
        }
        Ok(())
    }

    /// Walks every connection of the namespace, and tags those of `slots`.
    fn search(&mut self, slots: &[Slot]) -> io::Result<()> {
        let mut members: BTreeMap<[u8; PLACE], Vec<Slot>> = BTreeMap::new();
        for slot in slots {
            members.entry(place_bytes(&self.slots.place(*slot).0)).or_default().push(*slot);
        }
        let mut seats = Vec::with_capacity(slots.len());
        for (place, members) in members {
            seats.extend(self.seats(place, &members));
        }
        for slot in slots {
            self.slots.begin_search(*slot);
        }
        let mut places = self.places()?;
        for (place, seat) in &seats {
            places.insert(place, seat, 0).map_err(io::Error::other)?;
        }
        self.cells.set(cell::SEARCH, 1);
        let result = self.visit(u64::MAX);
        self.cells.set(cell::SEARCH, 0);
        let mut places = self.places()?;
        for (place, _) in seats {
            // it is there; what would be left counts nowhere
            let _ = places.remove(&place);
        }
        result
    }

    fn places(&mut self) -> io::Result<HashMap<&mut MapData, [u8; PLACE], [u8; SEAT]>> {
        let map = self.ebpf.map_mut("PLACES").ok_or(io::ErrorKind::NotFound)?;
        HashMap::try_from(map).map_err(io::Error::other)
    }

    /// The seats at one place, in turn: each of `members` has room for what it has queued, the last
    /// one for whatever comes.
    fn seats(&self, place: [u8; PLACE], members: &[Slot]) -> Vec<([u8; PLACE], [u8; SEAT])> {
        let rooms = members.iter().map(|&slot| (slot, self.slots.queued_before(slot)));
        let (queueing, empty): (Vec<_>, Vec<_>) = rooms.partition(|&(_, room)| 0 < room);
        let chosen = if queueing.is_empty() { &empty[..1] } else { &queueing };
        let seat = |(&(slot, room), member): (&(Slot, u32), u32)| {
            let (mut key, holder) = (place, self.slots.place(slot).1);
            key[PLACE - 4..].copy_from_slice(&member.to_ne_bytes());
            let is_last = chosen.last().is_some_and(|&(last, _)| last == slot);
            let room = if is_last { u32::MAX } else { room };
            (key, seat_bytes(Seat { holder, room, next: member + 1 }))
        };
        chosen.iter().zip(0..).map(seat).collect()
    }
}

fn place_bytes(place: &Place) -> [u8; PLACE] {
    let mut bytes = [0; PLACE];
    bytes[..16].copy_from_slice(&place.addr);
    bytes[16..18].copy_from_slice(&place.port.to_ne_bytes());
    bytes[18..20].copy_from_slice(&place.family.to_ne_bytes());
    bytes[20..].copy_from_slice(&place.member.to_ne_bytes());
    bytes
}

fn seat_bytes(Seat { holder, room, next }: Seat) -> [u8; SEAT] {
    let mut bytes = [0; SEAT];
    let words = [holder.slot, holder.generation, room, next];
    for (four, word) in bytes.chunks_exact_mut(4).zip(words) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
