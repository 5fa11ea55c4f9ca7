//! Loads the object, attaches what this kernel takes, and says why not.

use std::{error::Error, io, iter, sync::Arc};

use aya::{
    Btf, Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData, Stack},
    programs::{Program as Loaded, ProgramError},
};
use backlogd_abi::{Offsets, cell};
use thiserror::Error;

use super::{
    IteratorState, Programs, btf,
    hooks::{self, Attach, Need, PROGRAMS},
    maps::{Cells, Slots},
};
use crate::{id::NetnsId, input::Hook};

/// The programs, as `cargo xtask ebpf` built them.
#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../../ebpf/prebuilt/backlogd.x86_64.bpf.o");

/// Of a verifier's log, how much is shown at debug level.
const LOG_TAIL: usize = 1000;

/// Why no program runs.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel does not describe its structures, or lacks a field.
    #[error(transparent)]
    Btf(#[from] btf::BtfError),
    /// aya could not read the kernel's BTF.
    #[error("the kernel's BTF cannot be used: {0}")]
    KernelBtf(String),
    /// The object is broken, or the kernel refused its maps.
    #[error("eBPF maps cannot be created: {0}")]
    Object(String),
    /// The kernel refused a program that nothing works without.
    #[error("eBPF program {program} refused: {why}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The last cause.
        why: String,
    },
    /// A map is missing or of another kind.
    #[error("the eBPF object has no map {0} of the expected kind")]
    Map(&'static str),
    /// A map could not be mapped into memory.
    #[error("eBPF map {map} cannot be mapped into memory")]
    Mmap {
        /// Its name.
        map: &'static str,
        /// What mmap(2) answered.
        source: io::Error,
    },
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Constants(Offsets);

#[expect(unsafe_code, reason = "aya asks for the promise that the type is plain data")]
// SAFETY: fourteen u32, without padding.
unsafe impl Pod for Constants {}

/// How each event is obtained without any program, and why there is none.
#[must_use]
pub fn hooks_without(why: &str) -> Arc<[Hook]> {
    hooks::without_programs(why)
}

impl Programs {
    /// Loads the programs with `slots` slots for the listeners of `netns`, and attaches them.
    ///
    /// # Errors
    /// [`LoadError`]: then nothing stays attached.
    pub fn load(slots: u32, netns: NetnsId) -> Result<Self, LoadError> {
        Self::load_object(OBJECT, slots, netns)
    }

    fn load_object(object: &[u8], n_slots: u32, netns: NetnsId) -> Result<Self, LoadError> {
        let offsets = Constants(btf::read()?);
        let kernel = Btf::from_sys_fs().map_err(|err| LoadError::KernelBtf(last_cause(&err)))?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&kernel)).override_global("OFFSETS", &offsets, true);
        loader.map_max_entries("SLOTS", n_slots).map_max_entries("FREE", n_slots);
        let mut ebpf = loader.load(object).map_err(|err| LoadError::Object(last_cause(&err)))?;

        let slots = Slots::map(array(&ebpf, "SLOTS")?.fd(), n_slots)
            .map_err(|source| LoadError::Mmap { map: "SLOTS", source })?;
        let cells = Cells::map(array(&ebpf, "CELLS")?.fd())
            .map_err(|source| LoadError::Mmap { map: "CELLS", source })?;
        cells.set(cell::NETNS, netns.0.into());
        let mut free: Stack<MapData, u32> = ebpf
            .take_map("FREE")
            .and_then(|map| Stack::try_from(map).ok())
            .ok_or(LoadError::Map("FREE"))?;
        for slot in (0..n_slots).rev() {
            free.push(slot, 0).map_err(|err| LoadError::Object(last_cause(&err)))?;
        }

        let failed = attach_all(&mut ebpf, &kernel)?;
        let adopts = failed.iter().all(|(name, _)| *name != "adopt");
        Ok(Self {
            ebpf,
            free,
            slots,
            cells,
            hooks: hooks::with_programs(&failed),
            iterator: if adopts { IteratorState::Loaded } else { IteratorState::Refused },
            pass: 0,
            passes: 0,
            missed: Vec::new(),
            runs: Vec::new(),
        })
    }
}

/// Which optional programs do not run, and why.
fn attach_all(ebpf: &mut Ebpf, kernel: &Btf) -> Result<Vec<(&'static str, Arc<str>)>, LoadError> {
    let mut failed = Vec::new();
    for program in PROGRAMS {
        let loaded = ebpf.program_mut(program.name);
        let result = match loaded {
            Some(loaded) => attach(loaded, program.attach, kernel).map_err(|err| {
                log_verifier(program.name, &err);
                last_cause(&err)
            }),
            None => Err("not in the object".to_owned()),
        };
        match (result, program.need) {
            (Ok(()), _) => tracing::debug!(program = program.name, "attached"),
            (Err(why), Need::Optional) => {
                tracing::warn!(program = program.name, event = program.event, %why, "refused");
                failed.push((program.name, why.into()));
            }
            (Err(why), Need::Required) => {
                return Err(LoadError::Program { program: program.name, why });
            }
        }
    }
    Ok(failed)
}

fn attach(program: &mut Loaded, how: Attach, kernel: &Btf) -> Result<(), ProgramError> {
    match (program, how) {
        (Loaded::BtfTracePoint(program), Attach::Tracepoint(target)) => {
            program.load(target, kernel)?;
            program.attach().map(drop)
        }
        (Loaded::Iter(program), Attach::Iterator(target)) => program.load(target, kernel),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn array<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, LoadError> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Ok(map),
        _ => Err(LoadError::Map(name)),
    }
}

fn log_verifier(program: &str, error: &ProgramError) {
    if let ProgramError::LoadError { verifier_log, .. } = error {
        let log = verifier_log.to_string();
        let tail = log.get(log.len().saturating_sub(LOG_TAIL)..).unwrap_or(&log);
        tracing::debug!(program, log = tail, "refused by the verifier");
    }
}

/// The innermost cause, on one line: aya's own texts repeat or drop it.
fn last_cause(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(Some(error), |err| (**err).source());
    let Some(cause) = causes.last() else { return String::new() };
    let text = cause.to_string();
    let line = text.lines().next().unwrap_or_default();
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => {
            format!("{line}: needs CAP_BPF and CAP_PERFMON, and a kernel that grants them")
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_object_is_an_error_of_one_line() {
        for end in [0, 4, 64, OBJECT.len() / 2] {
            match Programs::load_object(&OBJECT[..end], 16, NetnsId(1)).map(drop) {
                Err(LoadError::Object(why)) => assert!(!why.contains('\n'), "{why:?}"),
                Err(LoadError::Btf(_) | LoadError::KernelBtf(_)) => {}
                other => panic!("{end} bytes: {other:?}"),
            }
        }
    }
}
