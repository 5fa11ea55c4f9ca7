//! Reading, writing and shedding allocate nothing: counted by the allocator, in a program of its
//! own.
#![expect(unsafe_code, reason = "an allocator is unsafe to implement")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use backlogd_shed::{Deadlines, Moved, Reason, ShedListener};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The system's allocator, which counts what the current thread asks it for.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // at the thread's end, nobody counts any more
    let _ended = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sends what it gets back, some at a time.
fn echo(mut client: &TcpStream) {
    let mut buf = vec![0; 4_096];
    while let Ok(n @ 1..) = client.read(&mut buf) {
        if client.write_all(&buf[..n]).is_err() {
            break;
        }
    }
}

/// So many reads, and as many writes, of a byte each; some of them wait.
const OPERATIONS: u64 = 500_000;
/// So many bytes are on their way at once.
const WINDOW: u64 = 1_000;

#[test]
fn a_million_reads_and_writes_allocate_nothing() {
    // tasks of others run on the worker, what is counted on this thread
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let long = Some(Duration::from_secs(60));
    let on = Deadlines { idle: long, write_stall: long, header: long, ..Deadlines::default() };
    for (deadlines, operations) in [(on, OPERATIONS), (Deadlines::default(), OPERATIONS / 10)] {
        runtime.block_on(async {
            let bound = ShedListener::bind("127.0.0.1:0").deadlines(deadlines);
            let mut listener = bound.max_request_bytes(u64::MAX / 2).build().expect("a listener");
            let client = TcpStream::connect(listener.local_addr()).expect("queued");
            let client = thread::spawn(move || echo(&client));
            let mut conn = listener.accept().await.expect("it is queued");
            let before = ASKED.get();
            for n in 0..operations + WINDOW {
                if n < operations {
                    conn.write_u8(0).await.expect("room");
                }
                if WINDOW <= n {
                    conn.read_u8().await.expect("it comes back");
                }
            }
            assert_eq!(ASKED.get() - before, 0, "allocations with {deadlines:?}");
            let Moved { bytes_in, bytes_out, .. } = conn.moved();
            assert_eq!((bytes_in, bytes_out), (operations, operations));
            let stats = listener.handle().stats();
            assert_eq!((stats.bytes_out, stats.open), (operations, 1));
            socket2::SockRef::from(conn.get_ref()).shutdown(Shutdown::Both).expect("open");
            client.join().expect("no panic");
        });
    }
}

/// So many are shed.
const SHED: u64 = 10_000;

#[test]
fn ten_thousand_sheds_allocate_nothing_and_so_spawn_nothing() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let exempt = ["127.0.0.2".parse().expect("an address")];
        let bound = ShedListener::bind("127.0.0.1:0").soft(1).exempt(exempt);
        let mut listener = bound.build().expect("a listener");
        let address = listener.local_addr();
        let held = TcpStream::connect(address).expect("queued");
        let served = listener.accept().await.expect("the first");
        let clients = thread::spawn(move || {
            for _ in 0..SHED {
                // a reset may be quicker than connect(2)
                drop(TcpStream::connect(address).and_then(|mut client| client.read(&mut [0])));
            }
            // who is admitted ends it
            let last = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            last.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).expect("a port");
            last.connect(&address.into()).expect("queued");
            last
        });
        let before = ASKED.get();
        let last = listener.accept().await.expect("the last");
        let asked = ASKED.get() - before;
        // a stream of the runtime is made of a few
        assert!(asked < 50, "{asked} allocations");
        let stats = listener.handle().stats();
        assert_eq!((stats.shed_for(Reason::Soft), stats.admitted), (SHED, 2), "{stats:?}");
        drop((held, served, last, clients.join().expect("no panic")));
    });
}
