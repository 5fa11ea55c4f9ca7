//! Calls of bpf(2) that aya lacks: an iterator over the elements of one map.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// `enum bpf_cmd`, include/uapi/linux/bpf.h
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
/// `enum bpf_attach_type`
const BPF_TRACE_ITER: u32 = 28;

/// What `BPF_LINK_CREATE` takes of `union bpf_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_len: u32,
    padding: u32,
}

/// What `BPF_ITER_CREATE` takes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct IterCreate {
    link: u32,
    flags: u32,
}

/// A link of an iterator program to the elements of `map` (`bpf_iter_link_attach`,
/// kernel/bpf/bpf_iter.c).
///
/// # Errors
/// `EINVAL` for a program or map of another kind.
pub fn link_iterator(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info`: the map's descriptor
    let info = raw(map);
    let create = LinkCreate {
        program: raw(program),
        target: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        info: (&raw const info).addr() as u64,
        info_len: 4,
        padding: 0,
    };
    call(BPF_LINK_CREATE, &create)
}

/// A file whose reader walks the elements once.
///
/// # Errors
/// What bpf(2) answers.
pub fn open_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    call(BPF_ITER_CREATE, &IterCreate { link: raw(link), flags: 0 })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("a borrowed descriptor is open, and so not negative")
}

/// A command whose result is a descriptor.
fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: the kernel reads `size` bytes of a live structure that begins as `union bpf_attr` does
    // for this command, and what its pointers lead to, which the callers keep alive.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) };
    match i32::try_from(result) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(fd) if 0 <= fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
