//! Counts what happens to each TCP listener: no event crosses to user space unless somebody watches,
//! and nothing is looked up by key where the kernel lets a program use socket storage.
//!
//! A listener's socket storage names its slot. The storage map is `BPF_F_CLONE`: the kernel itself
//! copies the value to every child that it makes (`bpf_sk_storage_clone`,
//! net/core/bpf_sk_storage.c, called by `sk_clone_lock`), so a child knows its listener's slot
//! from birth.
#![no_std]
#![no_main]
// rustc takes the target to have no compare-and-swap and leaves the methods of AtomicU64 out; the
// intrinsics are there.
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the only atomics there are on this target")]

mod hooks {
    pub(crate) mod accept;
    pub(crate) mod ack;
    pub(crate) mod adopt;
    pub(crate) mod census;
    pub(crate) mod close;
    pub(crate) mod enqueue;
    pub(crate) mod failure;
    pub(crate) mod state;
    pub(crate) mod sweep;
    pub(crate) mod syn;
}
mod maps;
mod probe;
mod slot;
mod sock;
mod watch;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
