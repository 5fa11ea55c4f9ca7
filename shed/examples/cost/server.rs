//! The servers of this program.

use std::{
    net::{Ipv4Addr, TcpListener as StdListener},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use backlogd_shed::{Builder, Deadlines, Limits, OnShed, PerIp, ShedListener};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{load::REQUEST, peers::LIMIT};

/// Connections that the server of a crowd holds before it sheds.
pub(crate) const MANY: usize = 1_000;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Serves until it is killed.
pub(crate) fn run(kind: &str, port: u16) -> Result<()> {
    let soft = Limits::soft(LIMIT);
    match kind {
        "rst" => shed(listen(port)?, OnShed::Rst, soft),
        "fin" => shed(listen(port)?, OnShed::Fin, soft),
        // as many settings as look at each connection
        "watched" => serve_all(
            ShedListener::adopt(listen(port)?)
                .limits(Limits::soft(15_000))
                .deadlines(Deadlines {
                    first_byte: Some(Duration::from_secs(30)),
                    idle: Some(Duration::from_secs(300)),
                    write_stall: Some(Duration::from_secs(30)),
                    ..Deadlines::default()
                })
                .per_ip(PerIp::connections(15_000)),
        ),
        // room for as many answers as there are clients at once
        "503" => shed(listen(port)?, OnShed::http_503(), Limits { hard: Some(4 * LIMIT), ..soft }),
        "all" => shed(listen(port)?, OnShed::Rst, Limits::soft(15_000)),
        "many" => shed(listen(port)?, OnShed::Rst, Limits::soft(MANY)),
        "bare" => bare(listen(port)?),
        "raw" => raw(&listen(port)?),
        _ => bail!("not a server of this bench: {kind:?}"),
    }
}

fn listen(port: u16) -> Result<StdListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(4_096)?;
    Ok(socket.into())
}

fn shed(listener: StdListener, answer: OnShed, limits: Limits) -> Result<()> {
    serve_all(ShedListener::adopt(listener).limits(limits).on_shed(answer))
}

fn serve_all(builder: Builder) -> Result<()> {
    crate::runtime()?.block_on(async {
        let mut listener = builder.build()?;
        tokio::spawn(async move {
            loop {
                let conn = listener.accept().await?;
                tokio::spawn(serve(conn));
            }
        })
        .await?
    })
}

fn bare(listener: StdListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    crate::runtime()?.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        tokio::spawn(async move {
            loop {
                let (conn, _) = listener.accept().await?;
                tokio::spawn(serve(conn));
            }
        })
        .await?
    })
}

/// The least that a reset costs: accept(2), SO_LINGER, close(2), once [`LIMIT`] are open.
fn raw(listener: &StdListener) -> Result<()> {
    let mut held = Vec::new();
    loop {
        let (conn, _) = listener.accept().context("accept")?;
        // as `Server::start` does, to see that it listens: it has closed again
        if held.len() <= LIMIT {
            held.push(conn);
        } else {
            SockRef::from(&conn).set_linger(Some(Duration::ZERO))?;
        }
    }
}

/// Answers each request until the peer closes.
async fn serve(mut conn: impl AsyncRead + AsyncWrite + Unpin) {
    let mut request = [0; REQUEST.len()];
    while conn.read_exact(&mut request).await.is_ok() {
        if conn.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}
