//! Refuses an object whose atomic operations do not do what the sources say.
//!
//! For an atomic in the order `Relaxed` LLVM 22 emits an operation without a result and hands the
//! operand back as one: "was this event counted before?" would always be answered no.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::elf::{self, Instruction};

/// `BPF_STX | BPF_ATOMIC`, of 8 and of 4 bytes.
const ATOMIC: [u8; 2] = [0xdb, 0xc3];
/// The result of an addition is used nowhere in the sources, so either form is right.
const ADD: i32 = 0x00;
const ADD_FETCH: i32 = 0x01;
const OR_FETCH: i32 = 0x41;
const CMPXCHG: i32 = 0xf1;

/// Compares the kinds of atomic operations in all programs with those of the sources.
pub(crate) fn check(object: &[u8]) -> Result<()> {
    let sections = elf::sections(object)?;
    let programs = sections.iter().filter(|section| section.executable);
    compare(programs.flat_map(elf::Section::instructions))
}

fn compare(instructions: impl Iterator<Item = Instruction>) -> Result<()> {
    let kinds: BTreeSet<i32> = instructions
        .filter(|instruction| ATOMIC.contains(&instruction.opcode))
        .map(|instruction| instruction.imm)
        .collect();
    let kinds_but_add = &kinds - &BTreeSet::from([ADD, ADD_FETCH]);
    ensure!(
        kinds_but_add == BTreeSet::from([OR_FETCH, CMPXCHG]),
        "atomic operations beside the additions: got {kinds_but_add:#x?}, expected those that give \
         a result, {OR_FETCH:#x} and {CMPXCHG:#x}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh;

    #[track_caller]
    fn check_kinds(kinds: &[(u8, i32)], is_right: bool) {
        let instructions = kinds.iter().map(|&(opcode, imm)| Instruction { opcode, imm });
        assert_eq!(compare(instructions).is_ok(), is_right, "{kinds:x?}");
    }

    #[test]
    fn an_or_without_result_is_refused() {
        check_kinds(&[(0xdb, ADD), (0xdb, OR_FETCH), (0xdb, CMPXCHG)], true);
        check_kinds(&[(0xdb, OR_FETCH), (0xc3, CMPXCHG), (0x07, 0x40)], true);
        check_kinds(&[(0xdb, 0x40), (0xdb, OR_FETCH), (0xdb, CMPXCHG)], false);
        check_kinds(&[(0xc3, 0x40), (0xdb, OR_FETCH), (0xdb, CMPXCHG)], false);
        check_kinds(&[(0xdb, ADD), (0xdb, CMPXCHG)], false);
        check_kinds(&[], false);
    }

    #[test]
    fn the_committed_object_is_right() {
        let object = sh::root().unwrap().join(crate::ebpf::OBJECT);
        check(&sh::read(&object).unwrap()).unwrap();
    }
}
