//! As much of the ELF format as the checks need: sections by name, eBPF instructions.
//!
//! In: the bytes of a little-endian 64-bit object. Out: [`Section`]s. Not here: segments, symbols,
//! relocations.

use std::ffi::CStr;

use anyhow::{Context, Result, ensure};

/// `SHT_NOBITS`: a section without bytes in the file.
const NOBITS: usize = 8;
/// `SHF_EXECINSTR`
const EXECUTABLE: usize = 4;
/// Size of an eBPF instruction.
const INSTRUCTION: usize = 8;
/// `BPF_LD | BPF_DW | BPF_IMM`: the one instruction of two slots.
const LOAD_IMM64: u8 = 0x18;

/// One section of an object.
pub(crate) struct Section<'a> {
    pub(crate) name: &'a str,
    pub(crate) data: &'a [u8],
    pub(crate) executable: bool,
}

/// An eBPF instruction, as far as the checks look at it.
pub(crate) struct Instruction {
    pub(crate) opcode: u8,
    pub(crate) imm: i32,
}

/// All sections of `object`, in the order of the file.
pub(crate) fn sections(object: &[u8]) -> Result<Vec<Section<'_>>> {
    ensure!(object.starts_with(b"\x7fELF\x02\x01"), "not a little-endian 64-bit ELF file");
    let (table, size) = (number(object, 0x28, 8)?, number(object, 0x3a, 2)?);
    let (count, names) = (number(object, 0x3c, 2)?, number(object, 0x3e, 2)?);
    let header = |index: usize| slice(object, table.saturating_add(index * size), size);
    let names = body(object, header(names)?)?;
    let section = |index| {
        let header = header(index)?;
        let name = text(names, number(header, 0, 4)?)?;
        let executable = number(header, 8, 8)? & EXECUTABLE != 0;
        Ok(Section { name, data: body(object, header)?, executable })
    };
    (0..count).map(section).collect()
}

/// The bytes of the section that `header` describes.
fn body<'a>(object: &'a [u8], header: &[u8]) -> Result<&'a [u8]> {
    match number(header, 4, 4)? {
        NOBITS => Ok(&[]),
        _ => slice(object, number(header, 0x18, 8)?, number(header, 0x20, 8)?),
    }
}

/// The `length` bytes from `offset` on.
fn slice(bytes: &[u8], offset: usize, length: usize) -> Result<&[u8]> {
    bytes
        .get(offset..)
        .and_then(|rest| rest.get(..length))
        .with_context(|| format!("ELF: {length} bytes at {offset}, got {}", bytes.len()))
}

/// The little-endian number of `length` bytes, at most 8, at `offset`.
fn number(bytes: &[u8], offset: usize, length: usize) -> Result<usize> {
    let bytes = slice(bytes, offset, length)?;
    Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
}

/// The string at `offset`, up to its NUL.
fn text(strings: &[u8], offset: usize) -> Result<&str> {
    let rest = strings.get(offset..).context("ELF: a name outside of the string table")?;
    Ok(CStr::from_bytes_until_nul(rest)?.to_str()?)
}

impl Section<'_> {
    /// The section as eBPF instructions.
    pub(crate) fn instructions(&self) -> impl Iterator<Item = Instruction> {
        let mut is_second_half = false;
        self.data.chunks_exact(INSTRUCTION).filter_map(move |bytes| {
            if is_second_half {
                is_second_half = false;
                return None;
            }
            is_second_half = bytes[0] == LOAD_IMM64;
            let imm = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            Some(Instruction { opcode: bytes[0], imm })
        })
    }
}
