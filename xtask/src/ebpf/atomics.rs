//! Refuses an object whose atomic operations may not do what the sources say.
//!
//! For `atomic_xadd` in the order `Relaxed` LLVM 22 emits an addition without a result, and hands
//! the operand back as the old value. In the order `SeqCst` every operation gives a result, used
//! or not: an operation without one shows that some source is `Relaxed`.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::elf::{self, Instruction};

/// `BPF_STX | BPF_ATOMIC`, of 8 and of 4 bytes.
const ATOMIC: [u8; 2] = [0xdb, 0xc3];
/// `BPF_FETCH`: the operation gives the old value.
const FETCH: i32 = 0x01;
/// `BPF_OR | BPF_FETCH`, of `once`.
const OR_FETCH: i32 = 0x41;
/// `BPF_CMPXCHG`, of `raise`.
const CMPXCHG: i32 = 0xf1;

/// Looks at the atomic operations of all programs.
pub(crate) fn check(object: &[u8]) -> Result<()> {
    let sections = elf::sections(object)?;
    let programs = sections.iter().filter(|section| section.executable);
    check_kinds(programs.flat_map(elf::Section::instructions))
}

fn check_kinds(instructions: impl Iterator<Item = Instruction>) -> Result<()> {
    let kinds: BTreeSet<i32> = instructions
        .filter(|instruction| ATOMIC.contains(&instruction.opcode))
        .map(|instruction| instruction.imm)
        .collect();
    for kind in &kinds {
        ensure!(kind & FETCH != 0, "atomic operation {kind:#x} gives no result: is it `Relaxed`?");
    }
    for kind in [OR_FETCH, CMPXCHG] {
        ensure!(
            kinds.contains(&kind),
            "atomic operations {kinds:x?}, expected {kind:#x} among them"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh;

    #[track_caller]
    fn check(kinds: &[(u8, i32)], expected: Result<(), &str>) {
        let instructions = kinds.iter().map(|&(opcode, imm)| Instruction { opcode, imm });
        let got = check_kinds(instructions).map_err(|err| err.to_string());
        assert_eq!(got, expected.map_err(Into::into), "{kinds:x?}");
    }

    #[test]
    fn an_operation_without_result_is_refused() {
        check(&[(0xdb, 0x01), (0xdb, 0x41), (0xdb, 0xf1)], Ok(()));
        check(&[(0xdb, 0x41), (0xc3, 0xf1), (0x07, 0x40)], Ok(()));
        let refusal = |kind| format!("atomic operation {kind} gives no result: is it `Relaxed`?");
        check(&[(0xdb, 0x00), (0xdb, 0x41), (0xdb, 0xf1)], Err(&refusal("0x0")));
        check(&[(0xc3, 0x40), (0xdb, 0x41), (0xdb, 0xf1)], Err(&refusal("0x40")));
        check(&[(0xdb, 0xf1)], Err("atomic operations {f1}, expected 0x41 among them"));
        check(&[], Err("atomic operations {}, expected 0x41 among them"));
    }

    #[test]
    fn the_committed_object_is_right() {
        let object = sh::root().unwrap().join(crate::ebpf::OBJECT);
        super::check(&sh::read(&object).unwrap()).unwrap();
    }
}
