//! As much of HTTP/1 as a health check needs. Pure.

use super::Answers;

/// The longest request that is read.
pub(super) const MOST: usize = 2_048;

/// Whether the head of a request is there to its end.
pub(super) fn is_whole(request: &[u8]) -> bool {
    request.windows(4).any(|it| it == b"\r\n\r\n")
}

/// The answer to `request`.
pub(super) fn answer(request: &[u8], answers: Answers) -> String {
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let is_http = version.is_some_and(|it| it.starts_with(b"HTTP/1.")) && words.next().is_none();
    let (Some(method), Some(target)) = (method, target) else {
        return render("400 Bad Request", "expected GET /healthz or GET /readyz", true);
    };
    if !is_http || !is_whole(request) {
        return render("400 Bad Request", "expected GET /healthz or GET /readyz", true);
    }
    let has_body = method != b"HEAD";
    if has_body && method != b"GET" {
        return render("405 Method Not Allowed", "expected GET or HEAD", true);
    }
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    match (path, answers) {
        (b"/healthz", Answers { is_alive: true, .. })
        | (b"/readyz", Answers { readiness: Ok(()), .. }) => render("200 OK", "ok", has_body),
        (b"/healthz", _) => {
            render("503 Service Unavailable", "the accept loop does not answer", has_body)
        }
        (b"/readyz", Answers { readiness: Err(why), .. }) => {
            render("503 Service Unavailable", &why.to_string(), has_body)
        }
        _ => render("404 Not Found", "expected /healthz or /readyz", has_body),
    }
}

fn render(status: &str, text: &str, has_body: bool) -> String {
    let body = if has_body { format!("{text}\n") } else { String::new() };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nCache-Control: \
         no-store\r\nConnection: close\r\n\r\n{body}",
        text.len() + 1
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::Unready, *};

    #[test]
    fn answers_its_two_paths_and_names_what_it_expects() {
        let well = Answers { is_alive: true, readiness: Ok(()) };
        let ill = Answers { is_alive: false, readiness: Err(Unready::Stale) };
        let full = Answers { is_alive: true, readiness: Err(Unready::Overloaded) };
        for (line, answers, expected) in [
            ("GET /healthz HTTP/1.1", well, "200 OK: ok\n"),
            ("GET /readyz?verbose HTTP/1.0", well, "200 OK: ok\n"),
            ("HEAD /readyz HTTP/1.1", well, "200 OK: "),
            ("GET /healthz HTTP/1.1", full, "200 OK: ok\n"),
            ("GET /readyz HTTP/1.1", full, "503 Service Unavailable: overloaded\n"),
            (
                "GET /healthz HTTP/1.1",
                ill,
                "503 Service Unavailable: the accept loop does not answer\n",
            ),
            ("GET / HTTP/1.1", well, "404 Not Found: expected /healthz or /readyz\n"),
            ("POST /readyz HTTP/1.1", well, "405 Method Not Allowed: expected GET or HEAD\n"),
            ("GET /readyz", well, "400 Bad Request: expected GET /healthz or GET /readyz\n"),
            ("\u{16}\u{3}\u{1}", well, "400 Bad Request: expected GET /healthz or GET /readyz\n"),
        ] {
            let answer = answer(format!("{line}\r\nHost: x\r\n\r\n").as_bytes(), answers);
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            let status = head.lines().next().and_then(|it| it.strip_prefix("HTTP/1.1 "));
            assert_eq!(format!("{}: {body}", status.expect("a status")), expected, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(request in proptest::collection::vec(any::<u8>(), 0..100)) {
            let well = Answers { is_alive: true, readiness: Ok(()) };
            prop_assert!(answer(&request, well).starts_with("HTTP/1.1 "));
        }
    }
}
