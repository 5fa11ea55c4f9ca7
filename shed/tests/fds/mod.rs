//! A process that has no descriptor left.

use std::{
    fs::File,
    process::{self, Command},
};

/// This process may have so many descriptors from here on.
pub(crate) fn limit(nofile: usize) {
    let limit = Command::new("prlimit")
        .args([&format!("--pid={}", process::id()), &format!("--nofile={nofile}:{nofile}")])
        .status()
        .expect("prlimit, of util-linux");
    assert!(limit.success());
}

/// Opens files until there is no descriptor for another one.
pub(crate) fn fill() -> Vec<File> {
    let mut files = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(err) => {
                assert_eq!(err.raw_os_error(), Some(libc::EMFILE));
                return files;
            }
        }
    }
}
