//! The two system calls that no safe crate has: another process's CPU clock, and a program that
//! does nothing.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

/// CPU time of a process, all threads, also those that ended; in nanoseconds, where
/// `/proc/PID/stat` has ticks of 10 ms.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock = 0;
    // SAFETY: `clock` is a live local.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live local.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    let nanos = u64::try_from(time.tv_nsec).map_err(io::Error::other)?;
    Ok(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
}

/// `r0 = 0; exit` on `inet_sock_set_state`: what the kernel's statistics take for nothing.
#[derive(Debug)]
pub(crate) struct EmptyProgram {
    program: OwnedFd,
    _link: OwnedFd,
}

/// The part of `union bpf_attr` for `BPF_PROG_LOAD`, include/uapi/linux/bpf.h
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    rest: [u64; 3],
    prog_name: [u8; 16],
}

/// The part of `union bpf_attr` for `BPF_RAW_TRACEPOINT_OPEN`
#[repr(C)]
struct Open {
    name: u64,
    prog_fd: u32,
    unused: u32,
}

impl EmptyProgram {
    /// Runs until this is dropped.
    pub(crate) fn attach() -> io::Result<Self> {
        const BPF_PROG_LOAD: libc::c_long = 5;
        const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
        const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
        const LICENSE: &CStr = c"GPL";
        const TRACEPOINT: &CStr = c"inet_sock_set_state";
        static CODE: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let program = bpf(
            BPF_PROG_LOAD,
            &Load {
                prog_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
                insn_cnt: 2,
                insns: (&raw const CODE).addr() as u64,
                license: LICENSE.as_ptr().addr() as u64,
                rest: [0; 3],
                prog_name: *b"bench_empty\0\0\0\0\0",
            },
        )?;
        let prog_fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
        let name = TRACEPOINT.as_ptr().addr() as u64;
        let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &Open { name, prog_fd, unused: 0 })?;
        Ok(Self { program, _link: link })
    }

    /// Its descriptor, by which `/proc/self/fdinfo` tells its runs.
    pub(crate) fn fd(&self) -> i32 {
        self.program.as_raw_fd()
    }
}

/// bpf(2), for commands that give a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is what the command reads, with pointers to statics alone.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
