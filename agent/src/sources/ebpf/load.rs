//! Loads the object and its maps, and has its programs attached.

use std::{fs, io, sync::Arc};

use aya::{
    Btf as KernelBtf, Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData, Stack},
};
use backlogd_abi::{Offsets, cell};
use rustix::process::{Resource, Rlimit, setrlimit};
use thiserror::Error;

use super::{
    Programs,
    attach::{self, Attached, Attacher, last_cause},
    btf::{self, Btf},
    census::Census,
    closer::Closer,
    failed,
    histograms::Histograms,
    maps::{Cells, Slots},
    offsets,
};
use crate::{
    id::NetnsId,
    input::{Hook, Tier},
};

/// The programs, as `cargo xtask ebpf` built them.
#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../../ebpf/prebuilt/backlogd.x86_64.bpf.o");

/// Why no program runs.
#[derive(Debug, Error)]
pub enum LoadError {
    /// There is no thread to load on.
    #[error("the thread that loads the eBPF programs cannot be started")]
    Thread(#[source] io::Error),
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
// SAFETY: nothing but u32, without padding.
unsafe impl Pod for Constants {}

/// How each event is obtained without any program, and why there is none.
#[must_use]
pub fn hooks_without(why: &str) -> Arc<[Hook]> {
    attach::without_programs(why)
}

/// What to load, and how far to go.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// How many listening sockets can be followed.
    pub slots: u32,
    /// The one namespace whose listeners are followed; `None`: all.
    pub netns: Option<NetnsId>,
    /// The best tier that may be tried.
    pub best: Tier,
    /// Whether system calls' exits may be switched on for good.
    pub accept_tracepoints: bool,
    /// Bytes of the ring buffer for events; a power of two, at least a page.
    pub events_bytes: u32,
}

impl Programs {
    /// Loads the programs and attaches them.
    ///
    /// # Errors
    /// [`LoadError`]: then nothing stays attached.
    pub fn load(options: &LoadOptions) -> Result<Self, LoadError> {
        let data = fs::read(btf::PATH).map_err(btf::BtfError::from)?;
        let types = Btf::parse(&data)?;
        let offsets = offsets::offsets(&types)?;
        let _ = lift_memory_limit();
        match Self::load_object(OBJECT, &types, offsets, options) {
            // lockdown refuses programs that read kernel memory by address
            Err(LoadError::Program { program, why }) => {
                tracing::debug!(program, %why, "once more, without reads of kernel memory");
                let offsets = Offsets { may_probe: 0, ..offsets };
                Self::load_object(OBJECT, &types, offsets, options)
            }
            result => result,
        }
    }

    fn load_object(
        object: &[u8],
        types: &Btf<'_>,
        offsets: Offsets,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let kernel =
            KernelBtf::from_sys_fs().map_err(|err| LoadError::KernelBtf(last_cause(&err)))?;
        let mut ebpf = load_maps(object, &kernel, offsets, options)?;
        let slots = Slots::map(array(&ebpf, "SLOTS")?.fd(), options.slots)
            .map_err(|source| LoadError::Mmap { map: "SLOTS", source })?;
        let slots = Arc::new(slots);
        let cells = Cells::map(array(&ebpf, "CELLS")?.fd())
            .map_err(|source| LoadError::Mmap { map: "CELLS", source })?;
        let histograms = |map| {
            Histograms::map(array(&ebpf, map)?.fd(), options.slots)
                .map_err(|source| LoadError::Mmap { map, source })
        };
        let (waits, durations) = (histograms("WAITS")?, histograms("DURATIONS")?);
        cells.set(cell::NETNS, options.netns.map_or(0, |netns| netns.0.into()));
        let free = fill_free(&mut ebpf, options.slots)?;
        let failed = failed::FailedCalls::take(&mut ebpf).ok_or(LoadError::Map("FAILED"))?;
        let mut attacher = Attacher {
            ebpf: &mut ebpf,
            kernel: &kernel,
            btf: types,
            offsets: &offsets,
            best: options.best,
            syscalls: options.accept_tracepoints,
        };
        let Attached { mut hooks, by_address } = attacher.attach_all();
        cells.set(cell::BY_ADDRESS, by_address.into());
        let required = attacher
            .attach_required()
            .map_err(|(program, why)| LoadError::Program { program, why: with_advice(why) })?;
        hooks.splice(..0, required);
        let closer = Closer::new(&hooks, &attacher);
        let census = Census::open(&ebpf, slots.clone());
        hooks.push(attach::drop_row(&hooks));
        Ok(Self {
            ebpf,
            free,
            slots,
            cells,
            waits,
            durations,
            failed,
            watch: None,
            hooks: hooks.into(),
            closer,
            census,
            pass: 0,
            passes: 0,
            missed: Vec::new(),
            runs: Vec::new(),
        })
    }
}

/// The object with its maps, in the sizes asked for; no program so far.
fn load_maps(
    object: &[u8],
    kernel: &KernelBtf,
    offsets: Offsets,
    options: &LoadOptions,
) -> Result<Ebpf, LoadError> {
    let constants = Constants(offsets);
    let mut loader = EbpfLoader::new();
    loader.btf(Some(kernel)).override_global("OFFSETS", &constants, true);
    for map in ["SLOTS", "FREE", "WAITS", "DURATIONS", "LISTENERS", "PLACES", "CENSUS"] {
        loader.map_max_entries(map, options.slots);
    }
    loader.map_max_entries("EVENTS", options.events_bytes);
    loader.load(object).map_err(|err| LoadError::Object(with_advice(last_cause(&err))))
}

fn fill_free(ebpf: &mut Ebpf, n_slots: u32) -> Result<Stack<MapData, u32>, LoadError> {
    let mut free: Stack<MapData, u32> = ebpf
        .take_map("FREE")
        .and_then(|map| Stack::try_from(map).ok())
        .ok_or(LoadError::Map("FREE"))?;
    for slot in (0..n_slots).rev() {
        free.push(slot, 0).map_err(|err| LoadError::Object(last_cause(&err)))?;
    }
    Ok(free)
}

/// Before 5.11 the memory of maps counts against RLIMIT_MEMLOCK. Only this process' own limit is
/// lifted; where that is refused, the maps may still fit.
fn lift_memory_limit() -> io::Result<()> {
    let unlimited = Rlimit { current: None, maximum: None };
    Ok(setrlimit(Resource::Memlock, unlimited)?)
}

fn with_advice(why: String) -> String {
    if why.starts_with("Operation not permitted") {
        format!("{why}: needs CAP_BPF and CAP_PERFMON, and a kernel that grants them")
    } else {
        why
    }
}

pub(super) fn array<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, LoadError> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Ok(map),
        _ => Err(LoadError::Map(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_object_is_an_error_of_one_line() {
        let options = LoadOptions {
            slots: 16,
            netns: Some(NetnsId(1)),
            best: Tier::Fentry,
            accept_tracepoints: false,
            events_bytes: 4096,
        };
        let Ok(data) = fs::read(btf::PATH) else { return };
        let types = Btf::parse(&data).expect("the kernel's own");
        for end in [0, 4, 64, OBJECT.len() / 2] {
            let object = &OBJECT[..end];
            match Programs::load_object(object, &types, Offsets::default(), &options).map(drop) {
                Err(LoadError::Object(why)) => assert!(!why.contains('\n'), "{why:?}"),
                Err(LoadError::KernelBtf(_)) => {}
                other => panic!("{end} bytes: {other:?}"),
            }
        }
    }
}
