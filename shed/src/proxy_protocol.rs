//! Headers of the PROXY protocol, by which a proxy says whose connection it passes on.
//!
//! Versions 1 and 2 as in <https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>, section 2.
//! In: the bytes that came so far. Out: the header, once what matters of it is there.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The most bytes of a header of version 1, its line end included (section 2.1).
pub const MAX_V1: usize = 107;
/// The most bytes of a header of version 2 that is accepted, its extensions included.
pub const MAX_V2: usize = 4_096;

const V1: &[u8] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const V2_FIXED: usize = 16;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose connection it is. `None`: the proxy's own (LOCAL), or it does not know (UNKNOWN, a
    /// Unix socket).
    pub source: Option<SocketAddr>,
    /// Bytes of the whole header; what comes after them is the connection's. There may be more of
    /// them than came so far: the rest are extensions, of no meaning here.
    pub len: usize,
}

/// What bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not enough of a header so far. All of them belong to it.
    Partial,
    /// A header.
    Header(Header),
}

/// Bytes that are no header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    /// They begin as no header does.
    Signature,
    /// A version 1 line that does not end in time.
    NoLineEnd,
    /// A part of a version 1 line that is not as it should be.
    Word {
        /// Which part.
        what: &'static str,
        /// What it is.
        got: String,
    },
    /// A version and command of version 2 that do not exist.
    Command {
        /// The byte.
        got: u8,
    },
    /// A family and transport of version 2 that do not exist, or no TCP.
    Family {
        /// The byte.
        got: u8,
    },
    /// A version 2 header with a length that its addresses do not fit into, or that is too long.
    Length {
        /// Bytes after the first 16.
        got: usize,
        /// The least that it can be.
        least: usize,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PROXY header: ")?;
        match self {
            Self::Signature => f.write_str("got other bytes, expected its signature"),
            Self::NoLineEnd => write!(f, "got no line end, expected one within {MAX_V1} bytes"),
            Self::Word { what, got } => write!(f, "got {got:?}, expected {what}"),
            Self::Command { got } => {
                write!(f, "command is {got:#04x}, expected 0x20 (LOCAL) or 0x21 (PROXY)")
            }
            Self::Family { got } => write!(
                f,
                "family is {got:#04x}, expected 0x00 (unknown), 0x11 (TCP over IPv4), 0x21 (over \
                 IPv6) or 0x31 (Unix)"
            ),
            Self::Length { got, least } => {
                write!(f, "length is {got}, expected {least} to {}", MAX_V2 - V2_FIXED)
            }
        }
    }
}

impl Error for HeaderError {}

/// Reads the header at the beginning of `bytes`, which are all that came so far.
///
/// # Errors
/// They are no header, whatever may still come.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    if begins(bytes, V1) {
        parse_v1(bytes)
    } else if begins(bytes, V2) {
        parse_v2(bytes)
    } else {
        Err(HeaderError::Signature)
    }
}

/// Whether one of the two begins with the other.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(got, expected)| got == expected)
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let most = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = most.windows(2).position(|pair| pair == b"\r\n") else {
        return if most.len() < MAX_V1 { Ok(Parsed::Partial) } else { Err(HeaderError::NoLineEnd) };
    };
    let line = String::from_utf8_lossy(&bytes[V1.len()..end]);
    let wrong = |what| move |got: &str| HeaderError::Word { what, got: got.to_owned() };
    let mut words = line.split(' ');
    let source = match words.next().unwrap_or("") {
        "UNKNOWN" => None,
        family @ ("TCP4" | "TCP6") => {
            let mut address = || {
                let word = words.next().unwrap_or("");
                let parsed: Option<IpAddr> = match family {
                    "TCP4" => word.parse::<Ipv4Addr>().ok().map(Into::into),
                    _ => word.parse::<Ipv6Addr>().ok().map(Into::into),
                };
                parsed.ok_or_else(|| wrong("an address of its family")(word))
            };
            let (source, _) = (address()?, address()?);
            let mut port = || {
                let word = words.next().unwrap_or("");
                port(word).ok_or_else(|| wrong("a port, 0 to 65535")(word))
            };
            let (port, _) = (port()?, port()?);
            if let Some(word) = words.next() {
                return Err(wrong("the end of the line")(word));
            }
            Some(SocketAddr::new(source, port))
        }
        word => return Err(wrong("TCP4, TCP6 or UNKNOWN")(word)),
    };
    Ok(Parsed::Header(Header { source, len: end + 2 }))
}

/// Digits without a sign and without zeros before them.
fn port(word: &str) -> Option<u16> {
    word.parse().ok().filter(|port: &u16| port.to_string() == word)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let Some((fixed, rest)) = bytes.split_at_checked(V2_FIXED) else { return Ok(Parsed::Partial) };
    let (command, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let (least, has_address) = match (command, family) {
        // section 2.2: whatever its family, the receiver uses the addresses of the connection
        (0x20, _) | (0x21, 0x00) => (0, false),
        (0x21, 0x11) => (12, true),
        (0x21, 0x21) => (36, true),
        (0x21, 0x31) => (216, false),
        (0x21, got) => return Err(HeaderError::Family { got }),
        (got, _) => return Err(HeaderError::Command { got }),
    };
    if !(least..=MAX_V2 - V2_FIXED).contains(&length) {
        return Err(HeaderError::Length { got: length, least });
    }
    let len = V2_FIXED + length;
    if !has_address {
        return Ok(Parsed::Header(Header { source: None, len }));
    }
    let Some(addresses) = rest.get(..least) else { return Ok(Parsed::Partial) };
    // source, destination, ports of both
    let half = (least - 4) / 2;
    let ip: IpAddr = match *addresses {
        [a, b, c, d, ..] if half == 4 => Ipv4Addr::new(a, b, c, d).into(),
        _ => {
            let octets: [u8; 16] = addresses[..16].try_into().expect("16 bytes are 16 bytes");
            Ipv6Addr::from(octets).into()
        }
    };
    let port = u16::from_be_bytes([addresses[2 * half], addresses[2 * half + 1]]);
    Ok(Parsed::Header(Header { source: Some(SocketAddr::new(ip, port)), len }))
}

#[cfg(test)]
mod tests;
