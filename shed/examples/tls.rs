//! TLS behind the listener, which accepts on a thread of its own: says to each peer what it says.
//! The certificate is made for the purpose: `openssl s_client -connect 127.0.0.1:7443`.

use std::{error::Error, sync::Arc};

use backlogd_shed::{AcceptError, Handshakes, ShedListener, Staged, TlsListener, rustls_config};
use tokio::{io, task::JoinSet};
use tokio_rustls::server::TlsStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let config =
        rustls_config(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())?;
    let accepted = ShedListener::bind("127.0.0.1:7443").soft(1_000).build_threaded(1_024)?;
    let listener = TlsListener::rustls(accepted, Handshakes::default(), Arc::new(config))?;
    serve(listener).await
}

/// Serves until the listener is closed, and then those who are there.
pub(crate) async fn serve(
    mut listener: TlsListener<TlsStream<Staged>>,
) -> Result<(), Box<dyn Error>> {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tasks.spawn(echo(stream))),
                Err(AcceptError::Closed) => break,
                Err(err) => return Err(err.into()),
            },
            Some(_) = tasks.join_next() => {}
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
