//! What the kernel's BTF says of structures, functions and enumerations
//! (include/uapi/linux/btf.h; Documentation/bpf/btf.rst). aya parses the same file but keeps
//! members and parameters to itself.

use std::{collections::HashMap, io};

use thiserror::Error;

/// Where the kernel shows its BTF.
pub const PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
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

/// The kernel's types.
pub(super) struct Btf<'a> {
    data: &'a [u8],
    /// Where the names begin.
    strings: usize,
    /// Where each type's record begins, by type id; 0 is void.
    types: Vec<usize>,
    structs: HashMap<&'a [u8], u32>,
    functions: HashMap<&'a [u8], u32>,
    enums: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    /// Indexes the types of `data`.
    ///
    /// # Errors
    /// [`BtfError::Broken`].
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let broken = |at| BtfError::Broken { size: data.len(), at };
        let mut btf = Self {
            data,
            strings: 0,
            types: vec![0],
            structs: HashMap::new(),
            functions: HashMap::new(),
            enums: HashMap::new(),
        };
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
            if let (Some(name), Ok(id)) = (btf.name(at), u32::try_from(btf.types.len())) {
                match btf.kind(at) {
                    Some(KIND_STRUCT) => _ = btf.structs.insert(name, id),
                    Some(KIND_FUNC) => _ = btf.functions.insert(name, id),
                    Some(KIND_ENUM) => _ = btf.enums.insert(name, id),
                    _ => {}
                }
            }
            btf.types.push(at);
            at = next;
        }
        Ok(btf)
    }

    /// For each parameter of a function the name of the structure that it points to; empty for
    /// anything else. `None` when there is no such function.
    pub(super) fn parameters(&self, function: &str) -> Option<Vec<&'a [u8]>> {
        let function = self.record(*self.functions.get(function.as_bytes())?)?;
        self.prototype(self.word(function + 8)?)
    }

    /// The same of a tracepoint, without the first parameter, which is the tracer's own
    /// (`__DEFINE_EVENT`, include/trace/bpf_probe.h).
    pub(super) fn tracepoint(&self, name: &str) -> Option<Vec<&'a [u8]>> {
        let typedef = format!("btf_trace_{name}");
        let at = *self.types.iter().find(|&&at| {
            self.kind(at) == Some(KIND_TYPEDEF) && self.name(at) == Some(typedef.as_bytes())
        })?;
        let pointer = self.record(self.word(at + 8)?)?;
        Some(self.prototype(self.word(pointer + 8)?)?.split_off(1))
    }

    fn prototype(&self, id: u32) -> Option<Vec<&'a [u8]>> {
        let at = self.record(id)?;
        if self.kind(at)? != KIND_FUNC_PROTO {
            return None;
        }
        let parameter = |i| {
            let pointer = self.record(self.word(at + 12 + 8 * i + 4)?)?;
            if self.kind(pointer)? != KIND_PTR {
                return None;
            }
            let target = self.resolved(self.word(pointer + 8)?)?;
            (self.kind(target)? == KIND_STRUCT).then(|| self.name(target))?
        };
        let n = Self::vlen(self.word(at + 4)?);
        Some((0..n).map(|i| parameter(i).unwrap_or_default()).collect())
    }

    /// The number of an enumerator.
    pub(super) fn enumerator(&self, of: &str, name: &str) -> Option<u32> {
        let at = self.record(*self.enums.get(of.as_bytes())?)?;
        let n = Self::vlen(self.word(at + 4)?);
        let found =
            (0..n).map(|i| at + 12 + 8 * i).find(|&e| self.name(e) == Some(name.as_bytes()));
        self.word(found? + 4)
    }

    fn record(&self, id: u32) -> Option<usize> {
        self.types.get(usize::try_from(id).ok()?).copied()
    }

    /// The record of a type, through typedef, volatile, const, restrict and type_tag.
    fn resolved(&self, id: u32) -> Option<usize> {
        let mut at = self.record(id)?;
        for _ in 0..MAX_DEPTH {
            if !matches!(self.kind(at)?, KIND_TYPEDEF..=11 | 18) {
                return Some(at);
            }
            at = self.record(self.word(at + 8)?)?;
        }
        None
    }

    /// Byte offset of `path` ("a.b.c") in `structure`. Unnamed members are looked through.
    pub(super) fn offset(
        &self,
        structure: &'static str,
        path: &'static str,
    ) -> Result<u32, BtfError> {
        Ok(self.bits(structure, path)? / 8)
    }

    /// The same of a bit field of one bit: the byte, and which bit of it.
    pub(super) fn bit(
        &self,
        structure: &'static str,
        path: &'static str,
    ) -> Result<(u32, u32), BtfError> {
        let bits = self.bits(structure, path)?;
        Ok((bits / 8, 1 << (bits % 8)))
    }

    fn bits(&self, structure: &'static str, path: &'static str) -> Result<u32, BtfError> {
        let find = || {
            let mut at = (0_u32, *self.structs.get(structure.as_bytes())?);
            for name in path.split('.') {
                let (bits, id) = self.member(at.1, name.as_bytes(), 0)?;
                at = (at.0.checked_add(bits)?, id);
            }
            Some(at.0)
        };
        find().ok_or(BtfError::NoField { structure, path })
    }

    /// Bit offset and type of a member.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let at = self.resolved(id)?;
        if MAX_DEPTH < depth || !matches!(self.kind(at)?, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let info = self.word(at + 4)?;
        // with bitfields, the size is in the top byte
        let mask = if info >> 31 == 1 { 0xff_ffff } else { u32::MAX };
        for i in 0..Self::vlen(info) {
            let m = at + 12 + 12 * i;
            let (bits, kind) = (self.word(m + 8)? & mask, self.word(m + 4)?);
            let found = match self.name(m)? {
                b"" => self.member(kind, name, depth + 1),
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
            Btf::parse(&data[..end]).map(drop).expect_err("truncated");
        }
    }

    #[test]
    fn parameters_are_named_by_what_they_point_to() {
        let Ok(data) = std::fs::read(PATH) else { return };
        let btf = Btf::parse(&data).expect("the kernel's own");
        let names = |names: &[&'static str]| names.iter().map(|name| name.as_bytes()).collect();
        let request = ["request_sock_ops", "tcp_request_sock_ops", "sock", "sk_buff"];
        assert_eq!(Some(names(&request)), btf.parameters("tcp_conn_request"));
        assert_eq!(Some(names(&["sock", "", ""])), btf.tracepoint("inet_sock_set_state"));
        assert_eq!(None, btf.parameters("tcp_nonsense"));
        assert_eq!(None, btf.tracepoint("tcp_nonsense"));
        assert_eq!(None, btf.enumerator("skb_drop_reason", "NONSENSE"));
    }

    /// Asks everything that can be asked.
    fn look(data: &[u8]) {
        if let Ok(btf) = Btf::parse(data) {
            let _ = crate::sources::ebpf::offsets::offsets(&btf);
            let names: Vec<_> =
                btf.functions.keys().map(|name| String::from_utf8_lossy(name)).collect();
            names.iter().for_each(|name| drop(btf.parameters(name)));
            btf.tracepoint("");
            btf.enumerator("", "");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            mut data in prop::collection::vec(any::<u8>(), 0..400),
            types in 0_u32..300,
        ) {
            look(&data);
            // with a header that passes, so that the walk is reached
            if 24 <= data.len() {
                data[..2].copy_from_slice(&MAGIC.to_ne_bytes());
                let words = [24, 0, types, types, 100].map(u32::to_ne_bytes).concat();
                data[4..24].copy_from_slice(&words);
                look(&data);
            }
        }
    }
}
