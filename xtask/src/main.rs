//! Builds, tests and measures backlogd.

fn main() {}
