//! A receiver that does as it is told.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

/// What it does with a request.
#[derive(Clone, Copy)]
pub(super) enum Act {
    Answer(u16),
    Hang,
    Close,
}

/// A request that it has read.
pub(super) struct Got {
    pub(super) head: String,
    pub(super) body: Value,
}

/// Does `acts`, then answers 200; tells of each request.
pub(super) async fn start(
    acts: &[Act],
    tls: Option<TlsAcceptor>,
) -> (SocketAddr, mpsc::UnboundedReceiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let addr = listener.local_addr().expect("it is bound");
    let (tell, told) = mpsc::unbounded_channel();
    let acts = Arc::new(Mutex::new(acts.iter().copied().collect::<VecDeque<_>>()));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, tls.clone(), acts.clone(), tell.clone()));
        }
    });
    (addr, told)
}

async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    acts: Arc<Mutex<VecDeque<Act>>>,
    tell: mpsc::UnboundedSender<Got>,
) {
    match tls {
        None => talk(stream, &acts, &tell).await,
        Some(tls) => {
            // a client that does not trust us goes away
            if let Ok(stream) = tls.accept(stream).await {
                talk(stream, &acts, &tell).await;
            }
        }
    }
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    acts: &Mutex<VecDeque<Act>>,
    tell: &mpsc::UnboundedSender<Got>,
) {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|it| it.parse().ok()).expect("it has a length");
    while bytes.len() < end + 4 + length {
        assert_ne!(0, stream.read_buf(&mut bytes).await.expect("it sends the rest"));
    }
    let act = acts.lock().expect("nobody panics").pop_front().unwrap_or(Act::Answer(200));
    let body = serde_json::from_slice(&bytes[end + 4..]).expect("it is JSON");
    // a test that is over listens no more
    let _ = tell.send(Got { head, body });
    match act {
        Act::Close => {}
        Act::Hang => std::future::pending().await,
        Act::Answer(status) => {
            let answer = format!(
                "HTTP/1.1 {status} It\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    }
}
