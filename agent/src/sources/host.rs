//! Open files of the whole host.
//!
//! In: `/proc/sys/fs/file-nr` (`proc_nr_files`, fs/file_table.c). Out: [`HostSample`]. Cost: 5 µs.

use procfs::ProcError;

use crate::input::{Absent, HostSample};

/// Open files, and how many there may be.
#[must_use]
pub fn read() -> HostSample {
    match procfs::sys::fs::file_nr() {
        Ok(files) => HostSample { open_fds: Ok(files.allocated), max_fds: Ok(files.max) },
        Err(error) => {
            let absent = match error {
                ProcError::PermissionDenied(_) => Absent::NotPermitted,
                _ => Absent::Unreadable,
            };
            HostSample { open_fds: Err(absent), max_fds: Err(absent) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_fewer_than_there_may_be() {
        let HostSample { open_fds, max_fds } = read();
        let (open, max) = (open_fds.unwrap(), max_fds.unwrap());
        assert!(0 < open && open < max, "{open} {max}");
    }
}
