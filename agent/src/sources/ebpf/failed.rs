//! System calls that failed, from the map of the programs.

use std::sync::Arc;

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use backlogd_abi::{ACCEPT, CONNECT};

use crate::{errno::Errno, input::ErrorCounts};

/// A `backlogd_abi::FailedCall`, as bytes.
type Key = [u8; 24];

/// The counts as last read.
#[derive(Debug)]
pub(super) struct FailedCalls {
    map: HashMap<MapData, Key, u64>,
    /// The programs' count of changes when the map was read.
    seen: u64,
    accept: Arc<ErrorCounts>,
    connect: Arc<ErrorCounts>,
}

impl FailedCalls {
    /// Takes the map out of the object; `None` when it has none of that kind.
    pub(super) fn take(ebpf: &mut Ebpf) -> Option<Self> {
        let map = HashMap::try_from(ebpf.take_map("FAILED")?).ok()?;
        Some(Self { map, seen: 0, accept: Arc::default(), connect: Arc::default() })
    }

    /// Failed accepts and failed connects, read anew when the programs have counted since.
    /// An entry that cannot be read is as it was.
    pub(super) fn read(&mut self, changes: u64) -> [Arc<ErrorCounts>; 2] {
        if self.seen != changes {
            self.seen = changes;
            let (accept, connect) =
                (Arc::make_mut(&mut self.accept), Arc::make_mut(&mut self.connect));
            for (key, count) in self.map.iter().flatten() {
                let (call, comm, errno) = decode(&key);
                match call {
                    ACCEPT => _ = accept.insert((comm, errno), count),
                    CONNECT => _ = connect.insert((comm, errno), count),
                    _ => {}
                }
            }
        }
        [self.accept.clone(), self.connect.clone()]
    }
}

fn decode(key: &Key) -> (u32, Arc<str>, Errno) {
    let four = |at: usize| u32::from_ne_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]);
    let comm = key[..16].split(|&byte| byte == 0).next().unwrap_or_default();
    (four(20), String::from_utf8_lossy(comm).into(), Errno(four(16)))
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use backlogd_abi::FailedCall;

    use super::*;

    #[test]
    fn a_key_is_decoded_as_the_programs_write_it() {
        assert_eq!(size_of::<FailedCall>(), size_of::<Key>());
        let mut key: Key = [0; 24];
        key[..5].copy_from_slice(b"nginx");
        key[offset_of!(FailedCall, errno)] = 24;
        key[offset_of!(FailedCall, call)] = 1;
        assert_eq!((CONNECT, "nginx".into(), Errno(24)), decode(&key));
    }
}
