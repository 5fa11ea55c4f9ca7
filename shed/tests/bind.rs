//! What can be wrong with an address, and what the kernel grants.

mod load;

use std::{fs, io, process, time::Duration};

use backlogd_shed::{AcceptError, BuildError, Builder, Generation, Handle, ShedListener, Warning};
use load::{Load, serve};
use tokio::net::TcpStream;

fn somaxconn() -> u32 {
    let text = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux has it");
    text.trim().parse().expect("a number")
}

#[tokio::test]
async fn the_backlog_is_as_asked_as_far_as_the_kernel_grants() {
    let somaxconn = somaxconn();
    for backlog in [1_u16, 10, 500, u16::MAX] {
        let listener =
            ShedListener::bind("127.0.0.1:0").backlog(backlog).build().expect("a listener");
        let granted = listener.accept_queue().expect("TCP_INFO").1;
        assert_eq!(granted, somaxconn.min(backlog.into()));
    }
    let listener = ShedListener::bind("127.0.0.1:0").backlog(0).build().expect("a listener");
    assert_eq!(listener.accept_queue().expect("TCP_INFO").1, somaxconn, "as if unsaid");
    let listener = ShedListener::bind("127.0.0.1:0").backlog(10).build().expect("a listener");
    let mut clients = Vec::new();
    for _ in 0..11 {
        clients.push(TcpStream::connect(listener.local_addr()).await.expect("queued"));
    }
    assert_eq!(listener.accept_queue().expect("TCP_INFO"), (11, 10), "one above the limit");
    assert_eq!(listener.set_backlog(None).expect("listen"), somaxconn);
    assert_eq!(listener.set_backlog(60_000).expect("listen"), somaxconn.min(60_000));
    assert_eq!(listener.set_backlog(1).expect("listen"), 1);
    assert_eq!(listener.accept_queue().expect("TCP_INFO"), (11, 1), "what is queued stays");
    let handle = listener.handle();
    assert_eq!(handle.accept_queue().expect("TCP_INFO"), (11, 1), "as seen from elsewhere");
    assert_eq!(handle.set_backlog(20).expect("listen"), 20, "as asked from elsewhere");
    assert_eq!(listener.accept_queue().expect("TCP_INFO"), (11, 20));
    assert_eq!(handle.set_backlog(None).expect("listen"), somaxconn);
    drop(listener);
    let closed = handle.accept_queue().map_err(|err| err.kind());
    assert_eq!(closed, Err(io::ErrorKind::NotConnected));
    let closed = handle.set_backlog(1).map_err(|err| err.kind());
    assert_eq!(closed, Err(io::ErrorKind::NotConnected));
    let group = ShedListener::bind("127.0.0.1:0").backlog(10).build_group(3);
    let (group, mut listeners) = group.expect("a group");
    let queue = || group.handle().accept_queue().expect("TCP_INFO");
    assert_eq!(queue(), (0, 30), "of all members");
    assert_eq!(group.handle().set_backlog(7).expect("listen"), 21, "of all members");
    for listener in &listeners {
        assert_eq!(listener.accept_queue().expect("TCP_INFO"), (0, 7));
    }
    drop(listeners.pop());
    assert_eq!(queue(), (0, 14), "of those that are left");
}

/// What a listener warns of, for its queue.
fn of_backlog(handle: &Handle) -> Option<&Warning> {
    handle.warnings().iter().find(|it| matches!(it, Warning::Backlog { .. }))
}

#[tokio::test]
async fn a_queue_that_is_shorter_than_asked_is_warned_of() {
    let bind = || ShedListener::bind("127.0.0.1:0");
    let (asked, somaxconn) = (u16::MAX.into(), somaxconn());
    let low = Warning::Backlog { asked, granted: somaxconn, somaxconn: Some(somaxconn) };
    let low = Some(&low).filter(|_| somaxconn < asked);
    let listener = bind().backlog(u16::MAX).build().expect("a listener");
    assert_eq!(of_backlog(&listener.handle()), low);
    let (group, _members) = bind().backlog(u16::MAX).build_group(2).expect("a group");
    assert_eq!(of_backlog(&group.handle()), low);
    let accepted = bind().backlog(u16::MAX).build_threaded(1).expect("a listener");
    assert_eq!(of_backlog(&accepted.handle()), low);
    for fine in [bind().build(), bind().backlog(10).build()] {
        assert_eq!(of_backlog(&fine.expect("a listener").handle()), None);
    }

    // what listens already has what is asked for, and what it had where nothing is
    for (asked, granted) in [(Some(50), 50), (None, 5)] {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        socket2::SockRef::from(&socket).listen(5).expect("it listens");
        let builder = ShedListener::adopt(socket);
        let builder = asked.into_iter().fold(builder, Builder::backlog);
        let listener = builder.build().expect("a listener");
        assert_eq!(listener.accept_queue().expect("it listens").1, granted);
        assert_eq!(of_backlog(&listener.handle()), None);
    }
}

#[tokio::test]
async fn an_address_in_use_names_who_has_it() {
    for address in ["127.0.0.1:0", "[::]:0"] {
        let owner = ShedListener::bind(address).build().expect("a listener");
        let address = owner.local_addr();
        let err = ShedListener::bind(address.to_string()).build().expect_err("in use");
        let comm = fs::read_to_string("/proc/self/comm").expect("a name");
        let process = format!("{}[{}]", comm.trim_end(), process::id());
        let message = err.to_string();
        assert!(
            message.starts_with(&format!("listener {address}: the address is in use, by socket "))
        );
        assert!(message.ends_with(&format!(", {process}")), "{message}, not {process}");
        let BuildError::InUse { owner: Some(found), .. } = err else { panic!("{err:?}") };
        assert_eq!(found.process.expect("ours").0, process::id());
    }
}

#[tokio::test]
async fn comes_back_amid_time_wait() {
    let mut listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let address = listener.local_addr();
    let client = TcpStream::connect(address).await.expect("queued");
    // ours goes first, and waits
    drop(listener.accept().await.expect("it"));
    drop(client);
    drop(listener);
    ShedListener::bind(address.to_string()).build().expect("it is free");
}

#[tokio::test]
async fn a_group_of_others_is_not_joined_unasked() {
    let (first, _members) = ShedListener::bind("127.0.0.1:0").build_group(2).expect("a group");
    let address = _members[0].local_addr();
    let bind = || ShedListener::bind(address.to_string());
    assert!(matches!(bind().build(), Err(BuildError::InUse { .. })));
    assert!(matches!(bind().build_group(2), Err(BuildError::InUse { owner: Some(_), .. })));
    let (second, _more) = bind().join_others().build_group(2).expect("asked for");
    assert_eq!((first.members(), second.members()), (2, 2));
    for (members, expected) in [(0, "0"), (2_000, "2000")] {
        let err = ShedListener::bind("127.0.0.1:0").build_group(members).expect_err("not so many");
        assert_eq!(
            err.to_string(),
            format!("members of the group are {expected}, expected 1 to 1024")
        );
    }
}

#[tokio::test]
async fn a_group_is_not_made_of_a_socket_that_is_given() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let err = ShedListener::adopt(socket).build_group(2).expect_err("it opens its own");
    assert_eq!(
        err.to_string(),
        "got a socket, expected an address, since a group opens its sockets itself"
    );
}

#[tokio::test]
async fn a_name_is_of_one_listener_of_a_generation() {
    let mut generation = Generation::take().expect("the first");
    let mut build = |name: Option<&str>| {
        let builder = ShedListener::bind("127.0.0.1:0");
        let builder = name.into_iter().fold(builder, Builder::name);
        builder.build_in(&mut generation).map_err(|err| err.to_string())
    };
    let refused =
        |name| format!("the generation has a listener {name:?} already, expected another name");
    let (web, _mail) = (build(Some("web")).expect("one"), build(Some("mail")).expect("another"));
    assert_eq!(build(Some("web")).map(drop), Err(refused("web")));
    // unsaid, it is the address that was asked for
    let _unsaid = build(None).expect("one");
    assert_eq!(build(None).map(drop), Err(refused("127.0.0.1:0")));
    drop(web);
    build(Some("web")).expect("it is free again");
    let nul = "name is \"a\\0b\", expected one without a NUL".to_owned();
    assert_eq!(build(Some("a\0b")).map(drop), Err(nul));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_by_us_is_no_error() {
    let mut listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let handle = listener.handle();
    assert!(handle.is_ready());
    handle.close();
    assert!(matches!(listener.accept().await, Err(AcceptError::Closed)));
    assert!(!handle.is_ready());
    assert!(handle.stats().accept_errors.is_empty());

    let listener = ShedListener::bind("127.0.0.1:0").build().expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    let served = tokio::spawn(serve(listener));
    let load = Load::start(address, 8, Duration::from_millis(1));
    load.until_served(50).await;
    handle.close();
    served.await.expect("it ends");
    assert!(handle.stats().accept_errors.is_empty(), "{:?}", handle.stats());
    load.abort().await;
}
