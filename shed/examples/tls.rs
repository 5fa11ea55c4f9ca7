//! TLS behind the listener, which accepts on a thread of its own: says to each peer what it says.
//! The certificate is made for the purpose: `openssl s_client -connect 127.0.0.1:7443`.
//! Ctrl-C: takes nobody more, and ends when the last has left.

use std::{error::Error, sync::Arc};

use backlogd_shed::{AcceptError, Handshakes, ShedListener, Staged, TlsListener, rustls_config};
use tokio::{io, signal, task::JoinSet};
use tokio_rustls::server::TlsStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let config =
        rustls_config(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())?;
    let accepted = ShedListener::bind("127.0.0.1:7443").soft(1_000).build_threaded(1_024)?;
    let listener = TlsListener::rustls(accepted, Handshakes::default(), Arc::new(config))?;
    serve(listener, async { drop(signal::ctrl_c().await) }).await
}

/// Serves until `stop` ends, and then those who are there.
pub(crate) async fn serve(
    mut listener: TlsListener<TlsStream<Staged>>,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error>> {
    let handle = listener.handle();
    let mut tasks = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tasks.spawn(echo(stream))),
                Err(AcceptError::Closed) => break,
                Err(err) => return Err(err.into()),
            },
            Some(_) = tasks.join_next() => {}
            // who is in the handshake is served, too
            () = &mut stop, if handle.is_ready() => handle.close(),
        }
    }
    tasks.join_all().await;
    Ok(())
}

async fn echo(stream: TlsStream<Staged>) -> io::Result<()> {
    let (mut reader, mut writer) = io::split(stream);
    io::copy(&mut reader, &mut writer).await?;
    Ok(())
}
