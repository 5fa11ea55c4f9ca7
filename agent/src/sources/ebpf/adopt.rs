//! Listeners and connections from before the programs.
//!
//! Cost: once, a walk over every socket of the namespace, some 0.5 µs and 320 bytes of kernel memory
//! for each open connection of a listener.

use std::io;

use aya::maps::HashMap;
use backlogd_abi::{Holder, Place, cell};

use super::Programs;
use crate::id::Slot;

const PLACE: usize = size_of::<Place>();
const HOLDER: usize = size_of::<Holder>();

impl Programs {
    /// Adopts every listener of this thread's namespace, and tags the connections that it has
    /// already: once, right after loading.
    ///
    /// # Errors
    /// What bpf(2) or read(2) answers; the listeners from before are then not followed.
    pub fn adopt(&mut self) -> io::Result<()> {
        if self.served("syn_queue").is_err() {
            return Ok(());
        }
        self.visit(u64::MAX)?;
        let mut records = Vec::new();
        self.slots.read(&mut records);
        records.retain(|record| record.adopted);
        let slots: Vec<Slot> = records.iter().map(|record| record.slot).collect();
        if slots.is_empty() {
            return Ok(());
        }
        self.search(&slots)?;
        self.visit(u64::MAX)?;
        for slot in slots {
            if let Some(visit) = self.slots.visit(slot, self.pass) {
                self.slots.end_search(slot, visit.length);
            }
        }
        Ok(())
    }

    /// Walks every connection of the namespace, and tags those of `slots`.
    fn search(&mut self, slots: &[Slot]) -> io::Result<()> {
        let map = self.ebpf.map_mut("PLACES").ok_or(io::ErrorKind::NotFound)?;
        let mut places: HashMap<_, [u8; PLACE], [u8; HOLDER]> =
            HashMap::try_from(map).map_err(io::Error::other)?;
        let mut keys = Vec::with_capacity(slots.len());
        for slot in slots {
            self.slots.begin_search(*slot);
            let (place, holder) = self.slots.place(*slot);
            let key = place_bytes(&place);
            places.insert(key, holder_bytes(holder), 0).map_err(io::Error::other)?;
            keys.push(key);
        }
        self.cells.set(cell::SEARCH, 1);
        let result = self.visit(u64::MAX);
        self.cells.set(cell::SEARCH, 0);
        let map = self.ebpf.map_mut("PLACES").ok_or(io::ErrorKind::NotFound)?;
        let mut places: HashMap<_, [u8; PLACE], [u8; HOLDER]> =
            HashMap::try_from(map).map_err(io::Error::other)?;
        for key in keys {
            // members of a group share one
            let _ = places.remove(&key);
        }
        result
    }
}

fn place_bytes(place: &Place) -> [u8; PLACE] {
    let mut bytes = [0; PLACE];
    bytes[..16].copy_from_slice(&place.addr);
    bytes[16..18].copy_from_slice(&place.port.to_ne_bytes());
    bytes[18..].copy_from_slice(&place.family.to_ne_bytes());
    bytes
}

fn holder_bytes(holder: Holder) -> [u8; HOLDER] {
    let mut bytes = [0; HOLDER];
    bytes[..4].copy_from_slice(&holder.slot.to_ne_bytes());
    bytes[4..].copy_from_slice(&holder.generation.to_ne_bytes());
    bytes
}
