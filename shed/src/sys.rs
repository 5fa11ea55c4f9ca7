//! The calls that neither std, tokio nor socket2 have: nothing else is unsafe.

use std::{
    array,
    ffi::c_void,
    fs::File,
    io, mem,
    mem::ManuallyDrop,
    net::SocketAddr,
    ops::Deref,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
    ptr::{self, NonNull},
    slice,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use socket2::{SockAddr, SockAddrStorage, Socket};
use tokio::io::{Interest, unix::AsyncFd};

mod process;

pub(crate) use process::{inherited, pass};

/// A listening socket that the runtime watches. To be called within a runtime.
pub(crate) fn watch(listener: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor and gives the same one as long as it lives, and nobody
    // is lent it mutably, to put another one in its place.
    unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }
        .map_err(|err| err.into_parts().1)
}

/// Bytes that arrived and were not read (tcp(7), SIOCINQ).
pub(crate) fn unread(socket: &Socket) -> io::Result<usize> {
    ioctl_int(socket, libc::FIONREAD)
}

/// Bytes that were written and not acknowledged by the peer (tcp(7), SIOCOUTQ).
pub(crate) fn unacked(socket: &Socket) -> io::Result<u64> {
    ioctl_int(socket, libc::TIOCOUTQ).map(|n| n as u64)
}

fn ioctl_int(socket: &Socket, request: libc::Ioctl) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the request writes one int to a live local.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(usize::try_from(value).unwrap_or(0)),
    }
}

/// Resets the connection at once, whoever reads or writes it meanwhile, and throws away what was to
/// be sent: connect(2) to AF_UNSPEC (`tcp_disconnect`, net/ipv4/tcp.c). Its descriptor stays open,
/// and whoever waits for it wakes: it is at its end.
pub(crate) fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: it is made of integers, for which all bits 0 are a value; AF_UNSPEC is 0.
    let nowhere: libc::sockaddr = unsafe { mem::zeroed() };
    let size = libc::socklen_t::try_from(size_of_val(&nowhere)).expect("16 bytes");
    // SAFETY: it reads a live local of that size; whatever the descriptor is, no other memory is
    // touched.
    match unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A socket that its owner lends until it [takes it back](Self::take_back), which has to be before
/// it closes it.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<Option<RawFd>>);

impl Slot {
    pub(crate) fn lend(&self, socket: &impl AsRawFd) {
        *self.lock() = Some(socket.as_raw_fd());
    }

    /// Waits for whoever [borrowed](Self::borrow) it.
    pub(crate) fn take_back(&self) {
        *self.lock() = None;
    }

    /// Lends it to `f`, if it is lent; whoever wants it back waits.
    pub(crate) fn borrow<T>(&self, f: impl FnOnce(&Socket) -> T) -> Option<T> {
        let lent = self.lock();
        let fd = (*lent)?;
        // SAFETY: the owner takes it back before it closes it and waits for this lock then, so that
        // it is open; it is not dropped, so that it is closed once.
        let socket = ManuallyDrop::new(unsafe { Socket::from_raw_fd(fd) });
        Some(f(&socket))
    }

    fn lock(&self) -> MutexGuard<'_, Option<RawFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What TCP_INFO says of a connection that was just accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waited {
    /// Since the handshake ended: nothing was sent on it, so `tcpi_last_data_sent` counts from its
    /// creation (`tcp_create_openreq_child` sets `lsndtime`, net/ipv4/tcp_minisocks.c).
    pub(crate) age: Duration,
    /// Whether its peer reset it meanwhile, or ended it and left nothing to read: one that ended
    /// only what it sends (shutdown(2)) may have sent a whole request, and wait for the answer.
    pub(crate) is_gone: bool,
}

/// How long `socket` waited in the accept queue.
pub(crate) fn waited(socket: &Socket) -> io::Result<Waited> {
    let info = tcp_info(socket)?;
    Ok(Waited {
        age: Duration::from_millis(info.tcpi_last_data_sent.into()),
        is_gone: match info.tcpi_state {
            TCP_CLOSE => true,
            // an end is no byte (`tcp_inq`, include/net/tcp.h)
            TCP_CLOSE_WAIT => unread(socket).is_ok_and(|n| n == 0),
            _ => false,
        },
    })
}

// include/net/tcp_states.h
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LISTEN: u8 = 10;

/// Asks for another limit of a listening socket's accept queue; `None`: the largest.
pub(crate) fn listen(listener: &Socket, backlog: Option<u16>) -> io::Result<()> {
    // more than the kernel gives is as much as it gives
    listener.listen(backlog.map_or(i32::MAX, i32::from))
}

/// Length and limit of a listening socket's accept queue (`tcp_get_info`, net/ipv4/tcp.c).
pub(crate) fn queue(listener: &Socket) -> io::Result<(u32, u32)> {
    let info = tcp_info(listener)?;
    match info.tcpi_state {
        TCP_LISTEN => Ok((info.tcpi_unacked, info.tcpi_sacked)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// How many connections are queued. Mostly there is none, and poll(2) needs two thirds of the time
/// that TCP_INFO does.
pub(crate) fn n_queued(listener: &Socket) -> usize {
    let mut asked = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: it reads and writes one live local, and does not wait.
    match unsafe { libc::poll(&raw mut asked, 1, 0) } {
        0 => 0,
        // where nobody knows, accept(2) will
        _ => queue(listener).map_or(1, |(n, _)| n as usize),
    }
}

fn tcp_info(socket: &Socket) -> io::Result<libc::tcp_info> {
    // SAFETY: it is made of integers, for which all bits 0 are a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&info)).expect("some 100 bytes");
    let (value, size) = ((&raw mut info).cast(), &raw mut size);
    // SAFETY: both point to live locals, and the size is that of the value.
    match unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, size)
    } {
        0 => Ok(info),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the soft RLIMIT_NOFILE to the hard one, where that is possible.
pub(crate) fn raise_nofile() -> io::Result<()> {
    let limit = rlimit()?;
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: it reads a live local.
    let _refused = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
    Ok(())
}

/// RLIMIT_NOFILE, as it is.
pub(crate) fn nofile() -> io::Result<usize> {
    rlimit().map(|limit| usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Whether there is a process of this number, be it one that ended and nobody waited for: kill(2)
/// with no signal, which a hidden /proc does not keep from us.
pub(crate) fn exists(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: it touches no memory, and sends nothing.
    match unsafe { libc::kill(pid, 0) } {
        0 => true,
        // EPERM is said of one that is not ours
        _ => io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH),
    }
}

fn rlimit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it writes to a live local.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Chooses among the members of a SO_REUSEPORT group by the program (socket(7)), which gives an
/// index.
pub(crate) fn steer(member: &Socket, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).expect("a few instructions");
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&program)).expect("16 bytes");
    let (fd, value) = (member.as_raw_fd(), (&raw const program).cast());
    // SAFETY: it reads a live local of that size, and as many live instructions as it says.
    match unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, value, size)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns when whoever read by RCU when it was called has ended (`synchronize_rcu`,
/// membarrier(2)): milliseconds.
pub(crate) fn membarrier() -> io::Result<()> {
    // SAFETY: it touches no memory.
    match unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Memory that processes share: of `size` bytes, all 0, and of that size for ever.
pub(crate) fn memory(size: u64) -> io::Result<File> {
    // SAFETY: the name is a string that ends with 0.
    let fd = match unsafe {
        libc::memfd_create(c"shed".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: it was just made, for us alone.
        fd => unsafe { OwnedFd::from_raw_fd(fd) },
    };
    let memory = File::from(fd);
    memory.set_len(size)?;
    // SAFETY: it touches no memory.
    match unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, SIZE_SEALS) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(memory),
    }
}

const SIZE_SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

/// Words of a [`memory`], mapped.
#[derive(Debug)]
pub(crate) struct Map {
    first: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: it owns its mapping, and gives shared atomics only.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `len` words of `memory`.
    pub(crate) fn new(memory: &File, len: usize) -> io::Result<Self> {
        let size = len * size_of::<AtomicU64>();
        // SAFETY: it touches no memory.
        let seals = unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_GET_SEALS) };
        // what could shrink would end us with SIGBUS
        if seals == -1 || seals & SIZE_SEALS != SIZE_SEALS || memory.metadata()?.len() < size as u64
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = memory.as_raw_fd();
        // SAFETY: a mapping at an address that the kernel chooses replaces no other.
        let first =
            unsafe { libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(first.cast()) {
            Some(mapped) if first != libc::MAP_FAILED => Ok(Self { first: mapped, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Deref for Map {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has as many words, aligned to a page, and lives as long as `self`;
        // other processes change them as atomics, too.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let first: *mut c_void = self.first.as_ptr().cast();
        // SAFETY: it is our mapping, of that size, and nobody borrows from it.
        unsafe { libc::munmap(first, self.len * size_of::<AtomicU64>()) };
    }
}

/// Messages of one recvmmsg(2) or sendmmsg(2).
pub(crate) const MESSAGES: usize = 32;

/// A datagram that was received.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received {
    /// Its own length, which may be more than its buffer has.
    pub(crate) len: usize,
    /// Whose it is; `None` for a family that is neither IPv4 nor IPv6.
    pub(crate) from: Option<SocketAddr>,
}

/// Headers for recvmmsg(2) and sendmmsg(2) that name nothing so far.
fn no_messages() -> [libc::mmsghdr; MESSAGES] {
    // SAFETY: they are made of integers and pointers, for which all bits 0 are a value.
    unsafe { mem::zeroed() }
}

/// Flags of recvmmsg(2) and sendmmsg(2), which musl has as unsigned.
#[cfg(target_env = "musl")]
const fn flags(flags: libc::c_int) -> libc::c_uint {
    flags.cast_unsigned()
}

/// Flags of recvmmsg(2) and sendmmsg(2), which musl has as unsigned.
#[cfg(not(target_env = "musl"))]
const fn flags(flags: libc::c_int) -> libc::c_int {
    flags
}

/// recvmmsg(2): receives what is there into `buffers`, one datagram each; says of each in
/// `received` what it is, and gives their number.
pub(crate) fn receive(
    socket: &impl AsRawFd,
    buffers: &mut [Box<[u8]>],
    received: &mut [Received; MESSAGES],
) -> io::Result<usize> {
    let mut froms: [_; MESSAGES] = array::from_fn(|_| SockAddrStorage::zeroed());
    let mut parts = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; MESSAGES];
    let mut messages = no_messages();
    let most = buffers.len().min(MESSAGES);
    for (n, buffer) in buffers.iter_mut().take(most).enumerate() {
        parts[n] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let header = &mut messages[n].msg_hdr;
        header.msg_name = (&raw mut froms[n]).cast();
        header.msg_namelen = froms[n].size_of();
        header.msg_iov = &raw mut parts[n];
        header.msg_iovlen = 1;
    }
    let vlen = libc::c_uint::try_from(most).expect("32 at most");
    let (fd, flags) = (socket.as_raw_fd(), flags(libc::MSG_DONTWAIT | libc::MSG_TRUNC));
    // SAFETY: the first `vlen` headers name addresses, parts and buffers that live, are borrowed
    // mutably by this function alone, and have the lengths that are given.
    let n = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), vlen, flags, ptr::null_mut()) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    for (n, (message, from)) in messages.iter().zip(froms).take(n).enumerate() {
        let len = message.msg_hdr.msg_namelen;
        // SAFETY: the kernel wrote an address of `len` bytes to it.
        let from = unsafe { SockAddr::new(from, len) };
        let len = usize::try_from(message.msg_len).expect("wider than 32 bits");
        received[n] = Received { len, from: from.as_socket() };
    }
    Ok(n)
}

/// sendmmsg(2): sends the first ones of `datagrams`, [`MESSAGES`] at most, and gives their number;
/// an error is that of the first.
pub(crate) fn send(socket: &impl AsRawFd, datagrams: &[(&[u8], SocketAddr)]) -> io::Result<usize> {
    let mut tos = [const { None::<SockAddr> }; MESSAGES];
    let mut parts = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; MESSAGES];
    let mut messages = no_messages();
    let most = datagrams.len().min(MESSAGES);
    for (n, (bytes, to)) in datagrams.iter().take(most).enumerate() {
        let to = tos[n].insert(SockAddr::from(*to));
        parts[n] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let header = &mut messages[n].msg_hdr;
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len();
        header.msg_iov = &raw mut parts[n];
        header.msg_iovlen = 1;
    }
    let vlen = libc::c_uint::try_from(most).expect("32 at most");
    let (fd, flags) = (socket.as_raw_fd(), flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL));
    // SAFETY: the first `vlen` headers name addresses, parts and bytes that live and have the
    // lengths that are given; the kernel writes to none of them but the headers' own lengths.
    let n = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), vlen, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, net::TcpStream, sync::mpsc, thread};

    use socket2::SockFilter;

    use super::*;

    #[test]
    fn a_filter_is_taken_off_what_is_adopted_unless_it_is_locked() {
        for locks in [false, true] {
            let listener =
                Socket::from(std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
            let address = crate::socket::local_addr(&listener).expect("bound");
            // drops all: BPF_RET, linux/filter.h
            listener.attach_filter(&[SockFilter::new(6, 0, 0, 0)]).expect("a filter");
            let lock = libc::c_int::from(locks);
            let (fd, level, name) = (listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER);
            let size = libc::socklen_t::try_from(size_of_val(&lock)).expect("4 bytes");
            // SAFETY: it reads a live local of that size.
            let set = unsafe { libc::setsockopt(fd, level, name, (&raw const lock).cast(), size) };
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
            let _adopted = crate::socket::adopted(listener, None).expect("it listens");
            // a SYN that is dropped is sent again after a second
            let connected = TcpStream::connect_timeout(&address, Duration::from_millis(700));
            assert_eq!(connected.is_ok(), !locks, "{connected:?}");
        }
    }

    #[test]
    fn who_takes_a_socket_back_waits_for_who_borrowed_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("queued");
        let (socket, _) = listener.accept().expect("queued");
        let slot = Slot::default();
        assert!(slot.borrow(|_| ()).is_none(), "nothing is lent");
        slot.lend(&socket);
        let (begin, begun) = mpsc::channel();
        thread::scope(|scope| {
            let slot = &slot;
            scope.spawn(move || {
                slot.borrow(|socket| {
                    begin.send(()).expect("somebody waits");
                    thread::sleep(Duration::from_millis(50));
                    disconnect(socket)
                })
                .expect("it is lent")
                .expect("it is connected");
            });
            begun.recv().expect("it has begun");
            slot.take_back();
            // the borrower was done: it is reset, and open still
            assert!(client.read(&mut [0]).is_err());
            assert_eq!(unread(&socket.into()).expect("it is open"), 0);
        });
        assert!(slot.borrow(|_| ()).is_none(), "nothing is lent");
    }
}
