//! TCP segments that no socket stands behind.

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::namespace::DEADLINE;

/// Documentation's (RFC 5737): no address of this machine.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

const SYN: u8 = 2;
const ACK: u8 = 16;
/// linux/if_ether.h
const ETH_P_IP: u16 = 0x0800;

/// A segment to be sent.
struct Segment {
    from: SocketAddrV4,
    to: SocketAddrV4,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    data: &'static [u8],
}

/// An IPv4 packet and where it goes.
pub(crate) struct Packet {
    to: SocketAddrV4,
    bytes: Vec<u8>,
}

impl Segment {
    fn packet(&self) -> Packet {
        let Self { from, to, flags, .. } = *self;
        let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        // five words of header; the window; checksum; no urgent data
        tcp.extend([5 << 4, flags, 4, 0, 0, 0, 0, 0]);
        tcp.extend(self.data);
        let sum = checksum(*from.ip(), *to.ip(), &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        // what is 0 the kernel fills in: length, identification, checksum
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
        bytes.extend(from.ip().octets());
        bytes.extend(to.ip().octets());
        bytes.extend(tcp);
        Packet { to, bytes }
    }
}

impl Packet {
    /// Sends it by a socket of [`raw`].
    pub(crate) fn send(&self, socket: &Socket) {
        let to = SockAddr::from(SocketAddr::from(self.to));
        assert_eq!(socket.send_to(&self.bytes, &to).expect("sendto"), self.bytes.len());
    }
}

/// A socket for packets that bring their own header.
pub(crate) fn raw() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).expect("raw socket");
    socket.set_header_included_v4(true).expect("IP_HDRINCL");
    socket
}

/// A socket that sees every IPv4 packet of this namespace.
pub(crate) fn listening_in() -> Socket {
    let protocol = Protocol::from(i32::from(ETH_P_IP.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).expect("AF_PACKET");
    socket.set_read_timeout(Some(DEADLINE)).expect("SO_RCVTIMEO");
    socket
}

/// Sends a SYN with one byte (TCP Fast Open without a cookie) that no socket stands behind: if
/// `from` is an address of this machine, the kernel answers the server's SYN-ACK with a reset.
pub(crate) fn lone_syn(from: SocketAddrV4, to: SocketAddrV4) {
    let segment = Segment { from, to, flags: SYN, sequence: 0, acknowledged: 0, data: b"x" };
    segment.packet().send(&raw());
}

/// A SYN that no socket stands behind.
pub(crate) fn syn(from: SocketAddrV4, to: SocketAddrV4) -> Packet {
    Segment { from, to, flags: SYN, sequence: 0, acknowledged: 0, data: b"" }.packet()
}

/// The handshake of a client on [`ELSEWHERE`], but for its last ACK, which this returns. The answer
/// is seen by a socket of [`listening_in`].
pub(crate) fn half_a_handshake(port: u16, to: SocketAddrV4, answers: &Socket) -> Packet {
    let from = SocketAddrV4::new(ELSEWHERE, port);
    let syn = Segment { from, to, flags: SYN, sequence: 0, acknowledged: 0, data: b"" };
    syn.packet().send(&raw());
    let mut bytes = [0; 128];
    let answered = loop {
        let n = (&*answers).read(&mut bytes).expect("an answer");
        if let Some(sequence) = syn_ack(&bytes[..n], to.port(), port) {
            break sequence;
        }
    };
    let acknowledged = answered.wrapping_add(1);
    Segment { flags: ACK, sequence: 1, acknowledged, ..syn }.packet()
}

/// The sequence number, if the packet is the SYN-ACK from one port to the other.
fn syn_ack(packet: &[u8], from: u16, to: u16) -> Option<u32> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let tcp = packet.get(header..)?;
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    let is_it = packet[9] == 6 && tcp.get(..4)? == ports && *tcp.get(13)? == SYN | ACK;
    is_it.then(|| u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]))
}

/// Of a TCP segment and its pseudo-header (RFC 9293, section 3.1).
fn checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).expect("short");
    let mut bytes = [from.octets(), to.octets()].concat();
    bytes.extend([0, 6]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(segment);
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice")
}
