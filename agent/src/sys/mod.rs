//! The kernel's interfaces that std has no safe call for.

#[expect(unsafe_code, reason = "a descriptor that is passed as a number")]
pub mod activation;
#[expect(unsafe_code, reason = "calls that aya lacks")]
pub mod bpf;
pub mod clock;
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "a call that std and rustix lack"))]
pub mod heap;
#[expect(unsafe_code, reason = "memory shared with the kernel")]
pub mod mmap;
pub mod netlink;
pub mod netns;
#[expect(unsafe_code, reason = "calls that std and rustix lack")]
pub mod signal;
