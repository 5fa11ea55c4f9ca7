use proptest::prelude::*;

use super::*;
use crate::event::Kinds;

const SIZE: usize = size_of::<abi::Event>();

/// As a program lays it out.
fn layout(event: &abi::Event) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(offset_of!(abi::Event, time), &event.time.to_ne_bytes());
    put(offset_of!(abi::Event, span), &event.span.to_ne_bytes());
    put(offset_of!(abi::Event, cookie), &event.cookie.to_ne_bytes());
    put(offset_of!(abi::Event, netns), &event.netns.to_ne_bytes());
    put(offset_of!(abi::Event, pid), &event.pid.to_ne_bytes());
    put(offset_of!(abi::Event, errno), &event.errno.to_ne_bytes());
    put(offset_of!(abi::Event, kind), &event.kind.to_ne_bytes());
    put(offset_of!(abi::Event, reason), &event.reason.to_ne_bytes());
    put(offset_of!(abi::Event, family), &event.family.to_ne_bytes());
    put(offset_of!(abi::Event, port), &event.port.to_ne_bytes());
    put(offset_of!(abi::Event, peer_port), &event.peer_port.to_ne_bytes());
    put(offset_of!(abi::Event, addr), &event.addr);
    put(offset_of!(abi::Event, peer), &event.peer);
    put(offset_of!(abi::Event, comm), &event.comm);
    bytes
}

fn sixteen(bytes: &[u8]) -> [u8; 16] {
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
}

/// Nothing is known but when and what.
const BARE: Event = Event {
    at: Monotonic(5),
    kind: EventKind::Syn,
    netns: None,
    cookie: None,
    local: None,
    peer: None,
    span: None,
    errno: None,
    reason: None,
    task: None,
};

#[track_caller]
fn check(sent: abi::Event, expected: Event) {
    assert_eq!(Ok(expected), decode(&layout(&sent)), "{sent:?}");
}

#[test]
fn what_a_program_sent_is_what_is_read() {
    let bare = abi::Event { time: 5, span: abi::UNKNOWN, ..abi::Event::default() };
    check(bare, BARE);
    let accept = abi::Event {
        kind: abi::kind::ACCEPT,
        span: 0,
        cookie: 77,
        netns: 4_026_531_840,
        pid: 12,
        family: AF_INET,
        port: 80,
        peer_port: 40_000,
        addr: sixteen(&[127, 0, 0, 1]),
        peer: sixteen(&[10, 0, 0, 9]),
        comm: sixteen(b"nginx"),
        ..bare
    };
    let accepted = Event {
        kind: EventKind::Accept,
        span: Some(Nanos(0)),
        cookie: Some(Cookie(77)),
        netns: Some(NetnsId(4_026_531_840)),
        local: Some(([127, 0, 0, 1], 80).into()),
        peer: Some(([10, 0, 0, 9], 40_000).into()),
        task: Some(Task { pid: Pid(12), comm: "nginx".into() }),
        ..BARE
    };
    check(accept, accepted);
    let (kind, reason) = (abi::kind::OVERFLOW, abi::reason::ACCEPT_QUEUE_FULL_ACK);
    let overflow = abi::Event { kind, reason, family: AF_INET6, port: 443, ..bare };
    let overflowed = Event {
        kind: EventKind::Overflow,
        reason: Some(Reason::AcceptQueueFullAck),
        local: Some((Ipv6Addr::UNSPECIFIED, 443).into()),
        ..BARE
    };
    check(overflow, overflowed);
    let failed = abi::Event {
        kind: abi::kind::CONNECT_ERROR,
        errno: 99,
        pid: 3,
        comm: *b"sixteen letters!",
        ..bare
    };
    let error = Event {
        kind: EventKind::ConnectError,
        errno: Some(Errno(99)),
        task: Some(Task { pid: Pid(3), comm: "sixteen letters!".into() }),
        ..BARE
    };
    check(failed, error);
}

#[test]
fn each_kind_and_each_reason_has_its_number() {
    for (number, kind) in (0..).zip(EventKind::ALL) {
        let sent = abi::Event { kind: number, ..abi::Event::default() };
        assert_eq!(Ok(kind), decode(&layout(&sent)).map(|event| event.kind));
    }
    let names = [1, 2, 3, 4].map(|number| reason(number).map(Reason::name));
    let expected = ["accept_queue_full_syn", "accept_queue_full_ack", "syn_queue_full"].map(Some);
    assert_eq!(expected, names[..3]);
    assert_eq!(None, names[3]);
}

#[test]
fn what_is_no_event_is_said() {
    let said = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert_eq!("event of 95 bytes, expected 96", said(&[0; SIZE - 1]));
    let unknown = abi::Event { kind: abi::kind::COUNT, ..abi::Event::default() };
    assert_eq!("event of kind 13, expected one below 13", said(&layout(&unknown)));
}

#[test]
fn a_filter_stands_where_the_programs_read_it() {
    let filter = Filter {
        kinds: [EventKind::Syn, EventKind::Close].into_iter().collect(),
        port: Some(0x0102),
        netns: Some(NetnsId(0x0304_0506)),
        pid: Some(Pid(0x0708_090a)),
        comm: Some(Comm::new("nginx")),
    };
    let encoded = encode(&filter);
    let expected = abi::Filter {
        kinds: 1 << abi::kind::SYN | 1 << abi::kind::CLOSE,
        netns: 0x0304_0506,
        pid: 0x0708_090a,
        port: 0x0102,
        by_owner: 1,
        comm: sixteen(b"nginx"),
    };
    assert_eq!(expected, encoded);
    let bytes = bytes(&encoded);
    assert_eq!(encoded.kinds.to_ne_bytes(), bytes[..4]);
    assert_eq!(encoded.port.to_ne_bytes(), bytes[12..14]);
    assert_eq!(*b"nginx", bytes[16..21]);
    let everything = Filter { kinds: Kinds::all(), port: None, netns: None, pid: None, comm: None };
    let expected = abi::Filter { kinds: (1 << abi::kind::COUNT) - 1, ..abi::Filter::default() };
    assert_eq!(expected, encode(&everything));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn whatever_is_sent_is_an_event_of_a_known_kind(
        mut bytes in prop::collection::vec(any::<u8>(), SIZE..=SIZE),
        number in 0..abi::kind::COUNT,
    ) {
        let at = offset_of!(abi::Event, kind);
        bytes[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        let event = decode(&bytes).expect("a known kind");
        prop_assert_eq!(EventKind::ALL[usize::from(number)], event.kind);
        prop_assert!(event.peer.is_none_or(|peer| peer.port() != 0));
    }
}
