//! Open files and TCP's memory, of the whole host.
//!
//! In: `/proc/sys/fs/file-nr` (`proc_nr_files`, fs/file_table.c) and `nr_open`. Out: [`HostSample`]. Cost: 10 µs.

use std::fs;

use procfs::ProcError;

use super::sockstat::page_bytes;
use crate::input::{Absent, HostSample, Known, Sockstat, TcpMemoryLimits};

/// Open files and how many there may be, and what any namespace's `sockstat` says of the host.
#[must_use]
pub fn read(sockstat: Known<Sockstat>, tcp_memory_limits: Known<TcpMemoryLimits>) -> HostSample {
    let files = procfs::sys::fs::file_nr().map_err(|error| match error {
        ProcError::PermissionDenied(_) => Absent::NotPermitted,
        _ => Absent::Unreadable,
    });
    HostSample {
        open_fds: files.as_ref().map(|files| files.allocated).map_err(|absent| *absent),
        max_fds: files.map(|files| files.max),
        nr_open: fs::read_to_string("/proc/sys/fs/nr_open")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or(Absent::Unreadable),
        tcp_memory_bytes: sockstat.map(|stat| stat.tcp_memory_pages.saturating_mul(page_bytes())),
        tcp_memory_limits,
        tcp_orphans: sockstat.map(|stat| stat.orphans),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_fewer_than_there_may_be() {
        let HostSample { open_fds, max_fds, nr_open, .. } =
            read(Err(Absent::Unreadable), Err(Absent::Unreadable));
        let (open, max) = (open_fds.unwrap(), max_fds.unwrap());
        assert!(0 < open && open < max, "{open} {max}");
        assert!(1024 <= nr_open.unwrap());
    }
}
