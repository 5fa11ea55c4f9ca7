use proptest::prelude::*;

use super::*;

/// Version 2 with addresses and `more` bytes after them.
fn v2(command: u8, family: u8, addresses: &[u8], more: usize) -> Vec<u8> {
    let length = u16::try_from(addresses.len() + more).expect("two bytes");
    let mut bytes = V2.to_vec();
    bytes.extend([command, family]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(addresses);
    bytes.resize(bytes.len() + more, 0xee);
    bytes
}

const IPV4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0x1f, 0x90, 0, 80];

fn ipv6() -> Vec<u8> {
    let mut bytes = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets().to_vec();
    bytes.extend(Ipv6Addr::LOCALHOST.octets());
    bytes.extend([0x1f, 0x90, 0, 80]);
    bytes
}

/// What bytes give that come one by one, and when they gave it.
fn one_by_one(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    (0..bytes.len())
        .map(|n| parse(&bytes[..n]))
        .find(|it| *it != Ok(Parsed::Partial))
        .unwrap_or_else(|| parse(bytes))
}

/// Headers: each with the bytes of a request after it.
#[track_caller]
fn check(header: &[u8], expected: Result<Option<&str>, &str>) {
    let bytes = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
    let expected = expected.map_err(str::to_owned).map(|source| {
        let source = source.map(|it| it.parse().expect("an address"));
        Parsed::Header(Header { source, len: header.len() })
    });
    let text = String::from_utf8_lossy(header);
    for got in [parse(&bytes), one_by_one(&bytes)] {
        assert_eq!(got.map_err(|err| err.to_string()), expected, "{text}");
    }
}

#[test]
fn version_1_is_a_line() {
    check(b"PROXY TCP4 192.0.2.1 192.0.2.2 8080 80\r\n", Ok(Some("192.0.2.1:8080")));
    check(b"PROXY TCP6 2001:db8::1 ::1 8080 80\r\n", Ok(Some("[2001:db8::1]:8080")));
    check(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 65535\r\n", Ok(Some("[::ffff:192.0.2.1]:0")));
    check(b"PROXY UNKNOWN\r\n", Ok(None));
    check(b"PROXY UNKNOWN \xff\xfe a b c d\r\n", Ok(None));
    let longest = [b"PROXY UNKNOWN ".as_slice(), &[b'f'; 91], b"\r\n"].concat();
    assert_eq!(longest.len(), MAX_V1);
    check(&longest, Ok(None));
    let too_long = [b"PROXY UNKNOWN ".as_slice(), &[b'f'; 92], b"\r\n"].concat();
    check(&too_long, Err("PROXY header: got no line end, expected one within 107 bytes"));
    for (line, what) in [
        ("TCP4 192.0.2.1 192.0.2.2 8080", "got \"\", expected a port, 0 to 65535"),
        ("TCP4 192.0.2.1 192.0.2.2 8080 65536", "got \"65536\", expected a port, 0 to 65535"),
        ("TCP4 192.0.2.1 192.0.2.2 +8080 80", "got \"+8080\", expected a port, 0 to 65535"),
        ("TCP4 192.0.2.1 192.0.2.2 080 80", "got \"080\", expected a port, 0 to 65535"),
        ("TCP4 192.0.2.1 192.0.2.2 8080 80 ", "got \"\", expected the end of the line"),
        (
            "TCP4 192.0.2.256 192.0.2.2 1 2",
            "got \"192.0.2.256\", expected an address of its family",
        ),
        ("TCP4 ::1 ::1 8080 80", "got \"::1\", expected an address of its family"),
        ("TCP6 192.0.2.1 ::1 8080 80", "got \"192.0.2.1\", expected an address of its family"),
        ("TCP4  192.0.2.1 192.0.2.2 1 2", "got \"\", expected an address of its family"),
        ("UDP4 192.0.2.1 192.0.2.2 1 2", "got \"UDP4\", expected TCP4, TCP6 or UNKNOWN"),
        ("tcp4 192.0.2.1 192.0.2.2 1 2", "got \"tcp4\", expected TCP4, TCP6 or UNKNOWN"),
        ("", "got \"\", expected TCP4, TCP6 or UNKNOWN"),
    ] {
        check(format!("PROXY {line}\r\n").as_bytes(), Err(&format!("PROXY header: {what}")));
    }
}

#[test]
fn version_2_is_a_length_and_addresses() {
    check(&v2(0x21, 0x11, &IPV4, 0), Ok(Some("192.0.2.1:8080")));
    check(&v2(0x21, 0x11, &IPV4, 300), Ok(Some("192.0.2.1:8080")));
    check(&v2(0x21, 0x11, &IPV4, MAX_V2 - 28), Ok(Some("192.0.2.1:8080")));
    check(&v2(0x21, 0x21, &ipv6(), 0), Ok(Some("[2001:db8::1]:8080")));
    check(&v2(0x21, 0x21, &ipv6(), 7), Ok(Some("[2001:db8::1]:8080")));
    check(&v2(0x20, 0x00, &[], 0), Ok(None));
    check(&v2(0x20, 0x11, &IPV4, 3), Ok(None));
    check(&v2(0x21, 0x00, &[], 9), Ok(None));
    check(&v2(0x21, 0x31, &[0; 216], 0), Ok(None));
    let length = |got, least| format!("PROXY header: length is {got}, expected {least} to 4080");
    check(&v2(0x21, 0x11, &IPV4, MAX_V2 - 27), Err(&length(4_081, 12)));
    check(&v2(0x20, 0x00, &[], 65_535), Err(&length(65_535, 0)));
    check(&v2(0x21, 0x11, &IPV4[..11], 0), Err(&length(11, 12)));
    check(&v2(0x21, 0x21, &ipv6()[..35], 0), Err(&length(35, 36)));
    for command in [0x11, 0x22, 0x2f, 0x30, 0x00] {
        let expected = format!(
            "PROXY header: command is {command:#04x}, expected 0x20 (LOCAL) or 0x21 (PROXY)"
        );
        check(&v2(command, 0x11, &IPV4, 0), Err(&expected));
    }
    for family in [0x12, 0x22, 0x10, 0x41, 0xff] {
        let expected = format!(
            "PROXY header: family is {family:#04x}, expected 0x00 (unknown), 0x11 (TCP over IPv4), \
             0x21 (over IPv6) or 0x31 (Unix)"
        );
        check(&v2(0x21, family, &IPV4, 0), Err(&expected));
    }
}

#[test]
fn other_bytes_are_no_header() {
    let expected = Err("PROXY header: got other bytes, expected its signature");
    for bytes in
        [b"GET / HTTP/1.1\r\n".as_slice(), b"P", b"PROXY\r\n", b"\r\n\r\n\0\r\nQUIT\r", b"\0"]
    {
        // what follows makes it wrong at the latest
        check(bytes, expected);
    }
    assert_eq!(parse(b""), Ok(Parsed::Partial));
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let tail = prop::collection::vec(any::<u8>(), 0..300);
    let v1 = "PROXY (TCP4|TCP6|UNKNOWN|[A-Z]{0,5}) ?[0-9a-f:. ]{0,110}(\r\n)?[ -~]{0,20}";
    let valid = (any::<[u8; 4]>(), any::<u16>(), any::<[u8; 16]>()).prop_map(|(v4, port, v6)| {
        let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
        match port % 2 {
            0 => format!("PROXY TCP4 {v4} {v4} {port} 80\r\nx"),
            _ => format!("PROXY TCP6 {v6} ::1 {port} 80\r\nx"),
        }
    });
    prop_oneof![
        tail.clone(),
        v1.prop_map(String::into_bytes),
        valid.prop_map(String::into_bytes),
        tail.clone().prop_map(|tail| [V2.as_slice(), &tail].concat()),
        (0x20_u8..0x22, prop::sample::select(vec![0x00, 0x11, 0x21, 0x31]), tail, 0_usize..300)
            .prop_map(|(command, family, addresses, more)| v2(command, family, &addresses, more)),
    ]
}

proptest! {
    #[test]
    fn never_panics_and_no_split_matters(bytes in bytes()) {
        let whole = parse(&bytes);
        prop_assert_eq!(&whole, &one_by_one(&bytes));
        let mut is_known = false;
        for n in 0..=bytes.len() {
            let part = parse(&bytes[..n]);
            is_known |= part != Ok(Parsed::Partial);
            prop_assert!(!is_known || part == whole, "{n}: {part:?}, {whole:?}");
        }
        match whole {
            Ok(Parsed::Header(header)) => prop_assert!((8..=MAX_V2).contains(&header.len)),
            Ok(Parsed::Partial) => prop_assert!(bytes.len() < MAX_V1),
            Err(_) => {}
        }
    }

    #[test]
    fn reads_what_was_written(source in any::<SocketAddr>()) {
        let (family, destination) = match source {
            SocketAddr::V4(_) => ("TCP4", "192.0.2.2"),
            SocketAddr::V6(_) => ("TCP6", "::1"),
        };
        let line = format!("PROXY {family} {} {destination} {} 80\r\n", source.ip(), source.port());
        let expected = SocketAddr::new(source.ip(), source.port());
        let header = Header { source: Some(expected), len: line.len() };
        prop_assert_eq!(parse(line.as_bytes()), Ok(Parsed::Header(header)));
    }
}
