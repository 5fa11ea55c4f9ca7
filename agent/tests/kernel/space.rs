//! Other network namespaces, each with a process that is in it.

use std::{
    path::PathBuf,
    process::{Child, Command},
    thread,
};

use backlogd::{id::NetnsId, sys::netns};

use crate::namespace::{own_netns, run, wait_for};

/// A network namespace whose loopback is up, and the one process that keeps it.
pub(crate) struct Space {
    child: Child,
    pub(crate) netns: NetnsId,
}

impl Space {
    /// Makes one.
    pub(crate) fn new() -> Self {
        let own = own_netns();
        let child = Command::new("unshare").args(["-n", "sleep", "600"]).spawn().expect("unshare");
        let path = PathBuf::from(format!("/proc/{}/ns/net", child.id()));
        let mut space = Self { child, netns: own };
        wait_for("a namespace of its own", || {
            space.netns = netns::of(&path).unwrap_or(own);
            space.netns != own
        });
        space.inside(|| run("ip", &["link", "set", "lo", "up"]));
        space
    }

    /// Does something in it. A socket that is made there stays there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.child.id()));
        let run = || {
            assert_eq!(netns::enter(&path).expect("entered"), self.netns);
            work()
        };
        thread::scope(|scope| scope.spawn(run).join().expect("the work inside"))
    }

    /// The process in it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
