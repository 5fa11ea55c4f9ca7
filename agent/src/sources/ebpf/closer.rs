//! A closer look: the tracepoints of system calls, on for a few seconds.
//!
//! They cost every system call of the host some 30 ns while they are on (`syscall_trace_enter`,
//! kernel/entry/common.c), so somebody must ask for them, and whoever asks says when to stop. They
//! go with the process, however it ends: the kernel detaches what hangs on a descriptor.

use super::{
    Programs,
    attach::{self, Attacher},
    hooks::SYSCALL_NEEDS,
};
use crate::input::{Absent, CloserLooks, Hook, Known, Tier};

/// Whether closer looks are possible, and how many there were.
#[derive(Debug)]
pub(super) enum Closer {
    /// Other hooks see as much.
    NotNeeded,
    /// It cannot be had, and why.
    Refused(String),
    Possible(CloserLooks),
}

impl Closer {
    pub(super) fn new(hooks: &[Hook], attacher: &Attacher<'_>) -> Self {
        let served = |hook: &Hook| hook.event == "accept_error" && hook.tier < Tier::Sampled;
        if hooks.iter().any(served) {
            return Self::NotNeeded;
        }
        match SYSCALL_NEEDS.iter().try_for_each(|need| attacher.has(*need)) {
            Ok(()) => Self::Possible(CloserLooks::default()),
            Err(why) => Self::Refused(why),
        }
    }

    pub(super) fn seen(&self) -> Known<CloserLooks> {
        match self {
            Self::NotNeeded | Self::Refused(_) => Err(Absent::NotOnThisKernel),
            Self::Possible(looks) => Ok(*looks),
        }
    }

    /// Whether what it sees has been seen for some time.
    pub(super) fn has_looked(&self) -> Known<()> {
        self.seen().and_then(|looks| if 0 < looks.count { Ok(()) } else { Err(Absent::TooEarly) })
    }
}

impl Programs {
    /// Switches the closer look on or off.
    ///
    /// # Errors
    /// What the kernel answered, each time that it is wanted and cannot be had.
    pub fn look_closer(&mut self, on: bool) -> Result<(), String> {
        let looks = match &mut self.closer {
            Closer::NotNeeded => return Ok(()),
            Closer::Refused(why) => return if on { Err(why.clone()) } else { Ok(()) },
            Closer::Possible(looks) => looks,
        };
        match (on, looks.is_on) {
            (true, false) => {
                attach::attach_syscalls(&mut self.ebpf)?;
                *looks = CloserLooks { count: looks.count + 1, is_on: true };
            }
            (false, true) => {
                attach::detach_syscalls(&mut self.ebpf);
                looks.is_on = false;
            }
            (true, true) | (false, false) => {}
        }
        Ok(())
    }
}
