//! Tries the ways of the table on this kernel, event by event, and keeps what it answered.

use std::{error::Error, io, iter, path::Path, sync::Arc};

use aya::{
    Btf as KernelBtf, Ebpf,
    programs::{Program as Loaded, ProgramError, TestRun as _, TracePoint},
};
use backlogd_abi::{ABSENT, Offsets};

use super::{
    btf::Btf,
    hooks::{self, Attach, GROUPS, Group, Need, Program, REQUIRED, REQUIRED_EVENTS, SYSCALLS, Way},
};
use crate::{
    input::{Hook, Refused, Tier},
    sources::machine,
};

/// Of a verifier's log, how much is shown at debug level.
const LOG_TAIL: usize = 1000;

/// What may be tried, and what is known of the kernel.
pub(super) struct Attacher<'a> {
    pub(super) ebpf: &'a mut Ebpf,
    pub(super) kernel: &'a KernelBtf,
    pub(super) btf: &'a Btf<'a>,
    pub(super) offsets: &'a Offsets,
    /// The best tier that may be tried.
    pub(super) best: Tier,
    /// Whether the system calls' exits may be switched on for good.
    pub(super) syscalls: bool,
}

/// How everything is obtained.
#[derive(Debug, Default)]
pub(super) struct Attached {
    pub(super) hooks: Vec<Hook>,
    /// Whether a program knows children by their address alone.
    pub(super) by_address: bool,
}

impl Attacher<'_> {
    /// Attaches the best way for each event.
    pub(super) fn attach_all(&mut self) -> Attached {
        let mut attached = Attached::default();
        for group in GROUPS {
            let mut refused = Vec::new();
            let served = group.ways.iter().find(|way| match self.attach_way(way) {
                Ok(()) => true,
                Err(why) => {
                    let program = hooks::face(way);
                    tracing::debug!(event = group.events[0], program, %why, "refused");
                    refused.push(Refused { tier: way.tier, program, why: why.into() });
                    false
                }
            });
            attached.by_address |= served.is_some_and(|way| way.by_address);
            attached.hooks.extend(rows(group, served, &refused.into()));
        }
        attached
    }

    /// Attaches the programs without which nothing works.
    ///
    /// # Errors
    /// The program, and what the kernel answered.
    pub(super) fn attach_required(&mut self) -> Result<Vec<Hook>, (&'static str, String)> {
        for program in REQUIRED {
            self.attach(program).map_err(|why| (program.name, why))?;
        }
        let hook = |&(event, program)| row(event, Tier::Tracepoint, program, "", &Arc::default());
        Ok(REQUIRED_EVENTS.iter().map(hook).collect())
    }

    /// All of a way, or nothing of it.
    fn attach_way(&mut self, way: &Way) -> Result<(), String> {
        if way.tier < self.best {
            return Err(format!("not wanted: tier {}", self.best.name()));
        }
        way.needs.iter().try_for_each(|need| self.has(*need))?;
        for (i, program) in way.programs.iter().enumerate() {
            if let Err(why) = self.attach(program) {
                if program.is_optional {
                    tracing::debug!(program = program.name, %why, "left out");
                    continue;
                }
                way.programs[..=i].iter().for_each(|program| self.detach(program));
                return Err(why);
            }
        }
        Ok(())
    }

    pub(super) fn has(&self, need: Need) -> Result<(), String> {
        let field = |offset: u32, name: &str| match offset {
            ABSENT => Err(format!("this kernel has no field {name}")),
            _ => Ok(()),
        };
        let offsets = self.offsets;
        match need {
            Need::Probe if offsets.may_probe == 0 => {
                Err("lockdown refuses reads of kernel memory".into())
            }
            Need::Probe => Ok(()),
            Need::Syncookies => field(offsets.syncookies, "net.ipv4.sysctl_tcp_syncookies"),
            Need::SkbProtocol => field(offsets.skb_protocol, "sk_buff.protocol"),
            Need::SocketSk => field(offsets.socket_sk, "socket.sk"),
            Need::Descriptor => field(offsets.files, "task_struct.files")
                .and_then(|()| field(offsets.fdt, "files_struct.fdt"))
                .and_then(|()| field(offsets.fd, "fdtable.fd"))
                .and_then(|()| field(offsets.private_data, "file.private_data"))
                .and_then(|()| field(offsets.first_argument, "pt_regs.di")),
            Need::ListenOverflow if offsets.listen_overflow == ABSENT => {
                Err("this kernel has no drop reason TCP_LISTEN_OVERFLOW".into())
            }
            Need::ListenOverflow => Ok(()),
            Need::Socket => field(offsets.inode, "socket_alloc.vfs_inode")
                .and_then(|()| field(offsets.v6only_byte, "sock_common.skc_ipv6only")),
            Need::Switch if !self.syscalls => Err("accept_tracepoints is off".into()),
            Need::Switch => Ok(()),
        }
    }

    /// Loads and attaches one program, unless another event has had it attached.
    fn attach(&mut self, program: &Program) -> Result<(), String> {
        self.check_arguments(program)?;
        let Some(loaded) = self.ebpf.program_mut(program.name) else {
            return Err("not in the object".into());
        };
        if loaded.fd().is_ok() {
            return Ok(());
        }
        if matches!(program.attach, Attach::Kprobe | Attach::Kretprobe) && !has_kprobes() {
            return Err("this kernel has no kprobes".into());
        }
        let result = load(loaded, program, self.kernel);
        result.map_err(|err| {
            log_verifier(program.name, &err);
            last_cause(&err)
        })
    }

    /// A program reads its target's arguments by position: they must be what it takes them for.
    fn check_arguments(&self, program: &Program) -> Result<(), String> {
        let target = program.target;
        let found = match program.attach {
            Attach::Syscall | Attach::Iterator | Attach::Run => return Ok(()),
            Attach::Tracepoint => self.btf.tracepoint(target),
            Attach::Fentry | Attach::Fexit | Attach::Kprobe | Attach::Kretprobe => {
                self.btf.parameters(target)
            }
        };
        let found = found.ok_or_else(|| match program.attach {
            Attach::Tracepoint => format!("this kernel has no tracepoint {target}"),
            _ => format!("this kernel has no function {target}"),
        })?;
        for &(at, expected) in program.arguments {
            if found.get(at) != Some(&expected.as_bytes()) {
                return Err(format!("argument {at} of {target} is no struct {expected}"));
            }
        }
        match program.n_arguments {
            Some(n) if n != found.len() => {
                Err(format!("{target} has {} arguments, expected {n}", found.len()))
            }
            _ => Ok(()),
        }
    }

    fn detach(&mut self, program: &Program) {
        detach(self.ebpf, program);
    }
}

/// Whether programs can be attached by kprobes: the verifier takes long for one that is of no use.
fn has_kprobes() -> bool {
    Path::new(machine::KPROBE).exists()
}

/// Switches the system calls' exits on, all or none.
///
/// # Errors
/// What the kernel answered.
pub(super) fn attach_syscalls(ebpf: &mut Ebpf) -> Result<(), String> {
    for (i, program) in SYSCALLS.iter().enumerate() {
        let result = match ebpf.program_mut(program.name) {
            Some(Loaded::TracePoint(loaded)) => {
                load_syscall(loaded, program.target).map_err(|err| last_cause(&err))
            }
            _ => Err("not in the object".into()),
        };
        if let Err(why) = result {
            // this one, too: it may be loaded
            SYSCALLS[..=i].iter().for_each(|program| detach(ebpf, program));
            return Err(why);
        }
    }
    Ok(())
}

/// Switches them off.
pub(super) fn detach_syscalls(ebpf: &mut Ebpf) {
    SYSCALLS.iter().for_each(|program| detach(ebpf, program));
}

fn detach(ebpf: &mut Ebpf, program: &Program) {
    let result = match ebpf.program_mut(program.name) {
        Some(Loaded::FEntry(program)) => program.unload(),
        Some(Loaded::FExit(program)) => program.unload(),
        Some(Loaded::KProbe(program)) => program.unload(),
        Some(Loaded::TracePoint(program)) => program.unload(),
        Some(Loaded::BtfTracePoint(program)) => program.unload(),
        Some(Loaded::RawTracePoint(program)) => program.unload(),
        _ => Ok(()),
    };
    if let Err(err) = result {
        tracing::debug!(program = program.name, error = %err, "not unloaded");
    }
}

fn load(loaded: &mut Loaded, how: &Program, kernel: &KernelBtf) -> Result<(), ProgramError> {
    let target = how.target;
    match (loaded, how.attach) {
        (Loaded::BtfTracePoint(program), Attach::Tracepoint) => {
            program.load(target, kernel)?;
            program.attach().map(drop)
        }
        (Loaded::FEntry(program), Attach::Fentry) => {
            program.load(target, kernel)?;
            program.attach().map(drop)
        }
        (Loaded::FExit(program), Attach::Fexit) => {
            program.load(target, kernel)?;
            program.attach().map(drop)
        }
        (Loaded::KProbe(program), Attach::Kprobe | Attach::Kretprobe) => {
            program.load()?;
            program.attach(target, 0).map(drop)
        }
        (Loaded::TracePoint(program), Attach::Syscall) => load_syscall(program, target),
        (Loaded::Iter(program), Attach::Iterator) => program.load(target, kernel),
        (Loaded::RawTracePoint(program), Attach::Run) => {
            program.load()?;
            // whether this kernel runs it, behind the last record
            program.test_run(super::sweep_from(u64::from(u32::MAX))).map(drop)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn load_syscall(program: &mut TracePoint, target: &str) -> Result<(), ProgramError> {
    program.load()?;
    program.attach("syscalls", target).map(drop)
}

fn rows(group: &Group, served: Option<&Way>, refused: &Arc<[Refused]>) -> Vec<Hook> {
    let (tier, program, why) = match served {
        Some(way) => (way.tier, hooks::face(way), ""),
        None => group.otherwise,
    };
    group.events.iter().map(|event| row(event, tier, program, why, refused)).collect()
}

fn row(
    event: &'static str,
    tier: Tier,
    program: &'static str,
    why: &str,
    refused: &Arc<[Refused]>,
) -> Hook {
    Hook { event, tier, program, why: why.into(), refused: refused.clone() }
}

/// How listen drops are counted: by the hooks that tell their reasons, or from `sk_drops`.
pub(super) fn drop_row(hooks: &[Hook]) -> Hook {
    let all = ["syn_drop", "ack_drop"];
    let is_served = |event| hooks.iter().any(|hook| hook.event == event && hook.tier != Tier::None);
    let why = if all.into_iter().all(is_served) { "" } else { "not every reason is told" };
    row("drop", Tier::Sampled, "sk_drops", why, &Arc::default())
}

/// How each event is obtained without any program.
pub(super) fn without_programs(why: &str) -> Arc<[Hook]> {
    let refused = Arc::default();
    let groups = GROUPS.iter().flat_map(|group| group.events).copied();
    let required = REQUIRED_EVENTS.iter().map(|(event, _)| *event).filter(|it| *it != "listen");
    let none = required.chain(groups).map(|event| row(event, Tier::None, "", why, &refused));
    iter::once(row("listen", Tier::Sampled, "sock_diag", why, &refused))
        .chain(none)
        .chain([row("drop", Tier::Sampled, "sk_drops", "the reasons are not told apart", &refused)])
        .collect()
}

fn log_verifier(program: &str, error: &ProgramError) {
    if let ProgramError::LoadError { verifier_log, .. } = error {
        let log = verifier_log.to_string();
        let tail = log.get(log.len().saturating_sub(LOG_TAIL)..).unwrap_or(&log);
        tracing::debug!(program, log = tail, "refused by the verifier");
    }
}

/// The innermost cause, on one line: aya's own texts repeat or drop it.
pub(super) fn last_cause(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(Some(error), |err| (**err).source());
    let Some(cause) = causes.last() else { return String::new() };
    // ENOTSUPP, which user space has no name for: more arguments than a trampoline takes
    if let Some(524) = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
        return "not supported (ENOTSUPP, 524): too many arguments for fentry".into();
    }
    cause.to_string().lines().next().unwrap_or_default().to_owned()
}
