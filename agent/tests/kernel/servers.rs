//! Servers that accept as real ones do: many threads that block, epoll, io_uring. Each closes what
//! it accepts, and counts.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use io_uring::{IoUring, Probe, cqueue, opcode, types};
use rustix::{
    event::epoll,
    io::Errno,
    net::{self, Shutdown, SocketFlags},
    thread::{Pid, gettid},
};
use socket2::{SockRef, Socket};

use crate::{
    namespace::{DEADLINE, wait_for},
    offenders::NeverAccepts,
};

/// How a thread accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It blocks in accept(2).
    Blocking,
    /// It waits for its epoll, then calls accept4(2), which never blocks.
    Epoll,
    /// One request to io_uring for each connection.
    Uring,
    /// One request to io_uring for all of them (5.19).
    UringMultishot,
}

/// Threads that accept from one queue until they are told to stop.
pub(crate) struct Pool {
    pub(crate) way: Way,
    pub(crate) addr: SocketAddr,
    listener: Arc<NeverAccepts>,
    accepted: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `n` threads; returns when each of those that block stands in its system call.
    pub(crate) fn start(way: Way, n: usize, listener: NeverAccepts) -> Self {
        let (addr, listener) = (listener.addr, Arc::new(listener));
        let accepted = Arc::new(AtomicU64::new(0));
        let (sender, ids) = mpsc::channel();
        let start = |_| {
            let (listener, accepted, sender) = (listener.clone(), accepted.clone(), sender.clone());
            thread::spawn(move || {
                sender.send(gettid()).expect("somebody waits");
                let took = || _ = accepted.fetch_add(1, Ordering::SeqCst);
                match way {
                    Way::Blocking => block(&listener, took),
                    Way::Epoll => poll(&listener, took),
                    Way::Uring | Way::UringMultishot => submit(&listener, way, took),
                }
            })
        };
        let threads = (0..n).map(start).collect();
        let stands_in = match way {
            Way::Blocking => Some(libc::SYS_accept),
            Way::Epoll => None,
            Way::Uring | Way::UringMultishot => Some(libc::SYS_io_uring_enter),
        };
        let ids: Vec<Pid> = ids.iter().take(n).collect();
        if let Some(call) = stands_in {
            wait_for("servers to block", || ids.iter().all(|&id| current_call(id) == Some(call)));
        }
        Self { way, addr, listener, accepted, threads }
    }

    /// How many connections accept returned so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // every way to accept answers with EINVAL from here on
        net::shutdown(self.listener.socket(), Shutdown::Read).expect("shutdown");
        for thread in self.threads.drain(..) {
            let served = thread.join();
            assert!(served.is_ok() || thread::panicking(), "a server on {} failed", self.addr);
        }
    }
}

/// The system call that a thread of ours sleeps in.
pub(crate) fn current_call(thread: Pid) -> Option<i64> {
    let path = format!("/proc/self/task/{}/syscall", thread.as_raw_nonzero());
    // `running`, or the number and the arguments
    fs::read_to_string(path).ok()?.split(' ').next()?.parse().ok()
}

fn block(listener: &NeverAccepts, took: impl Fn()) {
    loop {
        match net::accept(listener.socket()) {
            Ok(_closed) => took(),
            Err(Errno::INVAL) => return,
            Err(error) => panic!("accept: {error}"),
        }
    }
}

fn poll(listener: &NeverAccepts, took: impl Fn()) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let data = epoll::EventData::new_u64(0);
    epoll::add(&epoll, listener.socket(), data, epoll::EventFlags::IN).expect("epoll_ctl");
    listener.socket().set_nonblocking(true).expect("O_NONBLOCK");
    let mut events = Vec::with_capacity(1);
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).expect("epoll_wait");
        match net::accept_with(listener.socket(), SocketFlags::NONBLOCK) {
            Ok(_closed) => took(),
            Err(Errno::AGAIN) => {}
            Err(Errno::INVAL) => return,
            Err(error) => panic!("accept4: {error}"),
        }
    }
}

fn submit(listener: &NeverAccepts, way: Way, took: impl Fn()) {
    let mut ring = IoUring::new(8).expect("io_uring");
    let mut is_armed = false;
    loop {
        if !is_armed {
            push_accept(&mut ring, listener.socket(), way);
            is_armed = true;
        }
        ring.submit_and_wait(1).expect("io_uring_enter");
        for entry in ring.completion() {
            is_armed = cqueue::more(entry.flags());
            match entry.result() {
                result if result == -libc::EINVAL => return,
                result => drop(accepted_fd(result).expect("accept by io_uring")),
            }
            took();
        }
    }
}

/// Puts one request to accept into the ring; its number is 0.
#[expect(unsafe_code, reason = "the ring cannot know how long what a request points to lives")]
pub(crate) fn push_accept(ring: &mut IoUring, listener: &Socket, way: Way) {
    let fd = types::Fd(listener.as_raw_fd());
    let entry = match way {
        Way::UringMultishot => opcode::AcceptMulti::new(fd).build(),
        _ => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).build(),
    };
    // SAFETY: the request points to no memory.
    unsafe { ring.submission().push(&entry) }.expect("the ring has room");
}

/// The connection behind the result of such a request.
#[expect(unsafe_code, reason = "io_uring gives descriptors as numbers")]
pub(crate) fn accepted_fd(result: i32) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// The ways of io_uring that can be had here. None where it is forbidden, and the reason is said;
/// a kernel that has it (5.1) must give it.
#[expect(clippy::print_stderr, reason = "a skip says why")]
pub(crate) fn uring_ways() -> Vec<Way> {
    let ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => {
            let is_forbidden = matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
            assert!(is_forbidden, "io_uring_setup: {error}");
            eprintln!("skipped: io_uring: {error}");
            return Vec::new();
        }
    };
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).expect("5.6 has it");
    // came with multishot accept, which itself cannot be asked for
    match probe.is_supported(opcode::Socket::CODE) {
        true => vec![Way::Uring, Way::UringMultishot],
        false => vec![Way::Uring],
    }
}

/// Makes `n` connections from four threads, each kept until the server closes it.
pub(crate) fn visit(addr: SocketAddr, n: u64) -> Vec<JoinHandle<()>> {
    let visit = |n| {
        thread::spawn(move || {
            for _ in 0..n {
                let mut client = TcpStream::connect(addr).expect("it listens");
                client.set_read_timeout(Some(DEADLINE)).expect("a time");
                assert_eq!(io::Read::read(&mut client, &mut [0]).expect("closed in order"), 0);
                // no TIME_WAIT is left that a later client on the same port would meet
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
            }
        })
    };
    (0..4).map(|i| visit(n / 4 + u64::from(i < n % 4))).collect()
}
