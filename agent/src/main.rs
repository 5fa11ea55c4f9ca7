//! The `backlogd` binary.

fn main() {}
