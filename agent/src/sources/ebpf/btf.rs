//! Field offsets from the running kernel's BTF.
//!
//! In: /sys/kernel/btf/vmlinux (include/uapi/linux/btf.h; Documentation/bpf/btf.rst). Out:
//! [`Offsets`]. Cost: some 10 ms, once. aya parses the same file but keeps the members to itself.

use std::{collections::HashMap, io};

use backlogd_abi::Offsets;
use thiserror::Error;

/// Where the kernel shows its BTF.
pub const PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// Unnamed members and typedefs nest; more than this is a loop in a broken file.
const MAX_DEPTH: u32 = 16;

/// Why an offset could not be had.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The file could not be read.
    #[error("no BTF: {PATH}")]
    Unreadable(#[from] io::Error),
    /// The bytes are not BTF.
    #[error("BTF of {size} bytes is broken at byte {at}")]
    Broken {
        /// Length of the file.
        size: usize,
        /// Where reading failed.
        at: usize,
    },
    /// The kernel has no such field.
    #[error("this kernel has no field {structure}.{path}")]
    NoField {
        /// Name of the structure.
        structure: &'static str,
        /// The member, through nested structures.
        path: &'static str,
    },
}

/// Reads the offsets of the running kernel.
///
/// # Errors
/// [`BtfError`]: no BTF, broken BTF, or a field that this kernel lacks.
pub fn read() -> Result<Offsets, BtfError> {
    offsets(&std::fs::read(PATH)?)
}

fn offsets(data: &[u8]) -> Result<Offsets, BtfError> {
    let btf = Btf::parse(data)?;
    Ok(Offsets {
        state: btf.offset("sock", "__sk_common.skc_state")?,
        family: btf.offset("sock", "__sk_common.skc_family")?,
        port: btf.offset("sock", "__sk_common.skc_num")?,
        addr4: btf.offset("sock", "__sk_common.skc_rcv_saddr")?,
        addr6: btf.offset("sock", "__sk_common.skc_v6_rcv_saddr")?,
        net: btf.offset("sock", "__sk_common.skc_net.net")?,
        inum: btf.offset("net", "ns.inum")?,
        protocol: btf.offset("sock", "sk_protocol")?,
        ack_backlog: btf.offset("sock", "sk_ack_backlog")?,
        max_ack_backlog: btf.offset("sock", "sk_max_ack_backlog")?,
        drops: btf.offset("sock", "sk_drops")?,
        err: btf.offset("sock", "sk_err")?,
        socket: btf.offset("sock", "sk_socket")?,
        qlen: btf.offset("tcp_sock", "inet_conn.icsk_accept_queue.qlen")?,
    })
}

struct Btf<'a> {
    data: &'a [u8],
    /// Where the names begin.
    strings: usize,
    /// Where each type's record begins, by type id; 0 is void.
    types: Vec<usize>,
    structs: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let broken = |at| BtfError::Broken { size: data.len(), at };
        let mut btf = Self { data, strings: 0, types: vec![0], structs: HashMap::new() };
        if data.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(broken(0));
        }
        // struct btf_header: hdr_len, type_off, type_len, str_off
        let field = |at| btf.size(at).ok_or_else(|| broken(at));
        let (header, first, length, strings) = (field(4)?, field(8)?, field(12)?, field(16)?);
        btf.strings = header + strings;
        let mut at = header + first;
        let end = at + length;
        while at < end {
            let next = at + btf.record_size(at).ok_or_else(|| broken(at))?;
            if btf.kind(at) == Some(KIND_STRUCT)
                && let (Some(name), Ok(id)) = (btf.name(at), u32::try_from(btf.types.len()))
            {
                btf.structs.insert(name, id);
            }
            btf.types.push(at);
            at = next;
        }
        Ok(btf)
    }

    /// Byte offset of `path` ("a.b.c") in `structure`. Unnamed members are looked through.
    fn offset(&self, structure: &'static str, path: &'static str) -> Result<u32, BtfError> {
        let find = || {
            let mut at = (0_u32, *self.structs.get(structure.as_bytes())?);
            for name in path.split('.') {
                let (bits, id) = self.member(at.1, name.as_bytes(), 0)?;
                at = (at.0.checked_add(bits)?, id);
            }
            Some(at.0 / 8)
        };
        find().ok_or(BtfError::NoField { structure, path })
    }

    /// Bit offset and type of a member.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let mut at = *self.types.get(usize::try_from(id).ok()?)?;
        let mut hops = depth;
        // through typedef, volatile, const, restrict, type_tag
        while matches!(self.kind(at)?, 8..=11 | 18) {
            hops += 1;
            at = *self.types.get(self.size(at + 8)?)?;
            if MAX_DEPTH < hops {
                return None;
            }
        }
        if MAX_DEPTH < hops || !matches!(self.kind(at)?, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let info = self.word(at + 4)?;
        // with bitfields, the size is in the top byte
        let mask = if info >> 31 == 1 { 0xff_ffff } else { u32::MAX };
        for i in 0..Self::vlen(info) {
            let m = at + 12 + 12 * i;
            let (bits, kind) = (self.word(m + 8)? & mask, self.word(m + 4)?);
            let found = match self.name(m)? {
                b"" => self.member(kind, name, hops + 1),
                n => (n == name).then_some((0, kind)),
            };
            if let Some((further, kind)) = found {
                return Some((bits.checked_add(further)?, kind));
            }
        }
        None
    }

    /// Length of the record at `at`, what follows its three words included.
    fn record_size(&self, at: usize) -> Option<usize> {
        let n = Self::vlen(self.word(at + 4)?);
        Some(
            12 + match self.kind(at)? {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * n,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * n,
                _ => 0,
            },
        )
    }

    fn vlen(info: u32) -> usize {
        usize::from(u16::try_from(info & 0xffff).unwrap_or(0))
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some(self.word(at + 4)? >> 24 & 0x1f)
    }

    fn name(&self, at: usize) -> Option<&'a [u8]> {
        let name = self.data.get(self.strings.checked_add(self.size(at)?)?..)?;
        name.split(|&b| b == 0).next()
    }

    fn size(&self, at: usize) -> Option<usize> {
        usize::try_from(self.word(at)?).ok()
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.data.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_every_field_of_the_running_kernel_or_says_which_is_missing() {
        match read() {
            Ok(found) => {
                assert!(found.family < found.ack_backlog, "{found:?}");
                assert_ne!(0, found.qlen);
            }
            Err(BtfError::Unreadable(_)) => {}
            Err(err) => panic!("{err}"),
        }
    }

    #[test]
    fn a_field_that_is_not_there_is_named() {
        let Ok(data) = std::fs::read(PATH) else { return };
        let btf = Btf::parse(&data).expect("the kernel's own");
        let err = btf.offset("sock", "sk_nonsense").expect_err("no such field");
        assert_eq!("this kernel has no field sock.sk_nonsense", err.to_string());
    }

    #[test]
    fn truncated_btf_is_an_error_wherever_it_ends() {
        let Ok(data) = std::fs::read(PATH) else { return };
        for end in [0, 1, 7, 23, 24, 1000, data.len() / 2] {
            offsets(&data[..end]).expect_err("truncated");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            mut data in prop::collection::vec(any::<u8>(), 0..400),
            types in 0_u32..300,
        ) {
            let _ = offsets(&data);
            // with a header that passes, so that the walk is reached
            if 24 <= data.len() {
                data[..2].copy_from_slice(&MAGIC.to_ne_bytes());
                let words = [24, 0, types, types, 100].map(u32::to_ne_bytes).concat();
                data[4..24].copy_from_slice(&words);
                let _ = offsets(&data);
            }
        }
    }
}
