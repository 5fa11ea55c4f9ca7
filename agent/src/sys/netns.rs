//! Which network namespace a thread is in.

use std::io;

use rustix::fs::stat;

use crate::id::NetnsId;

/// The calling thread's network namespace.
///
/// # Errors
/// When `/proc` is not mounted or hides the thread's `ns` directory.
pub fn current() -> io::Result<NetnsId> {
    let inode = stat("/proc/thread-self/ns/net")?.st_ino;
    // `proc_alloc_inum` (fs/proc/generic.c) gives 32 bits.
    u32::try_from(inode).map(NetnsId).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/thread-self/ns/net: inode {inode}, expected one below 2^32"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_namespace_as_the_link_does() {
        let link = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_eq!(current().unwrap().to_string(), link.to_str().unwrap());
    }
}
